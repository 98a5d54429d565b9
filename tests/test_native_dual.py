"""The compiled CPU kernels of state space duality and the gated norm: what the grid does not reach."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import FP32_BOUND, ROUNDING_FLOOR, error
from test_native_rows import arguments, assert_parity, run
from torch import Tensor
from truths import last_state_truth, scan_truth

from mamba_export import contract
from mamba_export.contract.operators import GATED_RMS_NORM, STATE_SPACE_DUAL
from mamba_export.contract.spec import R
from mamba_export.operators import native
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.verify.cases import Case

DUAL, NORM = "StateSpaceDualGatedWithDecay", GATED_RMS_NORM.name
NAMES = [row.name for row in STATE_SPACE_DUAL.inputs]
X, DT, A, B, C, D, Z, LOG_DECAY, DT_BIAS, STATE = range(len(NAMES))
SEQUENCES = (X, DT, B, C, Z, LOG_DECAY)
MIN, MAX, REVERSE = (len(NAMES) + i for i in (1, 2, 3))

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_absent())
DTYPES = pytest.mark.parametrize("dtype", contract.DTYPES)


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(BACKEND_VARIABLE, "native")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def values_of(
    dtype: str = "fp32", *, seed: int = 0, low_state: bool = False, **sizes: Any
) -> list[Any]:
    return arguments(replace(Case.of(DUAL, **sizes), low=(R,) if low_state else ()), dtype, seed)


def cut(values: list[Any], steps: slice) -> list[Any]:
    return [v[:, steps] if i in SEQUENCES else v for i, v in enumerate(values)]


@DTYPES
def test_lengths_around_a_chunk(dtype: str) -> None:
    for length in (3, 4, 8, 9, 10, 15, 16, 17, 31, 32, 33, 47, 49, 129):
        for reverse, low_state in ((False, True), (True, False)):
            case = {"length": length, "heads": 3, "head_dim": 21, "d_state": 24}
            values = values_of(dtype, **case, reverse=reverse, low_state=low_state)
            assert_parity(DUAL, values, (length, reverse))


@DTYPES
@pytest.mark.parametrize("length", [2, 20])
def test_odd_widths(length: int, dtype: str) -> None:
    for head_dim in (1, 2, 3, 4, 7, 15, 17, 31, 32, 33, 48, 65, 96):
        for d_state in (1, 3, 4, 5, 8, 12, 16, 17, 20, 33):
            sizes = {"length": length, "batch": 1, "heads": 2, "head_dim": head_dim}
            assert_parity(DUAL, values_of(dtype, **sizes, d_state=d_state), (head_dim, d_state))


def test_very_many_states() -> None:
    for length in (1, 20):
        sizes = {"length": length, "heads": 2, "head_dim": 3}
        assert_parity(DUAL, values_of(**sizes, d_state=8192))
        assert_parity(DUAL, values_of(**sizes, d_state=8193))


@DTYPES
@pytest.mark.parametrize("length", [3, 70])
def test_steps_huge_and_tiny_beside_one_another(length: int, dtype: str) -> None:
    """Each step of its own: it forgets all, most, little or nothing of what was before."""
    for seed in range(4):
        values = values_of(dtype, seed=seed, length=length, heads=4, head_dim=40, d_state=20)
        torch.manual_seed(seed)
        shift = torch.tensor([-1e4, -30.0, -5.0, 0.0, 30.0, 1e3])
        at = torch.randint(len(shift), values[DT].shape)
        values[DT] = values[DT] + shift[at].to(values[DT].dtype)
        decay = torch.tensor([0.0, -1e-6, -1.0, -50.0, -200.0, -1e30])
        values[LOG_DECAY] = decay[torch.randint(len(decay), values[LOG_DECAY].shape)]
        assert_parity(DUAL, values)


@pytest.mark.parametrize("length", [5, 60])
def test_a_decay_of_minus_infinity_forgets_all(length: int) -> None:
    values = values_of(length=length)
    values[LOG_DECAY][:, 3] = -math.inf
    whole = run(DUAL, values)
    assert_parity(DUAL, values)
    after = cut(values, slice(3, None))
    after[STATE] = torch.zeros_like(values[STATE])
    y, last = run(DUAL, after)
    assert error(whole[0][:, 3:], y) <= FP32_BOUND
    assert error(whole[1], last) <= FP32_BOUND


@DTYPES
@pytest.mark.parametrize("length", [4, 40])
def test_a_step_of_zero_leaves_the_state(length: int, dtype: str) -> None:
    values = values_of(dtype, length=length, dt_softplus=False)
    values[DT].zero_()
    values[DT_BIAS].zero_()
    values[LOG_DECAY].zero_()
    _, last = run(DUAL, values)
    assert torch.equal(last, values[STATE])


@pytest.mark.parametrize("length", [4, 40])
def test_limits_of_dt(length: int) -> None:
    for least, most in ((0.5, 0.6), (0.0, 1e-3), (2.0, 1.0), (0.0, 0.0)):
        values = values_of(length=length, dt_min=least, dt_max=most)
        assert_parity(DUAL, values, (least, most))


@DTYPES
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "parts", [(1,) * 40, (20, 20), (39, 1), (1, 9, 29, 1), (16, 16, 8)], ids=str
)
def test_split_equals_whole(parts: tuple[int, ...], reverse: bool, dtype: str) -> None:
    values = values_of(dtype, length=40, n_groups=2, head_dim=40, reverse=reverse)
    y, last = run(DUAL, values)
    ys, state, start = [], values[STATE], 0
    for size in parts:
        steps = slice(40 - start - size, 40 - start) if reverse else slice(start, start + size)
        part = cut(values, steps)
        part[STATE] = state
        own, state = run(DUAL, part)
        ys.append(own)
        start += size
    joined = torch.cat(ys[:: -1 if reverse else 1], 1)
    assert error(joined, y) <= (FP32_BOUND if dtype == "fp32" else ROUNDING_FLOOR[y.dtype])
    assert error(state, last) <= FP32_BOUND


@DTYPES
@pytest.mark.parametrize("length", [5, 40])
def test_strided_inputs(length: int, dtype: str) -> None:
    """Slices of a projection, expanded batches, and tensors that are copied."""
    values = values_of(dtype, length=length, heads=4, head_dim=16, d_state=8)
    expected = run(DUAL, values)
    joined = torch.cat([values[i].flatten(2) for i in (Z, X, B, C, DT)], -1)
    widths = [values[i].flatten(2).shape[-1] for i in (Z, X, B, C, DT)]
    views = list(values)
    for i, view in zip((Z, X, B, C, DT), joined.split(widths, -1), strict=True):
        views[i] = view.view(values[i].shape)
        assert not views[i].is_contiguous()
    views[STATE] = values[STATE].transpose(2, 3).contiguous().transpose(2, 3)
    views[LOG_DECAY] = values[LOG_DECAY].transpose(1, 2).contiguous().transpose(1, 2)
    for found, wanted in zip(run(DUAL, views), expected, strict=True):
        assert torch.equal(found, wanted)
    one = [v[:1].expand(2, *v.shape[1:]) if i in SEQUENCES else v for i, v in enumerate(values)]
    dense = [v.contiguous() if isinstance(v, Tensor) else v for v in one]
    for found, wanted in zip(run(DUAL, one), run(DUAL, dense), strict=True):
        assert torch.equal(found, wanted)


def norm_values(dtype: str = "fp32", **sizes: Any) -> list[Any]:
    return arguments(Case.of(NORM, **sizes), dtype)


@DTYPES
def test_norm_of_odd_widths_and_strides(dtype: str) -> None:
    for width in (1, 3, 15, 16, 17, 63, 64, 65, 1000, 16385):
        for before in (False, True):
            sizes = {"length": 5, "groups": 3, "group_width": width}
            assert_parity(NORM, norm_values(dtype, **sizes, norm_before_gate=before), width)
    x, z, *rest = norm_values(dtype, groups=2)
    views = torch.cat([x, z], -1)[..., : x.shape[-1]], torch.cat([z, z], 1)[:, : x.shape[1]]
    assert torch.equal(run(NORM, [*views, *rest])[0], run(NORM, [x, z, *rest])[0])


def test_norm_of_zeros_is_zero() -> None:
    values = norm_values()
    values[0].zero_()
    assert not run(NORM, values)[0].any()


@pytest.mark.parametrize("length", [2, 40])
def test_nan_is_passed_on_and_stays_where_it_belongs(length: int) -> None:
    sizes = {"length": length, "heads": 4, "n_groups": 2, "head_dim": 40, "d_state": 20}
    clean = [tensor.isnan() for tensor in run(DUAL, values_of(**sizes))]
    assert not any(tensor.any() for tensor in clean)

    values = values_of(**sizes)
    values[STATE][1, 3, 7, 5] = math.nan
    y, last = (tensor.isnan() for tensor in run(DUAL, values))
    assert y[1, :, 3, 7].all()
    assert last[1, 3, 7, 5]
    assert (y.sum(), last.sum()) == (length, last[1, 3, 7].sum())

    t = length - 2
    for index, channels in ((X, slice(7, 8)), (Z, slice(7, 8)), (DT, slice(None))):
        values = values_of(**sizes)
        values[index][(1, t, 3, 7)[: values[index].dim()]] = math.nan
        y, _ = (tensor.isnan() for tensor in run(DUAL, values))
        expected = torch.zeros_like(y)
        expected[1, t : t + 1 if index == Z else length, 3, channels] = True
        assert torch.equal(y, expected), NAMES[index]
    for index in (B, C):
        values = values_of(**sizes)
        values[index][1, t, 1, 5] = math.nan
        y, _ = (tensor.isnan() for tensor in run(DUAL, values))
        expected = torch.zeros_like(y)
        expected[1, t : t + 1 if index == C else length, 2:] = True
        assert torch.equal(y, expected), NAMES[index]


def in_place(values: list[Any]) -> tuple[Tensor, ...]:
    """A call whose last_state is the initial state's own memory."""
    state, empty_like = values[STATE], torch.empty_like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch,
            "empty_like",
            lambda like, **kw: like if like is state else empty_like(like, **kw),
        )
        return native.compiled(STATE_SPACE_DUAL)(*values)


@DTYPES
@pytest.mark.parametrize("length", [1, 3, 40])
def test_last_state_may_be_the_initial_state(length: int, dtype: str) -> None:
    """With states of either dtype."""
    for low in (False, True):
        values = values_of(dtype, length=length, head_dim=40, low_state=low)
        expected = run(DUAL, values)
        values[STATE] = values[STATE].clone()
        y, last = in_place(values)
        assert last is values[STATE]
        assert torch.equal(y, expected[0])
        assert torch.equal(last, expected[1])


@DTYPES
@pytest.mark.parametrize("length", [1, 3, 40, 300])
def test_no_initial_state_is_zeros(length: int, dtype: str) -> None:
    """The bits of zeros that are read, whichever walk the length has, and of a dtype of their own."""
    for sizes in ({"head_dim": 40}, {"d_state": 9, "batch": 1}, {"reverse": True}):
        values = values_of(dtype, length=length, **sizes)
        values[STATE].zero_()
        expected = run(DUAL, values)
        values[STATE] = None
        for found, wanted in zip(run(DUAL, values), expected, strict=True):
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)


@DTYPES
def test_thread_counts_and_repetitions_give_the_same_bits(dtype: str) -> None:
    for length, repetitions in ((1, 10_000 if dtype == "fp32" else 1000), (33, 1000)):
        values = values_of(dtype, length=length, heads=8, head_dim=40, d_state=16)
        norm = norm_values(dtype, length=length, group_width=320)
        torch.set_num_threads(1)
        first = (*run(DUAL, values), *run(NORM, norm))
        for count in (2, 3):
            torch.set_num_threads(count)
            for _ in range(repetitions // 2):
                for a, b in zip((*run(DUAL, values), *run(NORM, norm)), first, strict=True):
                    assert torch.equal(a, b)


def as_scan(values: list[Any]) -> list[Any]:
    """The same numbers as a selective scan's: a head's A holds for all its channels and states."""
    _, _, heads, head_dim = values[X].shape
    d_inner, d_state = heads * head_dim, values[B].shape[3]

    def per_channel(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(head_dim, -1)

    skip = values[D].repeat_interleave(head_dim // values[D].shape[1], 1).flatten()
    a = per_channel(values[A])[:, None].expand(d_inner, d_state)
    u, delta, z = values[X].flatten(2), per_channel(values[DT]), values[Z].flatten(2)
    state = values[STATE].flatten(1, 2)
    return [u, delta, a, values[B], values[C], skip, z, per_channel(values[DT_BIAS]), state]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_head_is_a_selective_scan_of_one_decay(reverse: bool) -> None:
    """Another operator's truth, by doubling: it shares no line with the reference."""
    values = arguments(
        Case.of("StateSpaceDualGated", length=300, n_groups=2, d_skip=16, reverse=reverse), "fp32"
    )
    truth, last = scan_truth(*as_scan(values), True, reverse)
    y, state = run(DUAL, values)
    assert error(y.flatten(2), truth) <= FP32_BOUND
    assert error(state.flatten(1, 2), last) <= FP32_BOUND


def test_a_long_sequence_against_float64() -> None:
    sizes = {"length": 100_000, "batch": 1, "heads": 2, "head_dim": 2, "d_state": 3}
    values = arguments(Case.of("StateSpaceDualGated", **sizes), "fp32")
    values[DT] = values[DT] - 4.0  # steps of 0.02: the state remembers
    truth, last = scan_truth(*as_scan(values))
    y, state = run(DUAL, values)
    assert error(y.flatten(2), truth) <= FP32_BOUND
    assert error(state.flatten(1, 2), last) <= FP32_BOUND


@pytest.mark.parametrize("at_once", [3000, 1])
def test_a_long_memory_keeps_its_digits(at_once: int) -> None:
    values = values_of(batch=1, length=3000, heads=8, head_dim=4, d_state=4)
    values[DT] -= 8
    values[LOG_DECAY].zero_()
    truth = scan_truth(*as_scan(values))[1]
    state = values[STATE]
    for t in range(0, 3000, at_once):
        part = cut(values, slice(t, t + at_once))
        part[STATE] = state
        state = run(DUAL, part)[1]
    assert error(state.flatten(1, 2), truth) <= FP32_BOUND


def test_a_million_steps_against_float64() -> None:
    sizes = {"length": 1_000_000, "batch": 1, "heads": 1, "head_dim": 2, "d_state": 2}
    values = arguments(Case.of("StateSpaceDual", **sizes), "fp32")
    values[DT] = values[DT] - 4.0
    u, delta, a, b, _, _, _, bias, state = as_scan([*values[:Z], values[X], *values[Z + 1 :]])
    _, last = run("StateSpaceDual", values)
    truth = last_state_truth(u, delta, a, b, bias, state)
    assert error(last.flatten(1, 2), truth) <= FP32_BOUND
