"""config.json: read, and typed access to its fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from mamba_export.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it does not.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}): fetch the file again"
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


class Fields:
    """Typed access to config.json; an absent or null field takes the default.

    Args:
        path: of the file, for errors.
        data: its object, or one inside it.
        supported: what the package reads, for errors.

    Every method but ``get`` raises CheckpointError where the field is of another type.
    """

    def __init__(self, path: Path, data: dict[str, Any], supported: str) -> None:
        self.path = path
        self.data = data
        self.supported = supported

    def inside(self, data: dict[str, Any]) -> Fields:
        """Those of an object inside this one."""
        return Fields(self.path, data, self.supported)

    def get(self, name: str) -> Any:
        """The field as it stands, None where it is absent."""
        return self.data.get(name)

    def _typed(self, name: str, default: Any, kinds: tuple[type, ...], expected: str) -> Any:
        value = self.data.get(name)
        if value is None:
            return default
        if type(value) not in kinds:  # not isinstance: true is no integer here
            raise CheckpointError(f"{self.path}: {name} is {value!r}, expected {expected}")
        return value

    def integer(self, name: str, default: int) -> int:
        return self._typed(name, default, (int,), "an integer")

    def optional_integer(self, name: str) -> int | None:
        return self._typed(name, None, (int,), "an integer")

    def number(self, name: str, default: float) -> float:
        return float(self._typed(name, default, (int, float), "a number"))

    def boolean(self, name: str, default: bool) -> bool:
        return self._typed(name, default, (bool,), "true or false")

    def rank(self, name: str) -> int | str:
        """Rank of the step size's projection: "auto" also where it is 0, absent or null."""
        return "auto" if self.get(name) == "auto" else self.integer(name, 0) or "auto"

    def eos(self) -> int | tuple[int, ...] | None:
        """Token that ends a text, or several; null, an empty list and an absent field are none."""
        value = self.data.get("eos_token_id")
        several = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(token) is not int for token in several):
            raise CheckpointError(
                f"{self.path}: eos_token_id is {value!r}, expected an integer or a list of integers"
            )
        return tuple(several) if len(several) > 1 else several[0] if several else None

    def refuse(self, name: str, what: str) -> NoReturn:
        """Raise CheckpointError: the field asks for what MambaLM lacks."""
        raise CheckpointError(
            f"{self.path}: {name} is {self.get(name)!r}: {what}; supported are {self.supported}"
        )
