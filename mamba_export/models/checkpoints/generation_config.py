"""generation_config.json: which tokens end, start and pad a text, over what config.json says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mamba_export.errors import CheckpointError
from mamba_export.models.checkpoints.family import Description
from mamba_export.models.checkpoints.fields import ConfigFields, read_object
from mamba_export.untrusted import is_there

FILE = "generation_config.json"


def with_generation_config(folder: Path, description: Description) -> Description:
    """A description with the special tokens of ``folder``/generation_config.json, where there is one.

    As in transformers the file replaces what config.json says of them as a whole: a token that it does not
    name is none (``GenerationMixin.adjust_generation_fn``, and tests/test_end_of_text.py against it).

    Raises:
        CheckpointError: the file is damaged, or a token in it is no integer.
    """
    path = folder / FILE
    if not is_there(path, error=CheckpointError):
        return description
    return with_content(path, read_object(path), description)


def with_content(path: Path, content: dict[str, Any], description: Description) -> Description:
    """``with_generation_config`` for the content of a file that is named ``path`` in errors."""
    fields = ConfigFields(path, content, FILE)
    return dataclasses.replace(
        description,
        config=description.config.replace(eos_token_id=fields.eos()),
        bos_token_id=fields.token("bos_token_id"),
        pad_token_id=fields.token("pad_token_id"),
    )
