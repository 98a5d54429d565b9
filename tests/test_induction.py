"""The induction task: its sequences, and the exported models that read them part by part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mamba_export
import run_induction
import train_task
from mamba_export.errors import MambaExportError
from mamba_export.models.checkpoints import load
from mixers.attention_checkpoint import load_attention
from report.record import read_record
from tasks import copying_models
from tasks.induction import LENGTH, TRIGGER, VOCABULARY, Examples, make_examples
from tasks.induction_export import Exported, export_checkpoint
from tasks.induction_models import TASK, accuracy
from tasks.streaming import read_lengths

# The sequences


def check_examples(tokens: np.ndarray, answers: np.ndarray) -> None:
    assert (tokens == TRIGGER).sum(1).tolist() == [2] * len(tokens)
    assert (tokens[:, -1] == TRIGGER).all()
    first = (tokens == TRIGGER).argmax(1)
    assert (tokens[np.arange(len(tokens)), first + 1] == answers).all()
    assert 0 <= tokens.min() <= tokens.max() < VOCABULARY


@pytest.mark.parametrize("length", [4, LENGTH])
def test_the_trainings_sequences_have_one_answer(length: int) -> None:
    tokens, answers = make_examples(500, length, torch.Generator().manual_seed(0))
    assert tokens.shape == (500, length)
    check_examples(tokens.numpy(), answers.numpy())
    first = (tokens == TRIGGER).int().argmax(1)
    assert first.min() <= 0.05 * length
    assert 0.95 * (length - 3) <= first.max() <= length - 3


@pytest.mark.parametrize("length", [4, 100, 10_000])
def test_the_tests_sequences_are_the_same_in_any_parts(length: int) -> None:
    examples = Examples(40, length)
    whole = examples.tokens(0, length)
    check_examples(whole, examples.answers)
    for size in (3, 4096, 5000, length):
        if length // size < 1000:
            parts = [*examples.parts(size), examples.last]
            assert (np.concatenate(parts, axis=1) == whole).all()
    assert (Examples(40, length, seed=1).tokens(0, length) != whole).any()


def test_accuracy_is_the_share_of_right_answers() -> None:
    examples = Examples(8, 64)
    logits = np.eye(VOCABULARY)[examples.answers]
    assert examples.accuracy(logits) == 100
    logits[:2] = np.roll(logits[:2], 1, axis=1)
    assert examples.accuracy(logits) == 75


# Exported models


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of untrained models of the task's own shapes, by name."""
    torch.manual_seed(0)
    folders = {}
    for name, make in TASK.models.items():
        folders[name] = tmp_path_factory.mktemp("checkpoints") / name
        folders[name].mkdir()
        TASK.save(make(), folders[name])
    return folders


@pytest.fixture(scope="module")
def exported(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[Path, Exported]:
    """The same, exported, by the checkpoint's folder."""
    place = tmp_path_factory.mktemp("exported")
    return {
        folder: export_checkpoint(folder, place / name, "fp32")
        for name, folder in checkpoints.items()
    }


def test_the_exported_models_stream_what_pytorch_computes(
    checkpoints: dict[str, Path],
    exported: dict[Path, Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_induction, "export_checkpoint", lambda folder, *_: exported[folder])
    arguments = [f"--model={folder}" for folder in checkpoints.values()]
    record = tmp_path / "record.json"
    run_induction.run(
        [
            *arguments,
            "--lengths=64,700",
            "--part=128",
            "--tokens=12800",
            "--device=cpu",
            f"--record={record}",
        ]
    )
    read = read_record(record)
    assert [tuple(table.columns[:3]) for table in read.tables] == [
        ("tokens", "sequences", "accuracy, %")
    ] * 2
    models = (load_attention(checkpoints["attention"]), load(checkpoints["mamba"]).model)
    for table, model in zip(read.tables, models, strict=True):
        for length, count, percent, *_ in table.rows:
            expected = accuracy(model, torch.device("cpu"), Examples(count, length))
            assert percent == pytest.approx(expected, abs=0.01)
    growing, constant = ([row[5] for row in table.rows] for table in read.tables)
    assert constant[0] == constant[1]
    assert growing[1] == growing[0] * 700 / 64
    assert [claim.headline for claim in read.claims] == [False, True, False]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_reading_ends_with_its_time(
    checkpoints: dict[str, Path], exported: dict[Path, Exported]
) -> None:
    folder = exported[checkpoints["attention"]].folder
    session = mamba_export.OrtSession(folder, threads=1)
    found = list(read_lengths(session, (64, 128), tokens=64, part=16, scores=1 << 20, seconds=0))
    assert [(one.length, one.accuracy, one.stopped) for one in found] == [
        (64, None, "took more than 0 s")
    ]


def test_a_sequence_beyond_a_models_positions_is_refused_before_it_is_read(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(checkpoints["attention"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "longest": 512}))
    with pytest.raises(MambaExportError, match=r"has 1,024 tokens, .* positions end at 512"):
        run_induction.run([f"--model={folder}", "--lengths=64,1024", "--device=cpu"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "config.json",
            b'{"mixer": "attention", "d_model": 64}',
            "config.json: n_layer is missing",
        ),
        ("model.safetensors", b"\x08", "model.safetensors: "),
    ],
    ids=["config", "weights"],
)
def test_a_damaged_checkpoint_is_named(
    checkpoints: dict[str, Path], tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoints["attention"], folder)
    (folder / file).write_bytes(content)
    with pytest.raises(MambaExportError, match=message):
        load_attention(folder)


def test_a_training_starts_from_trained_weights(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = TASK.models["attention"]()
    train_task.start_from(model, TASK, checkpoints["attention"])
    trained = load_attention(checkpoints["attention"]).state_dict()
    assert all((one == trained[name]).all() for name, one in model.state_dict().items())
    with pytest.raises(MambaExportError, match="it is another model than --model says"):
        train_task.start_from(model, TASK, checkpoints["mamba"])
    with pytest.raises(MambaExportError, match="trainings of selective-copying start anew"):
        train_task.start_from(model, copying_models.TASK, checkpoints["mamba"])


@pytest.mark.parametrize("lengths", ["3", "64,x", "2000000"])
def test_lengths_outside_the_task_are_refused(lengths: str) -> None:
    with pytest.raises(MambaExportError, match=r"--lengths"):
        run_induction.run([f"--lengths={lengths}"])
