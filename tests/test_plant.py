"""The simulated plant, the forecaster that watches it through an exported file, and its detector."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from trt_stand_in import on_engine

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.errors import MambaExportError, SessionError
from report.record import new_record, read_record, write_record
from tasks.detector import (
    MEMORY,
    STATISTICS,
    WARM_UP,
    Detection,
    Detector,
    detection,
    find_limits,
    scores,
)
from tasks.forecast_program import OUTPUTS, check_forecaster, open_step
from tasks.forecaster import (
    Forecaster,
    export_watched,
    load_forecaster,
    save_forecaster,
)
from tasks.plant import CHANNELS, FAULTS, NOISE, PHASES, Signal, saturation_pressure, simulate
from tasks.plant_csv import read_samples, write_samples
from tasks.plant_evaluation import Evaluation, Sizes, errors, evaluate, file_forecast, last_value
from tasks.sensors_record import LABELS, Engine, Found, Timing, Watched, completed
from tasks.sensors_runs import time_engines, time_steps
from tasks.watcher import Watcher, read_limits

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "plant.py"


@pytest.fixture
def forecaster() -> Forecaster:
    return load_forecaster(ROOT / "models" / "plant-forecast")


# The plant


@pytest.fixture(scope="module")
def sound() -> Signal:
    return simulate(8, 600, seed=3)


def test_a_seed_is_a_signal(sound: Signal) -> None:
    assert np.isfinite(sound.readings).all()
    assert not sound.faulty.any()
    assert (simulate(8, 100, seed=3).readings == sound.readings[:, :100]).all()
    assert (simulate(8, 100, seed=4).readings != sound.readings[:, :100]).all()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_nothing_before_it_begins(sound: Signal, fault: str) -> None:
    kind, signal = FAULTS[fault], simulate(8, 600, seed=3, fault=fault)
    changed = signal.readings != sound.readings
    for plant, faulty in enumerate(signal.faulty):
        begin, length = int(faulty.argmax()), int(faulty.sum())
        assert 150 <= begin < 450
        assert (
            kind.seconds[0] <= length <= kind.seconds[1] or faulty[-1]
        )  # the signal's end cuts it off
        assert not changed[plant, :begin].any()
    assert changed[signal.faulty].any()
    if kind.of_sensor:
        assert (changed.any(axis=1).sum(axis=1) == 1).all()
        assert (np.abs(signal.readings - sound.readings) > 3 * NOISE).any()
    if fault == "stuck":
        still = (np.diff(signal.readings, axis=1) == 0).any(axis=2)
        assert (still >= signal.faulty[:, 1:]).all()


def test_the_plant_keeps_the_set_points_and_its_physics() -> None:
    signal = simulate(32, 1200, seed=0)
    names = [phase.name for phase in PHASES]
    for name in ("heat", "dry"):
        there = signal.phase == names.index(name)
        warm = np.median(signal.readings[there][:, 0])
        assert warm == pytest.approx(PHASES[names.index(name)].temperature, abs=1.0)
    assert signal.readings[..., 2].min() > 0
    assert signal.readings[..., 2].max() < 105
    # A table's values of water's vapour pressure, Pa.
    assert saturation_pressure(np.array([20.0, 60.0])) == pytest.approx([2339, 19946], rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1, 600, 0, "fire"), "there is no fault fire: give one of spike"),
        ((1, 300, 0, "leak"), "with a fault 512 samples"),
        ((0, 5, 0), "0 plants of 5 samples"),
    ],
)
def test_what_cannot_be_simulated(arguments: tuple, words: str) -> None:
    with pytest.raises(MambaExportError, match=words):
        simulate(*arguments)


# The forecaster and its exported file


def test_streamed_samples_are_the_whole_in_any_split(
    forecaster: Forecaster, plant_folder: Path
) -> None:
    readings = simulate(3, 90, seed=5).readings
    with torch.no_grad():
        expected = forecaster.double()(torch.from_numpy(readings).double())
    session = OrtSession(plant_folder, threads=1)
    whole, last = session.run(readings)
    _, state = session.run(readings[:, :50])
    streamer = session.streamer(state)
    for index in range(50, 90):
        found = streamer.step(readings[:, index])
        for name, truth in zip(OUTPUTS, expected, strict=True):
            scale = truth.std(dim=(0, 1)).numpy()
            assert (np.abs(found[name] - truth[:, index].numpy()) < 1e-3 * scale).all()
            assert (np.abs(whole[name] - truth.numpy()) < 1e-3 * scale).all()
    for one, other in zip(streamer.state.numpy(), last.numpy(), strict=True):
        assert np.abs(one - other).max() <= 1e-4 * np.abs(other).max()
    assert session.streamer().state.batch == 1


@pytest.mark.skipif(
    not libraries.is_installed(TENSORRT_RTX), reason="tensorrt-rtx is not installed"
)
def test_engines_are_built_of_plugins_and_of_function_bodies(plant_folder: Path) -> None:
    engines, timings = time_engines(plant_folder, 10)
    assert [one.form for one in engines] == ["plugins", "function bodies"]
    assert len(timings) == sum(one.note == "built, and run" for one in engines)
    for one in engines:
        assert re.fullmatch("built, (and run|not run: .+)", one.note)
        assert one.megabytes is not None
        assert 0 < one.megabytes < 20


def test_steps_of_an_engine_are_timed(plant_folder: Path) -> None:
    timing = time_steps(on_engine(plant_folder), "a stand-in", "mamba", 5)
    assert timing.captured
    assert timing.early.shape == timing.late.shape == (4 * 5,)
    assert (timing.late > 0).all()


def test_what_a_streamer_refuses(plant_folder: Path) -> None:
    streamer = OrtSession(plant_folder, threads=1).streamer()
    for wrong in (np.zeros((1, 2)), np.zeros((2, 3)), np.zeros(3), [["a", "b", "c"]]):
        with pytest.raises(SessionError, match="readings"):
            streamer.step(wrong)


def test_a_checkpoint_is_read_as_it_was_written(forecaster: Forecaster, tmp_path: Path) -> None:
    save_forecaster(forecaster, tmp_path)
    loaded = load_forecaster(tmp_path)
    x = torch.from_numpy(simulate(1, 20, seed=1).readings)
    assert torch.equal(loaded(x)[0], forecaster(x)[0])
    save_file({"enter.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(MambaExportError, match="are not the forecaster's weights"):
        load_forecaster(tmp_path)
    (tmp_path / "config.json").write_text('{"model": "crystal ball"}')
    with pytest.raises(MambaExportError, match="crystal ball"):
        load_forecaster(tmp_path)


# The detector


def test_limits_that_cannot_be_written_leave_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(folder: Path, _: object) -> None:
        assert (folder / "model.onnx").is_file()
        raise MambaExportError("no space")

    monkeypatch.setattr("tasks.forecaster.write_limits", fail)
    with pytest.raises(MambaExportError, match="no space"):
        export_watched(ROOT / "models" / "plant-forecast", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_statistics_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    off = rng.standard_normal((2, 400, 3))
    watcher = Detector(None, np.ones(3))
    found = np.stack([watcher.statistics(off[:, i]) for i in range(400)], axis=1)
    weights = (1 - 1 / MEMORY) ** np.arange(400)[::-1] / MEMORY
    bounded = np.clip(off, -4, 4)
    mean = np.abs(np.einsum("l,plc->pc", weights, bounded))
    square = np.einsum("l,plc->pc", weights, bounded**2) + (1 - 1 / MEMORY) ** 400
    expected = np.stack([np.abs(off[:, -1]), mean, np.abs(np.log(square))], axis=1)
    np.testing.assert_allclose(found[:, -1], expected, rtol=1e-10)


def test_limits_let_the_share_through_and_faults_of_the_errors_are_found() -> None:
    rng = np.random.default_rng(1)
    limits = find_limits(rng.standard_normal((64, 3000, 3)))
    np.testing.assert_allclose(limits.scale, 1, rtol=0.01)
    assert limits.thresholds.shape == (len(STATISTICS), 3)
    sound = scores(rng.standard_normal((64, 3000, 3)), limits) > 1
    assert sound[:, :WARM_UP].sum() == 0
    assert 2e-5 < sound[:, WARM_UP:].mean() < 3e-4
    faulty = np.zeros((20, 600), bool)
    faulty[:, 400:500] = True
    for change in (lambda e: e + 2, lambda e: 3 * e, lambda e: 0.1 * e):
        off = rng.standard_normal((20, 600, 3))
        off[:, 400:500, 1] = change(off[:, 400:500, 1])
        result = detection(scores(off, limits) > 1, faulty)
        assert result.found == 1
        assert result.delay is not None
        assert 0 <= result.delay < 60
        assert result.by_chance < 0.2


def test_forecasts_are_evaluated() -> None:
    readings = simulate(2, 500, seed=4).readings
    limits = find_limits(errors(last_value, readings))
    result = evaluate(last_value, limits, Sizes((2, 500), (2, 600)))
    assert list(result.found) == list(FAULTS)
    assert result.found["steam"].found == 1
    off = np.diff(readings, axis=1)[:, WARM_UP:]
    np.testing.assert_allclose(result.error, np.sqrt((off**2).mean((0, 1))), rtol=1e-5)


# Watching


def test_a_watcher_reads_what_the_evaluation_does(plant_folder: Path) -> None:
    signal = simulate(1, 600, seed=9, fault="spike")
    session, limits = OrtSession(plant_folder, threads=1), read_limits(plant_folder)
    watcher = Watcher(open_step(session), limits)
    seen = [watcher.read(sample) for sample in signal.readings[0]]
    expected = scores(errors(file_forecast(session), signal.readings), limits)[0]
    np.testing.assert_allclose(
        [one.score.max() for one in seen[1:]], expected, rtol=1e-2, atol=1e-3
    )
    assert [one.index for one in seen if one.is_alarm] == [
        index for index in (np.flatnonzero(expected > 1) + 1).tolist()
    ]


def test_csv_is_read_as_it_was_written(tmp_path: Path) -> None:
    readings = simulate(1, 50, seed=1).readings[0]
    path = tmp_path / "plant.csv"
    write_samples(path, readings)
    found = np.stack(list(read_samples(path.read_text().splitlines(), "plant.csv")))
    np.testing.assert_allclose(found, readings, rtol=1e-5)


HEAD = ",".join(CHANNELS)
WRONG = {
    "a channel is missing": ("temperature_C,humidity_percent\n20,30\n", "has no column pressure_kPa"),
    "not a number": (f"{HEAD}\n20,101,30\n20,nan,30\n", "line 3: pressure_kPa is 'nan', expected a finite"),
    "a gap": (f"{HEAD}\n20,101,\n", "line 2: humidity_percent is '', expected a finite number"),
    "endless": (f"{HEAD}\ninf,101,30\n", "line 2: temperature_C is 'inf'"),
    "too large": (f"{HEAD}\n1e300,101,30\n", "line 2: temperature_C is '1e300'"),
    "a row cut short": (f"{HEAD}\n20,101\n", "line 2: has 2 values, the head 3 names"),
    "empty": ("", "has no column temperature_C"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_signal_that_cannot_be_read(name: str) -> None:
    text, words = WRONG[name]
    with pytest.raises(MambaExportError, match=words):
        list(read_samples(text.splitlines(), "x.csv"))


def test_a_reading_that_is_not_finite(plant_folder: Path) -> None:
    watcher = Watcher(open_step(OrtSession(plant_folder, threads=1)), read_limits(plant_folder))
    with pytest.raises(
        MambaExportError, match="sample 0: humidity_percent is nan, expected a finite"
    ):
        watcher.read(np.array([20, 101, np.nan]))
    with pytest.raises(MambaExportError, match=r"sample 0 has shape \(2,\)"):
        watcher.read(np.array([20, 101]))


def _run(*arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def test_the_command_watches_and_says_what_is_wrong_in_one_line(
    plant_folder: Path, tmp_path: Path
) -> None:
    done = _run("watch", plant_folder, "--json", "--samples", 600, "--fault", "stuck")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["samples"] == 600
    assert found["fault"] == "stuck"
    assert 0 < found["microseconds"]["median"] <= found["microseconds"]["p99"]
    done = _run("watch", plant_folder, "-", given=f"{HEAD}\n20,101,30\n20,,30\n")
    assert done.returncode == 2
    assert done.stderr == (
        "error: standard input, line 3: pressure_kPa is '', expected a finite number: leave samples out in "
        "which a sensor is missing\n"
    )


def test_folders_that_cannot_watch(plant_folder: Path, tmp_path: Path) -> None:
    metadata = OrtSession(plant_folder, threads=1).metadata
    [x] = metadata.inputs
    for changes in (
        {"inputs": (dataclasses.replace(x, name="x"),)},
        {"inputs": (dataclasses.replace(x, shape=("batch", "length", 4)),)},
        {"outputs": metadata.outputs[:1]},
    ):
        with pytest.raises(MambaExportError, match="is no forecaster of a plant: it holds"):
            check_forecaster(dataclasses.replace(metadata, **changes))
    with pytest.raises(MambaExportError, match=r"detector.json: no such file"):
        read_limits(tmp_path)
    limits = json.loads((plant_folder / "detector.json").read_text())
    limits["thresholds"]["lasting"][1] = -1
    (tmp_path / "detector.json").write_text(json.dumps(limits))
    with pytest.raises(
        MambaExportError, match=r"detector.json: .*lasting.* is .*, expected a list of 3"
    ):
        read_limits(tmp_path)


def test_the_record_holds_everything_that_was_found(tmp_path: Path) -> None:
    record = new_record("sensors", "Streaming sensors", "python t.py", commit="abc")
    one = {name: Detection(0.5, None if name == "spike" else 3.0, 0.1) for name in FAULTS}
    better = {name: Detection(0.75, 1.0, 0.1) for name in FAULTS}
    found = Found(
        {
            "mamba": Evaluation([0.1, 0.2, 0.3], 100.0, better),
            "lti": Evaluation([0.2, 0.1, 0.3], 90.0, one),
            "naive": Evaluation([1, 1, 1], 80.0, one),
        },
        {"mamba": 10, "lti": 10},
        [Timing("ONNX Runtime CPU, native", LABELS["mamba"], np.full(9, 20.0), np.full(9, 21.0), 1000)],
        [Engine("plugins", "TensorRT-RTX 1.7", 0.5, "built, not run")],
        Watched("leak", CHANNELS[1], [1, 2], [100, 101], [100, 100.5], {"mamba": [0.1, 2.0]}),
    )  # fmt: skip
    done = read_record(write_record(tmp_path, completed(record, found, Sizes())))
    assert [claim.holds for claim in done.claims] == [True, True, False, True]
    assert done.claims[0].ours.startswith("Mamba 75.0 %, LTI")
    assert "20.0 us, then 21.0 us" in done.claims[3].ours
    forecasts, faults, steps, engines = done.tables
    assert list(forecasts.rows[0])[:3] == ["Mamba", 10, 0.1]
    assert list(faults.rows[0]) == [
        "spike",
        FAULTS["spike"].about,
        75.0,
        1.0,
        10.0,
        *[50.0, None, 10.0] * 2,
    ]
    assert list(steps.rows[0])[2:6] == [20.0, 20.0, 21.0, 1000]
    assert engines.rows[0][2] == 0.5
    assert [len(plot.series) for plot in done.plots] == [2, 2]
