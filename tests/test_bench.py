"""Benchmarks: small runs of everything, with the GPU taken out. No time gates anything."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_rows import PREFILL

from bench import (
    cases,
    ceilings,
    gpu,
    gpu_dual,
    gpu_models,
    gpu_operators,
    measure,
    models,
    operators,
    peer_rows,
    peers,
    vision_models,
)  # fmt: skip
from bench.cases import Cases
from bench.limits import Ceilings
from bench.peers import dual as peer_dual
from bench.peers import operators as peer_operators
from bench.rows import OURS
from bench.tables import grids
from bench.timing import median_milliseconds, milliseconds_a_step
from mamba_export.contract.weights import Weights
from mamba_export.errors import MambaExportError
from mamba_export.models import MambaConfig

ROOT = Path(__file__).parent.parent


# Runs on the CPU


def test_operators_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "SHAPES", ((1, 32, 8, 16, 1), (1, 16, 9, 1, 4)))
    monkeypatch.setattr(operators, "DUAL_SHAPES", ((1, 2, 8),))
    monkeypatch.setattr(operators, "median_milliseconds", lambda call: (call(), 1.0)[1])
    names = [row.implementation for row in operators.operator_rows()]
    assert names[0] == "PyTorch, vectorised"
    assert "ONNX Runtime, function body" in names


def test_vision_models_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them, small; every form computes the same."""
    vmamba = next(iter(vision_models.styled_models().values()))
    small = functools.partial(type(vmamba()), width=8)
    scan = type(vmamba().blocks[0]["op"])
    monkeypatch.setattr(vision_models, "IMAGE", 16)
    monkeypatch.setattr(vision_models, "styled_models", lambda: {"small": lambda: small(scan)})
    results: list[Any] = []

    def once(call: Any, **_: Any) -> float:
        results.append(call())
        return 1.0

    monkeypatch.setattr(vision_models, "median_milliseconds", once)
    names = [row.implementation for row in vision_models.vision_model_rows(lambda _: None)]
    assert names[:2] == ["PyTorch, reference scan", "ONNX Runtime, function bodies"]
    for found, _ in results[1:]:
        np.testing.assert_allclose(found, results[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kinds", [("prefill",), ("decode",)])
def test_models_run(
    monkeypatch: pytest.MonkeyPatch, tiny_config: MambaConfig, kinds: tuple[str, ...]
) -> None:
    monkeypatch.setattr(MambaConfig, "published", lambda size: tiny_config)
    monkeypatch.setattr(models, "median_milliseconds", lambda call: (call(), 1.0)[1])
    monkeypatch.setattr(peers, "transformers_absent", lambda: "not installed (made up)")
    rows = list(models.model_rows("130m", 8, lambda _: None, kinds))
    assert {row.what.split(",")[1] for row in rows} == {
        " prefill of 8 tokens" if kinds == ("prefill",) else " a decoded token"
    }
    assert rows[-1].note == "not installed (made up)"


def test_median_repeats() -> None:
    calls: list[int] = []
    assert median_milliseconds(lambda: calls.append(1), seconds=0.0) >= 0
    assert len(calls) == 4, "one to warm up, three timed"
    median_milliseconds(lambda: calls.append(1), seconds=0.0, min_runs=1)
    assert len(calls) == 6


# The GPU's part, without one


@pytest.mark.parametrize("form", [{}, {"n_groups": 2, "gated": False}], ids=["text", "vision"])
def test_peers_get_the_same_numbers(form: dict[str, Any]) -> None:
    """Our operator on its inputs equals the recurrence over the arguments that mamba_ssm gets."""
    [inputs] = gpu_operators.scan_inputs(1, 2, 6, 5, 3, "fp32", "cpu", **form)
    inputs["initial_state"].zero_()
    y, last = torch.ops.mamba_export.selective_scan(**inputs)
    theirs = peer_operators.scan_arguments(**inputs)
    delta = torch.nn.functional.softplus(theirs["delta"] + theirs["delta_bias"][:, None])
    state, ys = torch.zeros(2, 6, 3), []
    times = 6 // theirs["B"].shape[1]
    B, C = (theirs[name].repeat_interleave(times, dim=1) for name in ("B", "C"))
    for t in range(5):
        dt, u = delta[..., t, None], theirs["u"][..., t, None]
        state = torch.exp(dt * theirs["A"]) * state + dt * u * B[..., t]
        ys.append((state * C[..., t]).sum(-1))
    out = torch.stack(ys, -1) + theirs["D"][:, None] * theirs["u"]
    if theirs["z"] is not None:
        out *= torch.nn.functional.silu(theirs["z"])
    torch.testing.assert_close(y.transpose(1, 2), out)
    torch.testing.assert_close(last, state)


def test_peers_of_the_dual_get_the_same_numbers() -> None:
    [inputs] = gpu_dual.dual_inputs(1, 2, 3, 5, "fp32", device="cpu")
    y, last = torch.ops.mamba_export.state_space_dual(**inputs)
    theirs = peer_dual.sequence_arguments(**inputs)
    dt = torch.nn.functional.softplus(theirs["dt"] + theirs["dt_bias"])
    state, ys = torch.zeros_like(last), []
    for t in range(5):
        added = (dt[:, t, :, None] * theirs["x"][:, t])[..., None] * theirs["B"][:, t, :, None]
        state = torch.exp(dt[:, t] * theirs["A"])[..., None, None] * state + added
        ys.append((state * theirs["C"][:, t, :, None]).sum(-1))
    out = torch.stack(ys, 1) + theirs["D"][:, None] * theirs["x"]
    torch.testing.assert_close(y, out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, state, rtol=1e-4, atol=1e-4)


def test_dual_step_arguments_are_the_first_step() -> None:
    [inputs] = gpu_dual.dual_inputs(1, 2, 3, 1, "bf16", torch.bfloat16, "cpu")
    theirs = peer_dual.step_arguments(**inputs)
    assert theirs["x"].shape == (2, 3, 64)
    assert theirs["state"].dtype == torch.bfloat16
    assert theirs["state"].data_ptr() == inputs["initial_state"].data_ptr()
    assert theirs["A"].stride() == (1, 0, 0), "by which mamba_ssm knows Mamba-2's form"


def test_step_arguments_are_the_first_step() -> None:
    [inputs] = gpu_operators.scan_inputs(1, 2, 6, 1, 3, "fp32", "cpu")
    theirs = peer_operators.step_arguments(**inputs)
    assert theirs["x"].shape == (2, 6)
    assert theirs["B"].shape == (2, 3)
    assert theirs["state"].data_ptr() == inputs["initial_state"].data_ptr()


def test_absent_mamba_ssm_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tiny_config: MambaConfig
) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    peers.mamba_ssm_absent.cache_clear()
    try:
        one = Cases(sizes=("130m",), lengths=(8,), batches=(1, 8))
        rows = list(peer_rows.mamba_ssm_rows(tiny_config, "130m", one, lambda _: None))
    finally:
        peers.mamba_ssm_absent.cache_clear()
    assert [row.kind for row in rows] == ["prefill", "decode", "decode"]
    assert all(row.milliseconds is None and "not installed" in row.note for row in rows)


class TheirModel:
    """What ``MambaSsmModel`` offers, without it."""

    def __init__(self, config: MambaConfig, dtype: str) -> None:
        pass

    def prefill(self, tokens: np.ndarray) -> torch.Tensor:
        return torch.ones(len(tokens), 3)

    def captured_prefill(self, tokens: np.ndarray) -> Callable[[], torch.Tensor]:
        if tokens.shape[1] == 16:
            return lambda: -self.prefill(tokens)
        return lambda: self.prefill(tokens)

    def decode_milliseconds(self, batch: int, steps: int) -> float:
        return 2.0

    def graph_milliseconds(self, batch: int, steps: int) -> float:
        return 1.0


def test_mamba_ssm_is_timed_in_each_of_its_forms(
    monkeypatch: pytest.MonkeyPatch, tiny_config: MambaConfig
) -> None:
    monkeypatch.setattr(peers, "mamba_ssm_absent", lambda: "")
    monkeypatch.setattr(peer_rows, "MambaSsmModel", TheirModel)
    some = Cases(lengths=(8, 16), batches=(1,))
    rows = list(peer_rows.mamba_ssm_rows(tiny_config, "130m", some, lambda _: None))
    assert [(row.kind, row.implementation) for row in rows] == [
        ("decode", "mamba_ssm"), ("decode", "mamba_ssm, step alone"),
        ("prefill", "mamba_ssm, CUDA graph"), ("prefill", "mamba_ssm"),
        ("prefill", "mamba_ssm, CUDA graph"), ("prefill", "mamba_ssm"),
    ]  # fmt: skip
    assert [row.milliseconds is None for row in rows] == [False, False, False, False, True, False]
    assert rows[4].note == "ValueError: the captured logits differ by 2.0e+00"


def test_a_step_s_time_does_not_shrink_where_the_host_was_busy_in_short_runs() -> None:
    disturbed = iter([0.0, 0.030, 0.004, 0.030, 0.0, 0.030, 0.002, 0.0, 0.0, 0.025])

    def seconds(steps: int) -> float:
        return 0.016 + 0.0007 * steps + next(disturbed)

    assert milliseconds_a_step(seconds, 64) == pytest.approx(0.7)


def test_prefill_and_decode_have_batches_of_their_own() -> None:
    some = Cases(lengths=(8, 16), batches=(1, 64), prefill_batches=(2,))
    assert [(s["batch"], s["length"]) for s in some.prefill_sizes("130m")] == [(2, 8), (2, 16)]
    assert [s["batch"] for s in some.decode_sizes("130m")] == [1, 64]


def test_failing_measurement_is_a_note() -> None:
    def fails() -> float:
        raise RuntimeError("CUDA out of memory.\nmore lines")

    row = measure.try_row("prefill", PREFILL, OURS, fails)
    assert (row.milliseconds, row.note) == (None, "RuntimeError: CUDA out of memory.")


def test_model_cases_run_on_the_cpu_too(
    monkeypatch: pytest.MonkeyPatch, tiny_config: MambaConfig, tmp_path: Path
) -> None:
    """The very code that times a GPU, on the CPU's provider: a session does not care."""
    monkeypatch.setattr(MambaConfig, "published", lambda size: tiny_config)
    monkeypatch.setattr(gpu_models, "_PROVIDERS", ["CPUExecutionProvider"])
    monkeypatch.setattr(gpu, "used_bytes", lambda: 5_000_000_000)
    monkeypatch.setattr(gpu_models, "_LONG", (10, 30))
    monkeypatch.setattr(gpu_models, "_CHUNK", 8)
    some = Cases(
        sizes=("130m",), lengths=(8, 16), batches=(1, 2), dtype="fp32", graphs=tmp_path,
        prefill_batches=(1, 2), mamba_ssm=False,
    )  # fmt: skip
    cases.prepare_graphs(tmp_path, some, lambda _: None)
    rates = Ceilings(1e12, 1e12, {"fp32": 1e13})
    rows = list(gpu_models.model_rows(rates, some, lambda _: None))
    rows += gpu_models.long_rows(rates, some, lambda _: None)
    assert all(row.milliseconds for row in rows), [row.note for row in rows]
    prefill, decode, long = grids(rows)
    assert len(prefill.lines) == 4
    assert len(decode.lines) == 2
    assert [line[3] for line in long.lines] == ["10", "30"]
    assert "5.00 GB in use" in long.lines[0][4]


def test_a_prepared_graph_of_other_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_config: MambaConfig, tmp_path: Path
) -> None:
    """It would be timed under a name that is not its own."""
    monkeypatch.setattr(MambaConfig, "published", lambda size: tiny_config)
    made = Cases(sizes=("130m",), dtype="fp32", graphs=tmp_path / "graphs")
    cases.prepare_graphs(tmp_path / "graphs", made, lambda _: None)
    for asked, told in (
        (replace(made, weights=Weights("int4")), "dtype fp32, weights int4 in blocks of 32"),
        (replace(made, dtype="fp16"), "dtype fp16"),
        (replace(made, state="fp16"), "dtype fp32, state fp16"),
    ):
        with pytest.raises(MambaExportError, match=f"model 130m, dtype fp32, not of .*{told}"):
            cases.whole_folder(tiny_config, "130m", asked, tmp_path, lambda _: None)
    cases.whole_folder(tiny_config, "130m", replace(made, state="fp32"), tmp_path, lambda _: None)


@pytest.mark.gpu
def test_kernel_time_is_that_of_a_copy() -> None:
    rates = ceilings.measure_ceilings(dtypes=("fp16",))
    assert 1e11 < rates.bandwidth < 2e13
    assert 1e12 < rates.product_rate["fp16"] < 1e16
    assert 1e-4 < gpu.launch_milliseconds() < 0.1


@pytest.mark.gpu
def test_operators_are_timed_on_a_gpu() -> None:
    rates = Ceilings(3e12, 4e12, {"fp16": 7e14})
    rows = list(gpu_operators.operator_rows(rates, ["bf16"], [(1, 1536, 512)]))
    ours = [row for row in rows if row.implementation == OURS]
    assert all(row.milliseconds for row in ours), [row.note for row in ours]
