"""The shipped forecasters: their cards' figures in ONNX Runtime, and the faults that they find."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mamba_export import verify
from mamba_export.backends.onnxruntime.session import OrtSession
from tasks.forecaster import load_forecaster
from tasks.plant import CHANNELS, simulate
from tasks.plant_evaluation import Sizes, errors, evaluate, file_forecast
from tasks.plant_forecast import IGNORED, TASK, TEST_SEED
from tasks.trainer import parameter_count
from tasks.watcher import read_limits

MODELS = Path(__file__).parent.parent / "models"
NAMES = {"mamba": TASK.name, "lti": f"{TASK.name}-lti"}


@pytest.mark.parametrize("name", NAMES)
def test_size_recipe_and_card(name: str) -> None:
    folder = MODELS / NAMES[name]
    assert sum(one.stat().st_size for one in folder.iterdir()) < 2e6
    record = json.loads((folder / "training.json").read_text())
    assert (record["task"], record["model"]) == (TASK.name, name)
    forecaster = load_forecaster(folder)
    assert record["parameters"] == parameter_count(forecaster)
    card = (folder / "README.md").read_text()
    for value in record["figures"].values():
        assert f"{value:.4g}" in card
    assert (folder / "loss.png").stat().st_size > 1000
    assert read_limits(folder).thresholds.min() > 0


def test_both_have_as_many_parameters() -> None:
    counts = [parameter_count(load_forecaster(MODELS / name)) for name in NAMES.values()]
    assert counts[0] == counts[1]


def test_the_cards_figures_are_those_of_the_exported_file(plant_folder: Path) -> None:
    record = json.loads((MODELS / TASK.name / "training.json").read_text())
    readings = simulate(record["test_sequences"], record["length"] + 1, TEST_SEED).readings
    mean, deviation = file_forecast(OrtSession(plant_folder, threads=1))(readings)
    off = (readings[:, 1:] - mean)[:, IGNORED:].astype(np.float64)
    root = np.sqrt((off**2).mean((0, 1)))
    for channel, value in zip(CHANNELS, root, strict=True):
        assert record["figures"][f"root mean square error, {channel}"] == pytest.approx(
            value, rel=1e-3
        )
    change = load_forecaster(MODELS / TASK.name).change.numpy()
    deviation = deviation[:, IGNORED:].astype(np.float64)
    nats = 0.5 * (off / deviation) ** 2 + np.log(deviation / change) + 0.5 * math.log(2 * math.pi)
    assert record["figures"]["negative log likelihood, nats"] == pytest.approx(
        nats.mean(), abs=1e-3
    )


def test_verify_is_green(plant_folder: Path) -> None:
    source = load_forecaster(MODELS / TASK.name)
    report = verify(plant_folder, model=source, backends=["native"], quick=True)
    assert [check for check in report.checks if not check.passed] == []


def test_faults_are_found_and_sound_plants_are_left_alone(plant_folder: Path) -> None:
    limits = read_limits(MODELS / TASK.name)
    forecast = file_forecast(OrtSession(plant_folder, threads=1))
    result = evaluate(forecast, limits, Sizes((8, 800), (16, 1024)))
    assert result.alarms < 3000  # in a million samples; the limits let a hundred through
    share = {name: one.found for name, one in result.found.items()}
    assert np.mean(list(share.values())) > 0.5, share
    assert np.abs(errors(forecast, simulate(4, 600, seed=6).readings)[:, 200:]).mean() < 1.5
