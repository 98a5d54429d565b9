"""Another model that was trained on the same text, to be set beside a new one in its card."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mamba_export.errors import MambaExportError
from mamba_export.fields import Fields, Integer, Number, Text
from mamba_export.untrusted import read_json

RECORD_FILE = "training.json"
"""What is known of a training; every folder that one wrote holds it."""


@dataclass(frozen=True)
class Compared:
    """Figures of another model's record.

    name: of the model. mixer: "mamba" or "mamba2". parameters, seconds: of its training.
    bits_per_byte: on the held-out text.
    """

    name: str
    mixer: str
    parameters: int
    seconds: float
    bits_per_byte: float


def read_compared(folder: Path, text: bytes) -> Compared:
    """What ``folder``/training.json says.

    Args:
        folder: that a training wrote.
        text: whole, of the new training: figures on another text say nothing beside it.

    Raises:
        MambaExportError: there is no such record, it is damaged, or it is of another text.
    """
    path = folder / RECORD_FILE
    content = read_json(path, error=MambaExportError, remedy="train the model again")
    fields = Fields(content, lambda problem: MambaExportError(f"{path}: {problem}"))
    if fields.inside("text").take("sha256", Text()) != hashlib.sha256(text).hexdigest():
        raise MambaExportError(
            f"{path}: the model was trained on another text: leave --compare out"
        )
    config = fields.inside("config")
    return Compared(
        name=fields.take("name", Text()),
        mixer=str(config.get("mixer") or "mamba"),
        parameters=fields.take("parameters", Integer(1)),
        seconds=fields.take("seconds", Number(0)),
        bits_per_byte=fields.inside("held_out").take("bits_per_byte", Number(0)),
    )
