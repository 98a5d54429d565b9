"""What a training leaves in its folder, and the figures of the model as saved."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mamba_export.files import write_bytes, write_text
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.models import ModelConfig, checkpoints
from training.card import model_card, plot_available, plot_losses
from training.compared import RECORD_FILE, Compared
from training.data import END_OF_TEXT, Split
from training.evaluate import bits_per_byte, generate, gzip_bits_per_byte, xz_bits_per_byte
from training.loop import Recipe, Trained

_SAMPLE_BYTES = 4096  # of held_out_sample.txt, at most
_GENERATED_BYTES = 600


def write_model(
    folder: Path,
    *,
    name: str,
    text_name: str,
    text: bytes,
    split: Split,
    config: ModelConfig,
    recipe: Recipe,
    trained: Trained,
    device: torch.device,
    command: str,
    data_note: str = "",
    prompt: str | None = None,
    compared: Sequence[Compared] = (),
) -> dict[str, Any]:
    """Write checkpoint, tokenizer, record, plot, card and held-out sample into ``folder``.

    Args:
        folder: an existing, empty folder.
        prompt: of the samples in the card; None for the beginning of the held-out text.
        compared: models that the card sets beside this one.

    Returns:
        The record that ``training.json`` holds. Its held-out bits per byte are those of the saved weights.
    """
    checkpoints.save(trained.model, folder, dtype=torch.bfloat16)
    write_byte_tokenizer(folder, eos_token_id=END_OF_TEXT)
    # fp32 again, with the values that rounding to bf16 left.
    saved = checkpoints.load(folder, dtype=torch.float32).model.to(device)
    prompt_bytes = default_prompt(split.held_out) if prompt is None else prompt.encode()
    record: dict[str, Any] = {
        "name": name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": command,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "text": {
            "name": text_name,
            "bytes": len(text),
            "lines": len(text.splitlines()),
            "sha256": hashlib.sha256(text).hexdigest(),
        },
        "data_note": data_note,
        "split": {
            "train_bytes": len(split.train),
            "validation_bytes": len(split.validation),
            "held_out_bytes": len(split.held_out),
            "held_out_lines": len(split.held_out.splitlines()),
            "held_out_start": split.held_out.splitlines()[0][:40].decode(errors="replace"),
        },
        "config": config.to_fields(),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "model_bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
        "recipe": dataclasses.asdict(recipe),
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "chosen": trained.chosen,
        "train_bits_per_byte": round(trained.train_bits_per_byte, 5),
        "validation_bits_per_byte": trained.validation_bits_per_byte,
        "held_out": {
            "bits_per_byte": bits_per_byte(saved, split.held_out),
            "xz_9e_bits_per_byte": xz_bits_per_byte(split.held_out),
            "gzip_9_bits_per_byte": gzip_bits_per_byte(split.held_out),
        },
        "compared": [dataclasses.asdict(one) for one in compared],
        "plot": plot_available(),
        "samples": {
            "prompt": prompt_bytes.decode(errors="replace"),
            **{
                key: generate(
                    saved, prompt_bytes, _GENERATED_BYTES, temperature=temperature, seed=recipe.seed
                ).decode(errors="replace")
                for key, temperature in (("greedy", 0.0), ("temperature_0.8", 0.8))
            },
        },
    }
    text_record = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / RECORD_FILE, text_record)
    if record["plot"]:
        plot_losses(trained.log, record, folder / "loss.png")
    write_text(folder / "README.md", model_card(record))
    write_bytes(folder / "held_out_sample.txt", held_out_sample(split.held_out))
    return record


def held_out_sample(held_out: bytes, size: int = _SAMPLE_BYTES) -> bytes:
    """The first lines of the held-out text, at most ``size`` bytes of them (the first line at least)."""
    end = held_out.rfind(b"\n", 0, size) + 1
    return held_out[: end or held_out.find(b"\n") + 1 or len(held_out)]


def default_prompt(held_out: bytes) -> bytes:
    """The first words of the held-out text: at most 32 bytes, cut at a space."""
    start = held_out.splitlines()[0][:32]
    return start[: start.rfind(b" ") + 1] or start
