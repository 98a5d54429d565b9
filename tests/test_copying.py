"""Selective copying: the data, the models of table 1, the record."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mamba_export.errors import MambaExportError
from report.record import new_record, read_record, write_record
from tasks import copying
from tasks.copying_exported import Score, load_trained, score
from tasks.copying_models import PUBLISHED, SHIPPED, TASK
from tasks.copying_record import Backends, Found, completed


@pytest.mark.parametrize("length", [copying.SHORTEST, 64, 4096])
def test_the_data_tokens_are_to_be_given_in_their_order(length: int) -> None:
    tokens, data = copying.make_examples(50, length, torch.Generator().manual_seed(3))
    assert tokens.shape == (50, length)
    assert (tokens[:, -16:] == 15).all()
    for row, wanted in zip(tokens.tolist(), data.tolist(), strict=True):
        body = row[:-16]
        assert [token for token in body if token != 0] == wanted
        assert len(wanted) == 16
        assert all(1 <= token <= 14 for token in wanted)


def test_places_and_symbols_are_drawn_evenly() -> None:
    tokens, data = copying.make_examples(4000, 64, torch.Generator().manual_seed(4))
    share = (tokens[:, :48] != 0).double().mean(0)
    assert (share - 16 / 48).abs().max() < 0.04
    counts = torch.bincount(data.flatten(), minlength=16).double() / data.numel()
    assert (counts[1:15] - 1 / 14).abs().max() < 0.005
    assert counts[[0, 15]].sum() == 0


def test_sequences_grow_with_the_training() -> None:
    make = copying.batches(4096)
    generator = torch.Generator().manual_seed(0)
    shares = (0.0, 0.24, 0.25, 0.5, 0.75, 1.0)
    found = [make(1, generator, share)[0].shape[1] for share in shares]
    assert found == [64, 64, 256, 1024, 4096, 4096]


def test_held_out_examples_are_the_same_every_time() -> None:
    first, second = copying.held_out_examples(3, 64), copying.held_out_examples(3, 64)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    more = copying.held_out_examples(3, 64, seed=1)
    assert not torch.equal(first[0], more[0])


def test_accuracy_counts_the_markers_alone() -> None:
    data = torch.tensor([[1] * 16, [2] * 16])
    logits = torch.zeros(2, 20, 16)
    logits[0, -16:, 1] = 1  # all right
    logits[1, -4:, 2] = 1  # a quarter right
    logits[:, :4, 5] = 1
    assert copying.accuracy(logits, data) == 100 * 20 / 32


class Oracle:
    """A session that knows the answer by reading with its state, which it needs to be carried."""

    def run(self, tokens: np.ndarray, state: list[list[int]] | None = None):
        seen = [] if state is None else state
        seen = [
            [*(seen[i] if seen else []), *(t for t in row if 0 < t < 15)]
            for i, row in enumerate(tokens.tolist())
        ]
        logits = np.zeros((*tokens.shape, 16))
        for i, row in enumerate(seen):
            if len(row) == 16 and tokens.shape[1] >= 16:
                logits[i, np.arange(-16, 0), row] = 1
        return logits, seen


@pytest.mark.parametrize("part", [None, 7, 64, 90])
def test_a_session_is_scored_with_its_state_carried(part: int | None) -> None:
    assert score(Oracle(), 10, 90, part=part, batch=4) == Score(160, 160)


def test_the_models_of_table_1_are_of_about_one_size() -> None:
    assert set(TASK.models) == set(PUBLISHED)
    sizes = {
        name: sum(one.numel() for one in make().parameters()) for name, make in TASK.models.items()
    }
    assert max(sizes.values()) < 2.6 * min(sizes.values()), sizes


@torch.no_grad()
@pytest.mark.parametrize("name", ["h3-s4", SHIPPED])
def test_a_trained_folder_is_read_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TASK.models[name]().eval()
    TASK.save(model, tmp_path)
    tokens, _ = copying.held_out_examples(2, 48)
    found = load_trained(tmp_path, name)(tokens)[0]
    assert torch.equal(found, model(tokens)[0])


def test_a_folder_without_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MambaExportError, match="holds no trained h3-s4"):
        load_trained(tmp_path, "h3-s4")
    TASK.save(TASK.models["ungated-s4"](), tmp_path)
    with pytest.raises(MambaExportError, match="holds no trained h3-s4"):
        load_trained(tmp_path, "h3-s4")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MambaExportError, match="holds no trained ungated-s4"):
        load_trained(tmp_path, "ungated-s4")


def training_record(accuracy: float) -> dict[str, object]:
    log = [{"step": i, "progress": i / 300, "loss": 2.0 / i} for i in range(1, 301)]
    return {
        "figures": {copying.ACCURACY: accuracy},
        "recipe": {"lr": 2e-3},
        "steps": 300,
        "seconds": 60.0,
        "parameters": 67_520,
        "test_sequences": 1024,
        "device": "NVIDIA Test GPU",
        "log": log,
    }


def test_the_record_says_what_holds_and_what_does_not(tmp_path: Path) -> None:
    models = [
        Found(SHIPPED, training_record(99.9), {"recurrence": Score(1023, 1024)}),
        Found(
            "h3-s4", training_record(98.0), {"recurrence": Score(1, 4), "convolution": Score(1, 4)}
        ),
        Found("ungated-s4", training_record(20.0)),
        Found("ungated-s6", training_record(96.0)),
    ]
    same = Backends(4096, {"one": Score(5, 6), "other": Score(5, 6)}, {"third": "is not here"})
    differs = Backends(64, {"one": Score(5, 6), "other": Score(4, 6)}, {})
    record = new_record("copying", "Selective copying", "command", commit="0" * 40)
    path = write_record(tmp_path, completed(record, models, [same, differs], 4096))
    read = read_record(path)
    assert [claim.holds for claim in read.claims] == [True, False, False, True, True, False]
    table = read.tables[0]
    assert [row[0] for row in table.rows] == ["no gate", "no gate", "H3", "Mamba"]
    assert [row[3] for row in table.rows] == [18.3, 97.0, 57.0, 99.8]
    assert list(table.rows[2][5:7]) == [25.0, 25.0]
    assert "third: is not here" in read.tables[1].note
    assert read.notes[1].endswith(" Trained on: NVIDIA Test GPU.")
    assert len(json.dumps(read.plots[0].series[0].x)) < 2000
    alone = read_record(write_record(tmp_path / "alone", completed(record, [], [same], 4096)))
    assert [claim.holds for claim in alone.claims] == [True]
    assert [len(table.rows) for table in alone.tables] == [2]


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "run_copying.py"
    spec = importlib.util.spec_from_file_location("run_copying", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_short_run_trains_exports_and_records(tool: ModuleType, tmp_path: Path) -> None:
    place, trained = tmp_path / "record.json", tmp_path / "trained"
    arguments = ["--quick", "--models", "ungated-s6", "--trained", str(trained)]
    tool.run([*arguments, "--record", str(place), "--commit", "0" * 40, "--shipped", str(tmp_path)])
    record = read_record(place)
    assert record.quick
    assert str(tmp_path) not in place.read_text()
    [row] = record.tables[0].rows
    assert row[4] == row[5], "PyTorch's accuracy is that of the exported file"
    before = (trained / "ungated-s6" / "training.json").read_bytes()
    with pytest.raises(MambaExportError, match="--models mamba-s5"):
        tool.run(["--quick", "--models", "mamba-s5", "--record", str(place)])
    assert (trained / "ungated-s6" / "training.json").read_bytes() == before
    (trained / "ungated-s6").rename(trained / "h3-s6")
    with pytest.raises(MambaExportError, match="is not of selective-copying with h3-s6"):
        tool.run(["--models", "h3-s6", "--trained", str(trained), "--record", str(place)])
