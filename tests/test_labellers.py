"""The examples of DNA-like and audio-like inputs: their data, their peers, the shipped models as files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import run_labellers
from mamba_export import verify
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.errors import MambaExportError
from report.record import read_record
from tasks import audio_tones, dna_islands
from tasks.labeller import Labeller, export_labeller, file_logits, load_labeller

MODELS = Path(__file__).parent.parent / "models"


def test_the_forward_algorithm_is_the_sum_over_all_paths() -> None:
    bases, _ = dna_islands.simulate(3, 6, seed=5)
    found = dna_islands.forward_algorithm(bases)
    for row, length in itertools.product(range(3), (1, 2, 6)):
        weight = np.zeros(2)
        for path in itertools.product((0, 1), repeat=length):
            chance = dna_islands.START[path[0]]
            for step in range(1, length):
                chance *= dna_islands.SWITCH[path[step - 1], path[step]]
                chance *= dna_islands.CHAINS[path[step], bases[row, step - 1], bases[row, step]]
            weight[path[-1]] += chance
        assert found[row, length - 1] == pytest.approx(weight[1] / weight.sum(), rel=1e-12)


def test_bases_follow_their_chains() -> None:
    bases, inside = dna_islands.simulate(256, 1024, seed=3)
    before, after, state = bases[:, :-1], bases[:, 1:], inside[:, 1:]
    for island, base in itertools.product((0, 1), range(4)):
        chosen = after[(state == island) & (before == base)]
        share = np.bincount(chosen, minlength=4) / len(chosen)
        np.testing.assert_allclose(share, dna_islands.CHAINS[island, base], atol=0.02)
    switches = (inside[:, 1:] != inside[:, :-1])[inside[:, :-1] == 1].mean()
    assert switches == pytest.approx(1 / 300, rel=0.15)


def test_tones_are_where_the_labels_say() -> None:
    samples, labels = audio_tones.simulate(4, 64, seed=3)
    shares = audio_tones.tone_shares(samples, 4)
    for row, frame in zip(*np.nonzero(labels), strict=True):
        if frame < 3 or len(set(labels[row, frame - 3 : frame + 1])) > 1:
            continue
        spectrum = np.abs(np.fft.rfft(samples[row, frame - 3 : frame + 1].ravel(), 8000)) ** 2
        key = labels[row, frame] - 1
        tones = [audio_tones.LOW[key // 4], audio_tones.HIGH[key % 4]]
        power = 2 * spectrum[np.array(tones, int)]
        energy = (samples[row, frame - 3 : frame + 1] ** 2).sum()
        np.testing.assert_allclose(
            shares[row, frame, [key // 4, 4 + key % 4]], power / (256 * energy), rtol=1e-4
        )


@pytest.mark.parametrize("name", run_labellers.EXAMPLES)
def test_the_shipped_model_as_a_file(name: str, tmp_path: Path) -> None:
    example = run_labellers.EXAMPLES[name]
    model = MODELS / example.task.name
    assert sum(one.stat().st_size for one in model.iterdir()) < 2e6
    recorded = json.loads((model / "training.json").read_text())
    card = (model / "README.md").read_text()
    assert all(f"{value:.4g}" in card for value in recorded["figures"].values())
    labeller = load_labeller(model)
    folder = export_labeller(labeller, tmp_path / "exported")
    session = OrtSession(folder, threads=1)
    features, labels = example.simulate(16, 300, 11)
    with torch.no_grad():
        truth = labeller(torch.from_numpy(features))[0].numpy()
    whole = file_logits(session, features, 300)
    np.testing.assert_allclose(whole, truth, atol=1e-3 * np.abs(truth).max())
    pieces = file_logits(session, features, 37)
    np.testing.assert_allclose(pieces, truth, atol=1e-3 * np.abs(truth).max())
    first = example.judge(whole, labels)[0]
    assert first > example.judge_peer(features, labels)[0] - 3.0
    report = verify(folder, model=labeller, backends=["native"], quick=True)
    assert [check for check in report.checks if not check.passed] == []


@pytest.mark.parametrize("name", run_labellers.EXAMPLES)
def test_a_quick_record(name: str, tmp_path: Path) -> None:
    place = tmp_path / "record.json"
    run_labellers.run([name, "--record", str(place), "--quick", "--commit", "0" * 40])
    record = read_record(place)
    assert record.quick
    assert record.tables[0].rows[0][1] == pytest.approx(record.tables[0].rows[1][1], abs=0.1)


def test_a_damaged_folder_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"features": 4, "classes": 2, "d_model": 8}')
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(MambaExportError, match=r"model\.safetensors: are not the labeller's"):
        load_labeller(tmp_path)


def test_a_label_depends_on_the_past_alone() -> None:
    torch.manual_seed(0)
    labeller = Labeller(4, 2, 8).eval()
    x = torch.randn(1, 20, 4)
    y = x.clone()
    y[:, 12:] = 0
    torch.testing.assert_close(labeller(x)[0][:, :12], labeller(y)[0][:, :12])
