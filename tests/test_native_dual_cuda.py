"""The CUDA kernels of state space duality and the gated RMSNorm under PyTorch: parity, bits, graphs, memory.

MAMBA_EXPORT_KERNELS=build/libmamba_export_kernels.so pytest -m gpu tests/test_native_dual_cuda.py
"""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from cases import FP32_BOUND, ROUNDING_FLOOR, error
from test_native_dual import (
    DT,
    DUAL,
    LOG_DECAY,
    NORM,
    SEQUENCES,
    STATE,
    B,
    C,
    X,
    Z,
    as_scan,
    cut,
    in_place,
)
from test_native_rows import arguments, reference, run
from torch import Tensor
from truths import last_state_truth, poisoned

from mamba_export import contract
from mamba_export.contract.operators import GATED_RMS_NORM, STATE_SPACE_DUAL
from mamba_export.operators import native
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.verify.bounds import allowed_of
from mamba_export.verify.cases import Case, definition_of, grid

GPU = torch.device("cuda", 0)
WHY_NOT = native.why_not_on(GPU) if torch.cuda.is_available() else ""
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
DTYPES = pytest.mark.parametrize("dtype", contract.DTYPES)
FORMS = [form.name for op in (STATE_SPACE_DUAL, GATED_RMS_NORM) for form in op.forms()]
USUAL = {"head_dim": 64, "d_state": 128}
"""The shape of published models."""


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing falls back to another implementation unseen."""
    monkeypatch.setenv(BACKEND_VARIABLE, "native")


def on_gpu(values: list[Any]) -> list[Any]:
    return [value.cuda() if isinstance(value, Tensor) else value for value in values]


def drawn(case: Case, dtype: str, seed: int = 0) -> list[Any]:
    return on_gpu(arguments(case, dtype, seed))


def values_of(dtype: str, *, seed: int = 0, low_state: bool = False, **sizes: Any) -> list[Any]:
    values = drawn(Case.of(DUAL, **sizes), dtype, seed)
    if low_state:
        values[STATE] = values[STATE].to(values[X].dtype)
    return values


def dtype_name(values: list[Any]) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[values[X].dtype]


def assert_parity(node: str, values: list[Any], what: object = "") -> None:
    """Hold a call to verify's bounds, with outputs full of NaN before it."""
    spec, dtype = definition_of(node)[0].spec, dtype_name(values)
    truth = reference(node, values, torch.float64)
    rounded = reference(node, values)
    with poisoned():
        found = run(node, values)
    for row, output, exact, same_dtype in zip(spec.outputs, found, truth, rounded, strict=True):
        assert output.dtype == same_dtype.dtype
        stored = "fp32" if output.dtype == torch.float32 else dtype
        allowed = allowed_of(row, stored, dtype, error(same_dtype, exact))
        assert error(output, exact) <= allowed, (what, row.name)  # false of a NaN


def assert_same_bits(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@DTYPES
@pytest.mark.parametrize("node", FORMS)
def test_parity_grid(node: str, dtype: str) -> None:
    for seed, case in enumerate(grid(node)):
        assert_parity(node, drawn(case, dtype, seed), case)


SHAPES = [
    # Every kernel and tile: head_dim and d_state that fill it, that do not, and that it lacks.
    *(
        {"head_dim": head_dim, "d_state": d_state}
        for head_dim, d_state in (
            (1, 8), (10, 6), (16, 16), (24, 40), (64, 16), (64, 64), (64, 256), (80, 64), (80, 128),
            (80, 256), (96, 96), (128, 64), (128, 128), (65, 128), (64, 130), (64, 300),
        )
    ),
    {"heads": 6, "n_groups": 3, **USUAL}, {"heads": 5, "n_groups": 1, **USUAL},
]  # fmt: skip


@DTYPES
@pytest.mark.parametrize("length", [1, 2, 8, 9, 65, 130])
def test_shapes(length: int, dtype: str) -> None:
    for seed, sizes in enumerate(SHAPES):
        low_state, reverse = bool(seed % 2), length % 2 == 1
        numbers = {"length": length, "d_skip": sizes.get("head_dim", 1), **sizes}
        values = values_of(dtype, seed=seed, low_state=low_state, reverse=reverse, **numbers)
        assert_parity(DUAL, values, (numbers, low_state))


@DTYPES
def test_lengths_around_a_chunk_and_its_blocks(dtype: str) -> None:
    for length in (10, 15, 16, 17, 31, 33, 48, 63, 64, 65, 127, 128, 129, 192, 200):
        for reverse in (False, True):
            case = {"length": length, "batch": 1, "heads": 3, **USUAL, "reverse": reverse}
            assert_parity(DUAL, values_of(dtype, **case), (length, reverse))


@DTYPES
@pytest.mark.parametrize(
    "sizes",
    [
        {"length": 2048, "heads": 24, **USUAL},
        {"length": 1500, "heads": 8, "head_dim": 128, "d_state": 256, "n_groups": 2},
        {"length": 700, "heads": 5, "head_dim": 80, "d_state": 64},
        {"length": 3000, "heads": 2, "head_dim": 10, "d_state": 6},
        {"length": 1, "batch": 70, "heads": 9, **USUAL},
    ],
    ids=lambda sizes: "-".join(map(str, sizes.values())),
)
def test_lengths_that_are_split_and_shapes_that_fill_the_gpu(
    sizes: dict[str, int], dtype: str
) -> None:
    assert_parity(DUAL, values_of(dtype, **{"batch": 1, **sizes}))


@DTYPES
@pytest.mark.parametrize("length", [3, 70, 200])
def test_steps_huge_and_tiny_beside_one_another(length: int, dtype: str) -> None:
    """Each step of its own: it forgets all, most, little or nothing of what was before."""
    for seed in range(4):
        values = values_of(dtype, seed=seed, length=length, **USUAL)
        torch.manual_seed(seed)
        shift = torch.tensor([-1e4, -30.0, -5.0, 0.0, 30.0, 1e3], device=GPU)
        at = torch.randint(len(shift), values[DT].shape, device=GPU)
        values[DT] = values[DT] + shift[at].to(values[DT].dtype)
        decay = torch.tensor([0.0, -1e-6, -1.0, -50.0, -200.0, -1e30], device=GPU)
        values[LOG_DECAY] = decay[torch.randint(len(decay), values[LOG_DECAY].shape, device=GPU)]
        assert_parity(DUAL, values)


@pytest.mark.parametrize("length", [70, 130])
def test_numbers_within_that_fp16_cannot_hold(length: int) -> None:
    """States and products of B and C beyond 65504, of an output that is not."""
    for of_x, of_B, of_C in ((1.0, 8e3, 1e-3), (1e-3, 1e3, 1e2), (1e-3, 3e3, 3e2)):
        values = values_of("fp16", length=length, **USUAL)
        for index, by in ((X, of_x), (B, of_B), (C, of_C)):
            values[index] = (values[index].float() * by).half()
        assert_parity(DUAL, values, (of_x, of_B, of_C))


@DTYPES
@pytest.mark.parametrize("length", [5, 100, 700])
def test_a_decay_of_minus_infinity_forgets_all(length: int, dtype: str) -> None:
    values = values_of(dtype, batch=1, length=length, **USUAL)
    values[LOG_DECAY][:, 3] = -math.inf
    whole = run(DUAL, values)
    after = cut(values, slice(3, None))
    after[STATE] = torch.zeros_like(values[STATE])
    y, last = run(DUAL, after)
    allowed = FP32_BOUND if dtype == "fp32" else ROUNDING_FLOOR[y.dtype]
    assert error(whole[0][:, 3:], y) <= allowed
    assert error(whole[1], last) <= allowed


@DTYPES
@pytest.mark.parametrize("length", [4, 40, 700])
def test_a_step_of_zero_leaves_the_state(length: int, dtype: str) -> None:
    values = values_of(dtype, batch=1, length=length, dt_softplus=False, **USUAL)
    for index in (DT, LOG_DECAY, STATE - 1):
        values[index].zero_()
    assert torch.equal(run(DUAL, values)[1], values[STATE])


def test_a_long_memory_keeps_its_digits_token_by_token() -> None:
    values = values_of("fp32", batch=1, length=3000, **USUAL)
    values[DT] -= 8
    values[LOG_DECAY].zero_()
    truth = reference(DUAL, values, torch.float64)[1]
    state = values[STATE]
    for t in range(3000):
        token = cut(values, slice(t, t + 1))
        token[STATE] = state
        state = run(DUAL, token)[1]
    assert error(state, truth) <= FP32_BOUND


@DTYPES
@pytest.mark.parametrize("length", [4, 100])
def test_limits_of_dt(length: int, dtype: str) -> None:
    for least, most in ((0.5, 0.6), (0.0, 1e-3), (2.0, 1.0), (0.0, 0.0)):
        values = values_of(dtype, length=length, dt_min=least, dt_max=most, **USUAL)
        values[LOG_DECAY] *= (
            1e-2  # with steps of 0 the state is the first one alone: fp32 has to hold it
        )
        assert_parity(DUAL, values, (least, most))


@DTYPES
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "parts", [(1,) * 40, (20, 20), (39, 1), (1, 9, 200, 64, 1), (1000, 500)], ids=str
)
def test_split_equals_whole(parts: tuple[int, ...], reverse: bool, dtype: str) -> None:
    length = sum(parts)
    values = values_of(dtype, batch=1, length=length, n_groups=2, reverse=reverse, **USUAL)
    y, last = run(DUAL, values)
    ys, state, start = [], values[STATE], 0
    for size in parts:
        steps = slice(start, start + size)
        if reverse:
            steps = slice(length - start - size, length - start)
        part = cut(values, steps)
        part[STATE] = state
        own, state = run(DUAL, part)
        ys.append(own)
        start += size
    joined = torch.cat(ys[:: -1 if reverse else 1], 1)
    allowed = FP32_BOUND if dtype == "fp32" else 2 * ROUNDING_FLOOR[y.dtype]
    assert error(joined, y) <= allowed
    assert error(state, last) <= allowed


@DTYPES
@pytest.mark.parametrize("length", [1, 5, 100])
def test_strided_inputs(length: int, dtype: str) -> None:
    """Slices of a projection, aligned and not, expanded batches, and tensors that are copied."""
    values = values_of(dtype, length=length, **USUAL)
    truth = reference(DUAL, values, torch.float64)
    for ahead in (0, 1, 8):
        first = values[X].new_zeros(2, length, ahead)
        joined = torch.cat([first, *(values[i].flatten(2) for i in (Z, X, B, C, DT))], -1)
        widths = [ahead, *(values[i].flatten(2).shape[-1] for i in (Z, X, B, C, DT))]
        views = list(values)
        for i, view in zip((Z, X, B, C, DT), joined.split(widths, -1)[1:], strict=True):
            views[i] = view.view(values[i].shape)
        views[STATE] = values[STATE].transpose(2, 3).contiguous().transpose(2, 3)
        views[LOG_DECAY] = values[LOG_DECAY].transpose(1, 2).contiguous().transpose(1, 2)
        for output, exact in zip(run(DUAL, views), truth, strict=True):
            allowed = FP32_BOUND if dtype == "fp32" else 2 * ROUNDING_FLOOR[values[X].dtype]
            assert error(output, exact) <= allowed
    one = [v[:1].expand(2, *v.shape[1:]) if i in SEQUENCES else v for i, v in enumerate(values)]
    dense = [v.contiguous() if isinstance(v, Tensor) else v for v in one]
    assert_same_bits(run(DUAL, one), run(DUAL, dense))


@DTYPES
@pytest.mark.parametrize("low_state", [False, True], ids=["fp32 states", "states in T"])
@pytest.mark.parametrize("length", [1, 3, 65, 700])
def test_last_state_may_be_the_initial_state(length: int, low_state: bool, dtype: str) -> None:
    for d_state in (128, 300):
        sizes = {"batch": 1, "length": length, "head_dim": 64, "d_state": d_state}
        values = values_of(dtype, low_state=low_state, **sizes)
        expected = run(DUAL, values)
        values[STATE] = values[STATE].clone()
        found = in_place(values)
        assert found[1] is values[STATE]
        assert_same_bits(found, expected)


@DTYPES
@pytest.mark.parametrize(
    ("sizes", "times"),
    [
        ({"length": 1, "heads": 24, **USUAL}, 10_000),
        ({"length": 300, "heads": 4, **USUAL}, 10_000),
        ({"length": 2000, "heads": 4, "head_dim": 80, "d_state": 64}, 1000),
        ({"length": 33, "heads": 4, "head_dim": 64, "d_state": 300}, 1000),
    ],
    ids=["step", "chunks", "parts", "many states"],
)
def test_repetitions_are_equal_bit_by_bit(sizes: dict[str, int], times: int, dtype: str) -> None:
    values = values_of(dtype, batch=1, **sizes)
    norm = drawn(Case.of(NORM, length=sizes["length"], group_width=1536), dtype)
    first = (*run(DUAL, values), *run(NORM, norm))
    same = torch.ones((), dtype=torch.bool, device=GPU)
    for _ in range(times):
        for one, other in zip((*run(DUAL, values), *run(NORM, norm)), first, strict=True):
            same &= (one == other).all()
    assert same


@DTYPES
@pytest.mark.parametrize("length", [1, 65, 1500])
def test_cuda_graph(length: int, dtype: str) -> None:
    """Captured once, replayed with other inputs: nothing is allocated and nothing waits."""
    values = values_of(dtype, batch=1, length=length, **USUAL)
    norm = drawn(Case.of(NORM, length=length), dtype)

    def call() -> tuple[Tensor, ...]:
        return (*run(DUAL, values), *run(NORM, norm))

    call()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(3):
        for tensor in (values[X], values[STATE], norm[0]):
            tensor.copy_(torch.randn_like(tensor))
        for output in captured:
            output.fill_(torch.nan)
        graph.replay()
        assert_same_bits(captured, call())


@DTYPES
@pytest.mark.parametrize("length", [1, 3, 65, 700])
def test_no_initial_state_is_zeros(length: int, dtype: str) -> None:
    """In every form: a step, tensor cores, CUDA cores, more states than registers hold, and a split length."""
    for sizes in (USUAL, {"head_dim": 10, "d_state": 6}, {"d_state": 300}, {"reverse": True}):
        values = values_of(dtype, batch=1, length=length, **sizes)
        values[STATE].zero_()
        assert_same_bits(
            run(DUAL, [*values[:STATE], None, *values[STATE + 1 :]]), run(DUAL, values)
        )


def test_steps_one_after_the_other_see_one_another_s_states() -> None:
    """A step may start while the kernel ahead of it runs: it must wait before it reads."""
    values = values_of("bf16", batch=8, length=1, heads=80, low_state=True, **USUAL)
    expected = values[STATE]
    for _ in range(50):
        expected = run(DUAL, [*values[:STATE], expected, *values[STATE + 1 :]])[1]
        torch.cuda.synchronize()
    state = values[STATE]
    for _ in range(50):
        state = run(DUAL, [*values[:STATE], state, *values[STATE + 1 :]])[1]
    assert torch.equal(state, expected)


def test_threads_with_streams_of_their_own() -> None:
    sizes = [
        {"length": 65, **USUAL}, {"length": 2000, **USUAL}, {"length": 1, **USUAL},
        {"length": 30, "d_state": 300},
    ]  # fmt: skip
    values = [values_of("bf16", batch=1, **one) for one in sizes]
    expected = [run(DUAL, each) for each in values]
    torch.cuda.synchronize()
    results: list[bool] = []

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            pairs = [
                (one == other).all()
                for _ in range(100)
                for one, other in zip(run(DUAL, values[index]), expected[index], strict=True)
            ]
            results.append(bool(torch.stack(pairs).all()))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * len(sizes)


@DTYPES
@pytest.mark.parametrize("length", [2, 65])
def test_nan_in_a_state_stays_in_its_channel(length: int, dtype: str) -> None:
    values = values_of(dtype, length=length, **USUAL)
    values[STATE][1, 3, 7, 5] = math.nan
    y, last = (tensor.isnan() for tensor in run(DUAL, values))
    assert y[1, :, 3, 7].all()
    assert last[1, 3, 7, 5]
    assert (y.sum(), last.sum()) == (length, last[1, 3, 7].sum())


@DTYPES
@pytest.mark.parametrize("length", [2, 65, 700])
def test_nan_in_a_step_is_passed_on(length: int, dtype: str) -> None:
    for index in (X, DT, B, LOG_DECAY):
        values = values_of(dtype, batch=1, length=length, **USUAL)
        values[index][0, 1, 0] = math.nan
        y, last = (tensor.isnan() for tensor in run(DUAL, values))
        assert y[0, length - 1, 0].any(), index
        assert last[0, 0].any(), index
        assert not y[0, :, 1].any() or index == B, "other heads are not touched"


@DTYPES
def test_a_million_steps_against_float64(dtype: str) -> None:
    sizes = {"length": 1_000_000, "batch": 1, "heads": 2, "head_dim": 16, "d_state": 32}
    values = drawn(Case.of("StateSpaceDual", **sizes), dtype)
    values[DT] = values[DT] - 4.0
    _, last = run("StateSpaceDual", values)
    u, delta, a, b, _, _, _, bias, state = as_scan([*values[:Z], values[X], *values[Z + 1 :]])
    truth = last_state_truth(u, delta, a, b, bias, state)
    allowed = FP32_BOUND if dtype == "fp32" else ROUNDING_FLOOR[values[X].dtype]
    assert error(last.flatten(1, 2), truth) <= allowed


@DTYPES
def test_norm_of_odd_widths_and_strides(dtype: str) -> None:
    for width in (1, 3, 16, 17, 63, 64, 65, 1000, 1536, 5120, 10240, 40000):
        for before in (False, True):
            sizes = {"length": 5, "groups": 3, "group_width": width, "norm_before_gate": before}
            assert_parity(NORM, drawn(Case.of(NORM, **sizes), dtype), (width, before))
    x, z, *rest = drawn(Case.of(NORM, groups=2, group_width=64), dtype)
    views = torch.cat([x, z], -1)[..., : x.shape[-1]], torch.cat([z, z], 1)[:, : x.shape[1]]
    assert torch.equal(run(NORM, [*views, *rest])[0], run(NORM, [x, z, *rest])[0])
