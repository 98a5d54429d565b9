"""The shipped model of selective copying: its card's figures, and as many tokens right on every backend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mamba_export import verify
from mamba_export.models import checkpoints
from tasks import copying
from tasks.copying_exported import (
    export_forms,
    load_trained,
    score_backends,
    score_reference,
)
from tasks.copying_models import CONFIG, SHIPPED

MODEL = Path(__file__).parents[1] / "models" / "selective-copying"
COUNT = 4
"""A quick look at the full length; tools/records holds more."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_trained(MODEL, SHIPPED)
    return export_forms(model, tmp_path_factory.mktemp("copying"))["recurrence"]


def test_size_card_and_recipe() -> None:
    record = json.loads((MODEL / "training.json").read_text())
    assert (MODEL / "model.safetensors").stat().st_size < 2e6
    assert record["length"] == copying.LENGTH
    assert record["figures"][copying.ACCURACY] > 97
    card = (MODEL / "README.md").read_text()
    assert f"**{record['figures'][copying.ACCURACY]:.4g}**" in card
    assert record["command"] in card
    model = checkpoints.load(MODEL).model
    assert model.config.sizes == CONFIG.sizes
    assert sum(one.numel() for one in model.parameters()) == record["parameters"]


def test_it_solves_the_task_and_keeps_its_accuracy_to_the_digit_on_every_backend(
    exported: Path,
) -> None:
    expected = score_reference(load_trained(MODEL, SHIPPED), COUNT, copying.LENGTH)
    assert expected.percent > 97
    scores, missing = score_backends(exported, COUNT, copying.LENGTH)
    assert scores, "ONNX Runtime's CPU is always here"
    assert scores == dict.fromkeys(scores, expected)
    assert "no engine" not in str(missing), "it is built where a GPU and TensorRT are"


def test_verify_is_green(exported: Path) -> None:
    report = verify(exported, model=load_trained(MODEL, SHIPPED), quick=True)
    assert [check for check in report.checks if not check.passed] == []
