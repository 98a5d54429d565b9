"""tools/benchmark.py as one calls it, with the GPU taken out."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import ceilings, gpu, gpu_dual, gpu_models, gpu_operators, operators, peers
from bench.limits import Ceilings
from bench.record import read_record
from bench.rows import LIMIT, OURS
from mamba_export.cli import run_app
from mamba_export.models import MambaConfig

ROOT = Path(__file__).parent.parent


def _run(*arguments: str) -> int:
    """Run tools/benchmark.py in this process; its exit code."""
    path = ROOT / "tools" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as ended:
        run_app(module.app, list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "9b"], "--size '9b' is unknown: use 130m"),
        (["--device", "tpu"], "--device 'tpu' is unknown: use cpu, cuda"),
        (["--what", "training"], "--what 'training' is unknown"),
        (["--length", "-3"], "expected whole numbers from 1"),
        (["--length", "²"], "expected whole numbers from 1"),
        (["--length", "9" * 5000], "expected whole numbers from 1"),
        (["--length", str(2**31)], "to 2147483647"),
        (["--device", "cuda", "--batch", "1.5"], "--batch '1.5': expected whole numbers"),
        (["--length", ","], "--length ',': expected whole numbers"),
        (["--size", ""], "--size '': name at least one"),
        (["--device", "cuda", "--budget", "nan"], "--budget nan: expected seconds above 0"),
        (["--budget", "-1"], "--budget -1.0: expected seconds above 0"),
        (["--budget", "soon"], "--budget"),
        (["--dtype", "fp8"], "--dtype 'fp8' is unknown"),
        (["--device", "[/red]\x1b[2J"], "--device '[/red]"),
        (["--what", "", "--record", "/nowhere/r.json"], "/nowhere/r.json: cannot be written"),
        (["--what", "", "--record", "/dev/null/r.json"], "/dev/null/r.json: cannot be written"),
        (["--what", "", "--record", "r" * 300], "File name too long"),
        (["--long"], "need --device cuda"),
        (["--state-dtype", "fp16"], "--state-dtype needs --device cuda"),
        (
            ["--device", "cuda", "--size", "130m", "--state-dtype", "fp16"],
            "of 130m in fp16 are fp32",
        ),
        (
            ["--device", "cuda", "--size", "mamba2-130m", "--state-dtype", "bf16"],
            "are fp32 or fp16",
        ),
        (["--plots"], "add --record"),
        (["--device", "cuda", "--shape", "1x2x3"], "--shape '1x2x3' is unknown"),
    ],
)
def test_bad_options(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(*arguments) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--device", "cuda") == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_cpu_run_writes_a_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operators, "SHAPES", ((1, 32, 8, 16, 1),))
    monkeypatch.setattr(operators, "DUAL_SHAPES", ((1, 2, 8),))
    monkeypatch.setattr(operators, "median_milliseconds", lambda call: (call(), 1.0)[1])
    file = tmp_path / "r.json"
    assert _run("--what", "operator", "--record", str(file), "--note", "a note") == 0
    record = read_record(file)
    assert len(record["commit"].split()[0]) == 40
    assert record["note"] == "a note"
    assert len(record["rows"]) >= 2
    assert "PyTorch, vectorised" in capsys.readouterr().out


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tiny_config: MambaConfig) -> Ceilings:
    """All of a GPU's run but the GPU: tensors on the CPU, every kernel time 1 ms, no peers."""

    def one_millisecond(launch: Callable[[int], object], sets: int = 1) -> float:
        for index in range(sets):
            launch(index)
        return 1.0

    rates = Ceilings(1e12, 1e12, dict.fromkeys(("fp32", "fp16", "bf16"), 1e13))
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda progress: rates)
    for name, value in {
        "require_gpu": lambda: None,
        "gpu_name": lambda: "No GPU",
        "launch_milliseconds": lambda: 0.001,
        "kernel_milliseconds": one_millisecond,
        "sets_to_rotate": lambda size: 2,
        "used_bytes": lambda: 1,
    }.items():
        monkeypatch.setattr(gpu, name, value)
    for name in ("scan_inputs", "conv_inputs"):
        on_cpu = functools.partial(getattr(gpu_operators, name), device="cpu")
        monkeypatch.setattr(gpu_operators, name, on_cpu)
    dual_on_cpu = functools.partial(gpu_dual.dual_inputs, device="cpu")
    monkeypatch.setattr(gpu_dual, "dual_inputs", dual_on_cpu)
    monkeypatch.setattr(gpu_dual, "SHAPES", ((1, 2, 8),))
    monkeypatch.setattr(gpu_dual, "STEP_SHAPES", ((2, 2),))
    monkeypatch.setattr(gpu_operators, "STEP_SHAPES", ((2, 32),))
    monkeypatch.setattr(gpu_operators, "SHAPES", ((1, 32, 8),))
    monkeypatch.setattr(gpu_operators, "WIDE_SHAPES", ((1, 32, 8),))
    monkeypatch.setattr(gpu_operators, "VISION_SHAPES", ((2, 16, 9),))
    monkeypatch.setattr(gpu_models, "_PROVIDERS", ["CPUExecutionProvider"])
    monkeypatch.setattr(gpu_models, "_LONG", (10, 30))
    monkeypatch.setattr(MambaConfig, "published", lambda size: tiny_config)
    for name in ("mamba_ssm_absent", "causal_conv1d_absent", "transformers_absent"):
        monkeypatch.setattr(peers, name, lambda: "not installed (made up)")
    return rates


_SMALL = (
    "--device", "cuda", "--size", "130m", "--length", "8", "--batch", "1,2", "--dtype", "fp32",
)  # fmt: skip


@pytest.mark.usefixtures("no_gpu")
def test_gpu_run_from_end_to_end_with_the_gpu_taken_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    more = ("--long", "--operator-dtypes", "bf16,fp32", "--plots", "--commit", "abc (a copy)")
    assert _run(*_SMALL, *more, "--record", str(tmp_path)) == 0
    [file] = tmp_path.glob("*-no-gpu.json")
    record = read_record(file)
    kinds = dict.fromkeys(row["kind"] for row in record["rows"])
    order = [
        "scan",
        "step",
        "convolution",
        "dual",
        "dual step",
        "vision",
        "long",
        "prefill",
        "decode",
    ]
    assert list(kinds) == order
    assert record["ceilings"]["launch_milliseconds"] == 0.001
    assert "CUDA graph" in record["method"]
    assert record["commit"] == "abc (a copy)"
    assert {"date", "device", "driver", "versions", "command"} <= set(record)
    timed = [row for row in record["rows"] if row["milliseconds"] is not None]
    assert {row["implementation"] for row in timed} >= {OURS, LIMIT}
    assert len(list(tmp_path.glob("*.png"))) >= 3


def test_run_that_beats_its_limit_is_refused(
    no_gpu: Ceilings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = dataclasses.replace(no_gpu, bandwidth=1.0)
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda progress: slow)
    file = tmp_path / "r.json"
    assert _run(*_SMALL, "--what", "operator", "--commit", "abc", "--record", str(file)) == 1
    said = capsys.readouterr().err
    assert (
        "scan: dtype bf16, batch 1, d_inner 32, length 8, d_state 16: mamba_export takes 1 ms"
        in said
    )
    assert "less than the limit of" in said
    assert not file.exists()
    assert read_record(tmp_path / "r.refused.json")["rows"], "kept, under a name that says so"


def test_budget_ends_a_run_and_a_later_one_goes_on(
    no_gpu: Ceilings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    shared = (*_SMALL, "--what", "operator", "--commit", "abc", "--record", str(file))
    assert _run(*shared, "--budget", "0.000001") == 0
    first = read_record(file)
    assert len(first["rows"]) == 1
    other = dataclasses.replace(no_gpu, bandwidth=2e12)
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda progress: other)
    assert _run(*shared) == 0
    whole = read_record(file)
    assert len(whole["rows"]) > 5
    assert whole["ceilings"] == first["ceilings"], "one record, one set of limits"
