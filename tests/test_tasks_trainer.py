"""The trainer of small tasks: it learns, resumes from its checkpoint, and refuses in one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from mamba_export.errors import MambaExportError
from tasks.recipe import TaskRecipe
from tasks.task import Batch
from tasks.trainer import seeded, tempered, train
from training.stepper import parameter_groups

CPU = torch.device("cpu")
RECIPE = TaskRecipe(steps=60, batch=32, lr=0.2, warmup=5)
TARGET = torch.tensor([[1.0, -2.0, 0.5]])


def make_batch(batch: int, generator: torch.Generator, progress: float) -> Batch:
    """A regression whose sequences grow, so that there are two shapes."""
    length = 2 if progress < 0.5 else 4
    x = torch.randn(batch, length, 3, generator=generator, device=generator.device)
    return x, (x * TARGET.to(x.device)).sum(-1)


def squared(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return (model(x)[..., 0] - y).square().mean()


def linear() -> nn.Module:
    return nn.Linear(3, 1)


def test_it_learns_with_the_schedule_of_the_recipe() -> None:
    losses: list[float] = []
    trained = train(
        seeded(linear, 0),
        make_batch,
        squared,
        RECIPE,
        CPU,
        report=lambda e: losses.append(e["loss"]),
    )
    assert trained.steps == RECIPE.steps
    assert not trained.model.training
    assert losses[-1] < 1e-2 * losses[0]
    assert [entry["loss"] for entry in trained.log] == losses
    assert trained.log[-1]["progress"] == 1.0


def test_a_time_limit_ends_a_training() -> None:
    recipe = dataclasses.replace(RECIPE, steps=10**9, max_minutes=0.2 / 60)
    trained = train(seeded(linear, 0), make_batch, squared, recipe, CPU)
    assert 0 < trained.steps < 10**6
    assert trained.seconds < 5


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def test_a_stopped_training_goes_on_where_it_was(tmp_path: Path, monkeypatch) -> None:
    whole = train(seeded(linear, 0), make_batch, squared, RECIPE, CPU)
    monkeypatch.setattr("tasks.trainer._CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "state.pt"

    def stop(entry: dict[str, float]) -> None:
        if entry["step"] == 31:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(
            seeded(linear, 0), make_batch, squared, RECIPE, CPU, report=stop, checkpoint=checkpoint
        )
    other = seeded(linear, 7)  # its weights come from the checkpoint
    resumed = train(other, make_batch, squared, RECIPE, CPU, checkpoint=checkpoint)
    assert resumed.steps == whole.steps
    assert [e["loss"] for e in resumed.log] == [e["loss"] for e in whole.log]
    for found, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_checkpoint_is_one_clear_line(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "state.pt"
    train(seeded(linear, 0), make_batch, squared, RECIPE, CPU, checkpoint=path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(MambaExportError, match="truncated or damaged") as error:
        train(seeded(linear, 0), make_batch, squared, RECIPE, CPU, checkpoint=path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_with_one_wrong_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    train(seeded(linear, 0), make_batch, squared, RECIPE, CPU, checkpoint=path)
    data = bytearray(path.read_bytes())
    weights = dict(torch.load(path, weights_only=True))["model"]
    data[data.index(next(iter(weights.values())).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(MambaExportError, match="truncated or damaged"):
        train(seeded(linear, 0), make_batch, squared, RECIPE, CPU, checkpoint=path)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    train(seeded(linear, 0), make_batch, squared, RECIPE, CPU, checkpoint=path)
    other = dataclasses.replace(RECIPE, lr=1e-3)
    with pytest.raises(MambaExportError, match="another lr"):
        train(seeded(linear, 0), make_batch, squared, other, CPU, checkpoint=path)
    with pytest.raises(MambaExportError, match="another model"):
        train(nn.Linear(3, 2), make_batch, squared, RECIPE, CPU, checkpoint=path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(MambaExportError, match="not a checkpoint of a training"):
        train(seeded(linear, 0), make_batch, squared, RECIPE, CPU, checkpoint=path)
    path.unlink()
    path.mkdir()
    with pytest.raises(MambaExportError, match="is a folder"):
        train(seeded(linear, 0), make_batch, squared, RECIPE, CPU, checkpoint=path)


def test_a_longer_training_may_go_on_from_a_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    train(seeded(linear, 0), make_batch, squared, RECIPE, CPU, checkpoint=path)
    longer = dataclasses.replace(RECIPE, steps=70)
    assert train(linear(), make_batch, squared, longer, CPU, checkpoint=path).steps == 70


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(MambaExportError, match="--lr"):
        train(
            seeded(linear, 0),
            make_batch,
            lambda model, batch: squared(model, batch) * torch.nan,
            RECIPE,
            CPU,
        )


def test_a_temperature_keeps_the_loss_alive_where_answers_are_right_by_far() -> None:
    def of_logits(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(*batch)[0], torch.tensor([0]))

    class Sure(nn.Module):
        def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            return logits, []

    logits = torch.tensor([[200.0, 0.0]])
    assert of_logits(Sure(), (logits,)) == 0
    assert tempered(of_logits, 1.0) is of_logits
    expected = nn.functional.cross_entropy(logits / 100, torch.tensor([0]))
    assert tempered(of_logits, 100.0)(Sure(), (logits,)) == expected


def test_decay_is_of_matrices_alone() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.LayerNorm(3))
    decayed, rest = parameter_groups(model, 0.5)
    assert [one.shape for one in decayed["params"]] == [(3, 3)]
    assert decayed["weight_decay"] == 0.5
    assert len(rest["params"]) == 4
    assert rest["weight_decay"] == 0.0


@pytest.mark.gpu
def test_a_captured_training_is_the_eager_one() -> None:
    device = torch.device("cuda")
    models = [
        train(
            seeded(linear, 0),
            make_batch,
            squared,
            dataclasses.replace(RECIPE, cuda_graph=captured, tf32=False),
            device,
        ).model
        for captured in (False, True)
    ]
    for found, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "train_task.py"
    spec = importlib.util.spec_from_file_location("train_task", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOY = ["selective-copying", "--length", "48", "--steps", "3", "--batch", "2", "--test", "4"]


def test_the_command_writes_model_record_and_card(tool: ModuleType, tmp_path: Path, capsys) -> None:
    out, checkpoint = tmp_path / "toy", tmp_path / "toy.pt"
    tool.run([*TOY, "--device", "cpu", "--out", str(out), "--checkpoint", str(checkpoint)])
    record = json.loads((out / "training.json").read_text())
    assert record["model"] == "mamba-s6"
    assert record["steps"] == 3
    assert record["recipe"]["batch"] == 2
    assert [entry["step"] for entry in record["log"]] == [1, 2, 3]
    assert str(tmp_path) not in record["command"]
    card = (out / "README.md").read_text()
    assert record["command"] in card
    assert "accuracy" in capsys.readouterr().out
    assert checkpoint.is_file()


def test_the_command_refuses_with_one_line(
    tool: ModuleType, tmp_path: Path, monkeypatch, capsys
) -> None:
    out, cut = tmp_path / "out", tmp_path / "cut.pt"
    cut.write_bytes(b"PK\x03\x04 and no more")
    cases = [
        (["copying"], "copying"),
        ([*TOY, "--model", "mamba-s5"], "--model mamba-s5: selective-copying has ungated-s4"),
        ([*TOY, "--length", "20"], "--length 20: selective-copying takes 48 to 4096"),
        ([*TOY, "--length", "5000"], "--length 5000"),
        ([*TOY, "--steps", "none"], "--steps"),
        ([*TOY, "--cuda-graph", "--device", "cpu"], "--cuda-graph"),
        ([*TOY, "--device", "quantum"], "--device quantum"),
        ([*TOY, "--checkpoint", str(cut), "--device", "cpu"], "cut.pt: it is truncated"),
    ]
    for arguments, message in cases:
        monkeypatch.setattr("sys.argv", ["train_task.py", *arguments, "--out", str(out)])
        with pytest.raises(SystemExit) as exit_:
            tool.main()
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()
