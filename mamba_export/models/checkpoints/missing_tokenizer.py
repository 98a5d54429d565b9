"""What to say of a checkpoint whose tokenizer cannot be taken over."""

from __future__ import annotations

from pathlib import Path

from mamba_export import contract

_OTHERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
"""Files of tokenizers that transformers converts to tokenizer.json."""


def missing_tokenizer(folder: Path) -> str | None:
    """One line where ``folder`` has no tokenizer.json, which names what it has instead; else None."""
    wanted = contract.TOKENIZER_FILE
    if (folder / wanted).is_file():
        return None
    other = next((name for name in _OTHERS if (folder / name).is_file()), None)
    found, advice = "no", "name a folder that holds one with --tokenizer"
    if other is not None:
        found = f"{other} and no"
        advice = (
            "let transformers convert it (AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)) and "
            "name FOLDER with --tokenizer"
        )
    return f"{folder} holds {found} {wanted}, so the exported folder takes token ids and no text: {advice}"
