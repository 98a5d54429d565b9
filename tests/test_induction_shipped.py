"""The induction models that ship: cards, sizes, what they answer, and the same from their exported files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mamba_export
from mamba_export import OrtSession
from mamba_export.models.checkpoints import load
from mixers.attention_checkpoint import load_attention
from report.record import RECORDS, read_record
from tasks.induction import LENGTH, LONGEST, VALIDATION_SEED, Examples
from tasks.induction_export import export_checkpoint
from tasks.induction_models import ATTENTION, MAMBA
from tasks.streaming import read_stream

ROOT = Path(__file__).parent.parent
MAMBA_FOLDER = ROOT / "models" / "induction-heads"
ATTENTION_FOLDER = ROOT / "models" / "induction-heads-attention"


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(MAMBA_FOLDER, tmp_path_factory.mktemp("mamba") / "out", "fp32").folder


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("attention") / "out"
    return export_checkpoint(ATTENTION_FOLDER, out, "fp32").folder


def read(folder: Path, examples: Examples, part: int = 1024) -> float:
    session = OrtSession(folder, threads=1, providers=["CPUExecutionProvider"])
    reading = read_stream(session, examples, part, seconds=600)
    assert reading.accuracy is not None
    return reading.accuracy


@pytest.mark.parametrize("folder", [MAMBA_FOLDER, ATTENTION_FOLDER], ids=lambda path: path.name)
def test_size_recipe_and_card(folder: Path) -> None:
    record = json.loads((folder / "training.json").read_text())
    assert record["length"] == LENGTH
    assert 60_000 <= record["parameters"] <= 80_000
    assert sum(one.stat().st_size for one in folder.iterdir()) < 2e6
    card = (folder / "README.md").read_text()
    assert record["command"] in card
    for name, value in record["figures"].items():
        assert f"| {name} | **{value:.4g}** |" in card


def test_mamba_keeps_its_accuracy_at_lengths_that_it_was_not_trained_at(mamba: Path) -> None:
    for length, count in ((64, 100), (LENGTH, 100), (4096, 16), (65_536, 2)):
        assert read(mamba, Examples(count, length)) >= 99, length


def test_attention_solves_its_own_length_and_loses_longer_ones(attention: Path) -> None:
    assert read(attention, Examples(100, LENGTH)) >= 95
    assert read(attention, Examples(16, 8 * LENGTH)) <= 60


def test_the_exported_mamba_is_verified(mamba: Path) -> None:
    report = mamba_export.verify(mamba, model=MAMBA_FOLDER, quick=True)
    assert report.passed, report


def test_the_exported_attention_answers_as_pytorch_does_in_float64(attention: Path) -> None:
    tokens = Examples(2, 300, VALIDATION_SEED).tokens(0, 300)
    with torch.no_grad():
        expected = load_attention(ATTENTION_FOLDER).double()(torch.from_numpy(tokens))[0].numpy()
    session = OrtSession(attention, threads=1, providers=["CPUExecutionProvider"])
    state, found = session.initial_state(2), []
    for part in np.split(tokens, [1, 200, 299], axis=1):
        logits, state = session.run(part, state)
        found.append(logits)
    error = np.concatenate(found, axis=1) - expected
    assert np.linalg.norm(error) <= 1e-4 * np.linalg.norm(expected)


def test_the_records_hold_what_the_report_claims() -> None:
    for path in sorted((ROOT / RECORDS).glob("*-induction.json")):
        record = read_record(path)
        [headline] = [claim for claim in record.claims if claim.headline]
        assert f"{LONGEST:,} tokens" in headline.claim
        assert headline.ours == 100, path.name
        assert all(claim.holds for claim in record.claims), path.name


def test_the_shipped_configurations_are_the_tasks_own() -> None:
    assert load_attention(ATTENTION_FOLDER).config == ATTENTION
    assert load(MAMBA_FOLDER).model.config.sizes == MAMBA.sizes
