"""Damaged checkpoints: config.json, generation_config.json, safetensors and their index, pickles with code."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attacks.attempt import Attempt, Outcome
from attacks.material import CHECKPOINT, PICKLE, SHARDED, Place
from attacks.mutations import damage_bytes, damage_file, damage_json, damage_json_file, set_json
from attacks.odd import Raw, odd_json, short


def use(place: Place, what: str, *, export: float = 0.06, refuse: bool = False) -> Attempt:
    """Export the checkpoint ``model``, which is damaged, or load it, which is the quick part of that."""
    rng, out = place.rng, place.folder / "out"
    if rng.random() < export:
        arguments = ["export", "model", "-o", "out"]
        if rng.random() < 0.1:
            arguments += ["--dtype", rng.choice(("fp16", "bf16"))]
        return Attempt(
            what, arguments, writes=(out,), refuse=refuse, check=lambda outcome: runs(out, outcome)
        )
    if rng.random() < 0.03:
        exported = place.copy("exported", "exported")
        arguments = ["verify", str(exported), "--model", "model", "--quick", "--backend", "native"]
        return Attempt(what, arguments, refuse=refuse)

    def load() -> object:
        from mamba_export.models import checkpoints

        return checkpoints.load(place.folder / "model")

    return Attempt(what, call=load, refuse=refuse)


def runs(out: Path, outcome: Outcome) -> Iterator[str]:
    """What is wrong with an export that was reported as done: it opens, and reads tokens."""
    if outcome.code != 0 or "bf16" in out.joinpath("mamba_export.json").read_text(encoding="utf-8"):
        return  # ONNX Runtime's CPU provider has no bf16
    from mamba_export import OrtSession

    try:
        OrtSession(out).run([[1, 2, 3]])
    except Exception as error:
        yield f"exported, and does not run: {type(error).__name__}: {str(error)[:200]}"


_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "state_size",
    "conv_kernel",
    "time_step_rank",
)
_FLOATS = ("layer_norm_epsilon", "time_step_min", "time_step_max", "time_step_floor")
_NO_SIZE: tuple[Any, ...] = (
    0,
    -1,
    2**31,
    2**64,
    10**400,
    1.5,
    "16x",
    [],
    {},
    Raw("NaN"),
    Raw("Infinity"),
    Raw("1e400"),
)
_NO_FLOAT: tuple[Any, ...] = (
    Raw("NaN"),
    Raw("Infinity"),
    Raw("-Infinity"),
    Raw("1e400"),
    10**400,
    -1.0,
    "x",
    [],
    {},
)


def config(place: Place) -> Attempt:
    """config.json: bytes, values, and numbers that no model has."""
    rng, path = place.rng, place.copy(CHECKPOINT) / "config.json"
    way = rng.random()
    if way < 0.3:
        names, values = rng.choice(((_SIZES, _NO_SIZE), (_FLOATS, _NO_FLOAT)))
        name, value = rng.choice(names), rng.choice(values)
        if name == "time_step_rank" and value == 0:  # which is "auto"
            value = -1
        set_json(path, **{name: value})
        return use(place, f"config.json: {name} is {short(value)}", refuse=True)
    return use(place, (damage_json_file if way < 0.85 else damage_file)(rng, path), export=0.06)


def generation_config(place: Place) -> Attempt:
    """generation_config.json, which names ends of text."""
    rng, path = place.rng, place.copy(CHECKPOINT) / "generation_config.json"
    way = rng.random()
    if way < 0.4:
        value = odd_json(rng)
        set_json(path, eos_token_id=value)
        return use(place, f"generation_config.json: eos_token_id is {short(value)}")
    return use(place, (damage_json_file if way < 0.8 else damage_file)(rng, path))


def safetensors(place: Place) -> Attempt:
    """Headers, bodies, the index, and names with escape sequences in them."""
    rng = place.rng
    if rng.random() < 0.3:
        folder = place.copy(SHARDED)
        names = ("model.safetensors.index.json", "model-00001-of-00002.safetensors")
        path = folder / rng.choice(names)
        if path.suffix == ".json":
            return use(place, (damage_json_file if rng.random() < 0.7 else damage_file)(rng, path))
        if rng.random() < 0.3:
            path.unlink()
            return use(place, f"{path.name} is missing", refuse=True)
        return use(place, damage_file(rng, path))
    path = place.copy(CHECKPOINT) / "model.safetensors"
    if rng.random() < 0.2:
        return use(place, damage_file(rng, path), export=0.05)
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    text, what = _header(place, header)
    length = (
        len(text)
        if rng.random() < 0.9
        else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(text) + 1))
    )
    if length != len(text):
        what += f"; its length is said to be {length}"
    path.write_bytes(struct.pack("<Q", length) + text + body)
    return use(place, f"header: {what}", export=0.05)


def _header(place: Place, header: dict[str, Any]) -> tuple[bytes, str]:
    """A changed header, and what was changed."""
    rng = place.rng
    name = rng.choice([one for one in header if one != "__metadata__"])
    way = rng.randrange(7)
    if way == 0:
        dtype = rng.choice(
            ("F6_E2M3", "F8_E4M3", "F4", "I64", "BOOL", "C64", "U8", "F64", "BF16", "x", "")
        )
        header[name]["dtype"] = dtype
        return json.dumps(header).encode(), f"{name} is {dtype}"
    if way == 1:
        shape = rng.choice(
            ([], [0], [-1], [2**40], [2**63, 2], [1, 1], [1.5], "x", None, [16] * 70)
        )
        header[name]["shape"] = shape
        return json.dumps(header).encode(), f"{name} has shape {short(shape)}"
    if way == 2:
        offsets = rng.choice(
            ([0, 0], [0, 2**40], [-4, 0], [8, 4], [2**63, 2**64], [0], "x", [0, 10**9])
        )
        header[name]["data_offsets"] = offsets
        return json.dumps(header).encode(), f"{name} has offsets {offsets}"
    if way == 3:
        prefix = rng.choice(
            (
                "_orig_mod.",
                "module.",
                "\x1b[2J\x1b]0;owned\x07",
                "[red]",
                "\u202e",
                "a" * 5000,
                "x\n",
            )
        )
        header[prefix + name] = header.pop(name)
        return json.dumps(header).encode(), f"{name} is behind {short(prefix)}"
    if way <= 5:
        text, what = damage_json(rng, header)
        return text.encode("utf-8", "surrogatepass"), what
    return damage_bytes(rng, json.dumps(header).encode())


class _Planted:
    """Pickled, a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def pickle_file(planted: Any) -> bytes:
    """A file of torch.save with something in the state dict that is no tensor."""
    import torch

    stream = io.BytesIO()
    torch.save({"backbone.norm_f.weight": torch.ones(16), "x": planted}, stream)
    return stream.getvalue()


def pickle_(place: Place) -> Attempt:
    """pytorch_model.bin: damaged, or with code in it that must not run."""
    import os

    rng, path = place.rng, place.copy(PICKLE) / "pytorch_model.bin"
    if rng.random() < 0.5:
        return use(place, damage_file(rng, path))
    marker = str(place.folder / "planted")
    planted: tuple[Callable[..., Any], ...] = (os.mkdir, Path, eval, open, print)
    function = rng.choice(planted)
    argument = f"open({marker!r}, 'w')" if function is eval else marker
    call = _Planted(function, argument, *(["w"] if function is open else []))
    path.write_bytes(pickle_file(call) if rng.random() < 0.5 else pickle.dumps({"x": call}))
    return use(place, f"pytorch_model.bin: calls {function.__name__}", refuse=True)
