"""config.json of a checkpoint: its fields, and what they mean to a model's configuration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mamba_export.errors import CheckpointError
from mamba_export.fields import END_TOKENS, TOKEN_ID, Fields, Integer, Number, OrNone, Rule
from mamba_export.models import Mamba2Config, MambaConfig
from mamba_export.untrusted import read_json

T = TypeVar("T")

RULES = {**MambaConfig.RULES, **Mamba2Config.RULES}
"""What each field of a configuration must be; those of one name are the same in both."""


UNLIMITED = {"__float__": "Infinity"}
"""Infinity, which JSON lacks, as transformers writes it."""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint that holds an object; numbers in it may be NaN or infinite.

    Raises:
        CheckpointError: it does not, or cannot be read.
    """
    # Configurations in use hold Infinity in fields that we do not read: Mamba-2's time_step_limit.
    data = read_json(path, error=CheckpointError, remedy="fetch the file again", non_finite=True)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


class ConfigFields(Fields):
    """Typed access to config.json; an absent or null field takes the default.

    Args:
        path: of the file, for errors.
        data: its object, or one inside it.
        supported: what the package reads, for errors.
        where: what precedes the names of the fields, such as "ssm_cfg.".

    Every method but ``get`` raises CheckpointError where the field is not as it should be.
    """

    def __init__(self, path: Path, data: dict[str, Any], supported: str, where: str = "") -> None:
        super().__init__(data, lambda problem: CheckpointError(f"{path}: {problem}"), where)
        self.path = path
        self.supported = supported

    @property
    def has_original_names(self) -> bool:
        """Whether the sizes have the names that mamba_ssm or Mistral gives them, not transformers'."""
        return (
            not self.data.keys().isdisjoint(("d_model", "dim")) and "hidden_size" not in self.data
        )

    def optional(self, name: str, rule: Rule[T], default: T) -> T:
        """A field as a rule says."""
        return default if self.get(name) is None else self.take(name, rule)

    def of(self, ours: str, name: str, default: Any) -> Any:
        """A field that is a configuration's ``ours`` under another name, in the range that it has there."""
        return self.optional(name, RULES[ours], default)

    def vocab_size(self, default: int) -> int:
        """Rows of the embedding: at least one, though a configuration lets a backbone without tokens pass."""
        return self.optional("vocab_size", Integer(1), default)

    def widths(self, d_model: int, d_inner_name: str) -> dict[str, Any]:
        """A configuration's ``d_inner`` or ``expand``.

        Given, d_inner wins over expand: the published FalconMamba says expand 16 and means 2. An expand that is
        not whole gives d_inner as mamba_ssm and transformers compute it, rounded down.
        """
        d_inner = self.of("d_inner", d_inner_name, None)
        found = self.expansion(d_model)
        return found if d_inner is None else {**found, "d_inner": d_inner}

    def expansion(self, d_model: int) -> dict[str, Any]:
        """``widths`` where expand alone decides."""
        expand = self.optional("expand", Number(above=0), 2.0)
        if expand == int(expand):
            return {"expand": int(expand)}
        return {"d_inner": int(expand * d_model), "expand": max(int(expand), 1)}

    def rank(self, name: str) -> int | str:
        """Rank of the step size's projection: "auto" also where it is 0, absent or null."""
        rank: int | str = "auto" if self.get(name) == 0 else self.of("dt_rank", name, "auto")
        return rank

    def token(self, name: str) -> int | None:
        """A token, or None."""
        return self.optional(name, OrNone(TOKEN_ID), None)

    def dt_limits(self, name: str) -> dict[str, Any]:
        """``Mamba2Config``'s limits of the step size: a list of two, of which the second may be infinite."""
        limit = self.get(name)
        if limit is None:
            return {}
        if not isinstance(limit, list | tuple) or len(limit) != 2:
            self.refuse(name, ", expected a list of the least and the largest step size")
        low, high = limit
        at_least, infinite = Number(0), high in (math.inf, UNLIMITED)
        if not at_least.holds(low) or not (infinite or (at_least.holds(high) and high >= low)):
            self.refuse(
                name, ", expected two numbers of at least 0, the second not below the first"
            )
        return {"dt_limit_min": float(low), "dt_limit_max": None if infinite else float(high)}

    def check_chunk_size(self) -> None:
        """Refuse a chunk length that is none. How long chunks are is a kernel's choice, never the graph's."""
        self.optional("chunk_size", Integer(1), 1)

    def eos(self, default: int | None = None) -> int | tuple[int, ...] | None:
        """Token that ends a text, or several; null and an empty list are none, an absent field the default."""
        if "eos_token_id" not in self.data:
            return default
        found = self.optional("eos_token_id", END_TOKENS, None)
        if not isinstance(found, list):
            return found
        return tuple(found) if len(found) > 1 else found[0] if found else None

    def unsupported(self, name: str, what: str) -> NoReturn:
        """Raise CheckpointError: the field asks for what MambaLM lacks."""
        self.refuse(name, f": {what}; supported are {self.supported}")
