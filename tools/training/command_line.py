"""What the command lines of trainings share: numbers, devices, errors of one line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from mamba_export.errors import MambaExportError


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise MambaExportError(f"{message} ({self.prog} --help explains)")


def number(
    kind: Callable[[str], Any], minimum: float, maximum: float = float("inf")
) -> Callable[[str], Any]:
    """A parser of numbers in a range, for ``add_argument``'s ``type``; ``kind`` is int or float."""

    def parse(value: str) -> Any:
        try:
            found = kind(value)
        except ValueError:
            found = None
        if found is None or not minimum <= found <= maximum:
            what = "an integer" if kind is int else "a number"
            low, high = (f"{one:,}" if kind is int else f"{one:g}" for one in (minimum, maximum))
            bounds = f"{low} or more" if maximum == float("inf") else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{value!r} is not {what}, {bounds}")
        return found

    return parse


OPTIMISATION: dict[str, tuple[Callable[[str], Any], str]] = {
    "steps": (number(int, 1), "optimiser steps"),
    "max_minutes": (number(float, 0), "time limit; the schedule ends with it; 0: none"),
    "batch": (number(int, 1), "sequences a step"),
    "lr": (number(float, 0), "peak learning rate"),
    "lr_floor": (number(float, 0, 1), "last rate over the peak"),
    "warmup": (number(int, 0), "steps to the peak"),
    "weight_decay": (number(float, 0), "of the linear layers' matrices alone"),
    "beta2": (number(float, 0, 0.99999), "AdamW's second decay rate"),
    "clip": (number(float, 0), "largest norm of the gradient; 0: any"),
    "seed": (number(int, 0), "of the initialisation and of everything else that is random"),
}
"""Options of every training, by the field of ``Optimisation``: what reads the value, and the help."""


def flag(name: str) -> str:
    """The option of a recipe's field."""
    return "--" + name.replace("_", "-")


def add_output(parser: argparse.ArgumentParser) -> Any:
    """The options of the folder that a training writes: their group, for further ones."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    group.add_argument("--force", action="store_true", help="replace the folder if it exists")
    return group


def add_switch(group: Any, name: str, usual: bool, text: str, default: bool | None) -> None:
    """An option of yes and no, with its opposite. usual: what its help calls the default."""
    text = f"{text} (default: {'yes' if usual else 'no'})"
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=text)


def add_device(group: Any) -> None:
    """``choose_device``'s option."""
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def choose_device(name: str) -> torch.device:
    """The device by name; "auto" is the GPU where there is one.

    Raises:
        MambaExportError: the name is not a device's, or the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise MambaExportError(f"--device {name}: use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MambaExportError(f"--device {name}: no CUDA GPU is available; use --device cpu")
    return device


def reproducing_command(program: str, arguments: Sequence[str], paths: Sequence[Path]) -> str:
    """The command line without what belongs to this machine: the folders of absolute ``paths``, --force."""
    names = {str(path): path.name for path in paths if path.is_absolute()}
    words = [names.get(word, word) for word in arguments if word != "--force"]
    return shlex.join(["python", program, *words])
