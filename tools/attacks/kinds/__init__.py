"""The kinds of attack, one table: a name, how often it is drawn, and what makes an attempt of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from attacks.attempt import Attempt
from attacks.kinds import (
    api,
    checkpoint,
    disk,
    exported,
    graphs,
    operators,
    options,
    paths,
    signals,
)
from attacks.material import Place


@dataclass(frozen=True)
class Kind:
    """A kind of attack.

    Args:
        name: in the record and on the page.
        weight: of every thousand, about so many.
        make: an attempt; all that is random in it comes from ``place.rng``.
    """

    name: str
    weight: int
    make: Callable[[Place], Attempt]


KINDS = (
    Kind("model.onnx: bytes", 90, exported.graph_bytes),
    Kind("model.onnx.data: bytes", 30, exported.data_bytes),
    Kind("weights changed: verify must fail", 4, exported.changed_weight),
    Kind("graphs: nodes, names, shapes, types", 60, graphs.mutated),
    Kind("mamba_export.json: bytes and values", 130, exported.metadata),
    Kind("engine.json: bytes and values", 40, exported.engine),
    Kind("tokenizer.json: bytes and values", 110, exported.tokenizer),
    Kind("config.json: bytes and values", 110, checkpoint.config),
    Kind("generation_config.json: bytes and values", 15, checkpoint.generation_config),
    Kind("safetensors: headers, bodies, index", 90, checkpoint.safetensors),
    Kind("pytorch_model.bin: bytes, and code in it", 30, checkpoint.pickle_),
    Kind("options of every command", 110, options.odd_options),
    Kind("environment variables", 10, options.environment),
    Kind("paths: links, pipes, folders, names", 60, paths.odd_paths),
    Kind("OUT: what is there already", 25, paths.standing_output),
    Kind("permissions", 12, paths.permissions),
    Kind("Python API: values", 50, api.values),
    Kind("operators in PyTorch: tensors that do not fit", 40, operators.odd_tensors),
    Kind("full disk, and limits of file size", 14, disk.full),
    Kind("standard output closed or full", 4, disk.standard_output),
    Kind("signals at random moments", 2, signals.signal_at_random),
    Kind("two runs to one OUT", 1, signals.two_at_once),
)


def kind_of(seed: int, number: int) -> Kind:
    """The kind of an attempt."""
    return choose(randomness(seed, number))


def randomness(seed: int, number: int) -> Random:
    """All that is random in an attempt: its kind is drawn first."""
    return Random(f"{seed}/{number}")


def choose(rng: Random) -> Kind:
    """The kind of the next attempt."""
    return rng.choices(KINDS, [kind.weight for kind in KINDS])[0]
