"""State space duality on Hopper's tensor cores: each layout of its work, and what chunks of 64 could break.

MAMBA_EXPORT_KERNELS=build/libmamba_export_kernels.so pytest -m gpu tests/test_ssd_hopper_gpu.py
"""

from __future__ import annotations

import pytest
import torch
from cases import error
from test_native_dual import in_place
from torch import Tensor

from mamba_export.contract.operators import STATE_SPACE_DUAL
from mamba_export.operators import native, state_space_dual
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.operators.state_space_dual.reference import state_space_dual_reference
from mamba_export.verify.bounds import ROUNDING_FLOOR

GPU = torch.device("cuda", 0)


def _why_not() -> str:
    if not torch.cuda.is_available():
        return ""  # the mark gpu says so
    if torch.cuda.get_device_capability(GPU) != (9, 0):
        return "needs a GPU of compute capability 9.0"
    return native.why_not_on(GPU) or ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_why_not()), reason=_why_not())]
BOUND = {torch.float16: ROUNDING_FLOOR["fp16"], torch.bfloat16: ROUNDING_FLOOR["bf16"]}
EVERY_DTYPE = pytest.mark.parametrize("dtype", BOUND, ids=["fp16", "bf16"])
# Few heads' lengths are cut into parts of a chunk or more; of 133 to 264 heads nothing is cut; of more
# than that, blocks walk one sequence after another.
HEADS = [(1, 1), (1, 3), (1, 24), (1, 80), (1, 133), (2, 140), (33, 9)]


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing falls back to another implementation unseen."""
    monkeypatch.setenv(BACKEND_VARIABLE, "native")


def inputs(
    batch: int,
    length: int,
    heads: int,
    dtype: torch.dtype,
    head_dim: int = 64,
    d_state: int = 128,
    groups: int = 1,
) -> dict[str, Tensor]:
    """Random inputs, where x, B, C and dt are slices of one projection's output."""
    torch.manual_seed(length)
    width = -(-heads // 8) * 8  # rows of the projection start at multiples of 16 bytes
    sizes = [heads * head_dim, groups * d_state, groups * d_state, width]
    projected = torch.randn(batch, length, sum(sizes), device=GPU).to(dtype)
    x, B, C, dt = projected.split(sizes, dim=2)
    return {
        "x": x.unflatten(2, (heads, head_dim)),
        "dt": dt[..., :heads],
        "A": -torch.rand(heads, device=GPU).mul(2.7).exp(),
        "B": B.unflatten(2, (groups, d_state)),
        "C": C.unflatten(2, (groups, d_state)),
        "D": torch.randn(heads, 1, device=GPU),
        "dt_bias": torch.rand(heads, device=GPU) * 4 - 6,
        "initial_state": torch.randn(batch, heads, head_dim, d_state, device=GPU),
    }


def truth(given: dict[str, Tensor], **options: object) -> tuple[Tensor, Tensor]:
    double = {name: value.double() for name, value in given.items()}
    return state_space_dual_reference(**{"z": None, "log_decay": None, **double}, **options)


def assert_right(given: dict[str, Tensor], **options: object) -> None:
    outputs, expected = state_space_dual(**given, **options), truth(given, **options)
    bound = BOUND[given["x"].dtype]
    for name, output, right in zip(("y", "last_state"), outputs, expected, strict=True):
        assert torch.isfinite(output).all(), name
        assert error(output, right) <= bound, name


def test_this_kernel_takes_the_shapes_of_models() -> None:
    given = inputs(1, 300, 24, torch.bfloat16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        state_space_dual(**given)
        torch.cuda.synchronize()
    names = [event.key for event in profile.key_averages()]
    assert any("ssd_outputs" in name for name in names), names


@EVERY_DTYPE
@pytest.mark.parametrize(("batch", "heads"), HEADS)
def test_lengths_around_chunks_and_parts(batch: int, heads: int, dtype: torch.dtype) -> None:
    lengths = range(9, 301, 1 if heads * batch < 24 else 41)
    longest = inputs(batch, 300, heads, dtype)
    right_y, right_states = truth_at(longest, lengths)
    for length in lengths:
        y, state = state_space_dual(**cut(longest, slice(length)))
        assert error(y, right_y[:, :length]) <= BOUND[dtype], length
        assert error(state, right_states[length]) <= BOUND[dtype], length


# (heads, length): short parts and longer ones, in blocks of one slice, of two, and of two without a second.
LAYOUTS = [(24, 512), (24, 2048), (64, 2048), (131, 1500)]


@EVERY_DTYPE
@pytest.mark.parametrize(("heads", "length"), LAYOUTS)
def test_layouts_of_a_split_length(heads: int, length: int, dtype: torch.dtype) -> None:
    given = inputs(1, length, heads, dtype)
    assert_right(given)
    given["z"] = torch.randn_like(given["x"])
    assert_right({**given, "initial_state": given["initial_state"].to(dtype)})


@EVERY_DTYPE
@pytest.mark.parametrize(("heads", "length"), LAYOUTS)
def test_last_state_may_be_the_initial_state(heads: int, length: int, dtype: torch.dtype) -> None:
    given = inputs(1, length, heads, dtype)
    right = truth(given)
    arguments = [given.get(row.name) for row in STATE_SPACE_DUAL.inputs]
    y, last = in_place([*arguments, *(one.default for one in STATE_SPACE_DUAL.attributes)])
    assert last is given["initial_state"]
    assert error(y, right[0]) <= BOUND[dtype]
    assert error(last, right[1]) <= BOUND[dtype]


@EVERY_DTYPE
@pytest.mark.parametrize(("batch", "heads"), HEADS)
def test_no_initial_state_is_zeros(batch: int, heads: int, dtype: torch.dtype) -> None:
    given = inputs(batch, 300, heads, dtype)
    given["initial_state"].zero_()
    expected = state_space_dual(**given)
    for found, wanted in zip(
        state_space_dual(**{**given, "initial_state": None}), expected, strict=True
    ):
        assert torch.equal(found, wanted)


def cut(given: dict[str, Tensor], steps: slice) -> dict[str, Tensor]:
    sequences = ("x", "dt", "B", "C")
    return {name: value[:, steps] if name in sequences else value for name, value in given.items()}


def truth_at(given: dict[str, Tensor], lengths: range) -> tuple[Tensor, dict[int, Tensor]]:
    """y of all steps, and the state after each of these lengths."""
    ys, states, state = [], {}, given["initial_state"]
    for t in range(given["x"].shape[1]):
        y, state = truth({**cut(given, slice(t, t + 1)), "initial_state": state})
        ys.append(y)
        if t + 1 in lengths:
            states[t + 1] = state
    return torch.cat(ys, dim=1), states


@EVERY_DTYPE
@pytest.mark.parametrize(
    "shape",
    [
        {"head_dim": 80},
        {"head_dim": 128, "groups": 3},
        {"head_dim": 48, "d_state": 64},
        {"d_state": 64, "groups": 2},
        {"groups": 6},
    ],
    ids=str,
)
def test_shapes(shape: dict[str, int], dtype: torch.dtype) -> None:
    for length in (9, 64, 300):
        given = inputs(2, length, 6, dtype, **shape)
        assert_right(given)
        given["z"] = torch.randn_like(given["x"])
        given["D"] = torch.randn(6, given["x"].shape[3], device=GPU)
        given["initial_state"] = given["initial_state"].to(dtype)
        assert_right(given, dt_min=0.01, dt_max=0.1)


@EVERY_DTYPE
@pytest.mark.parametrize("place", [0, 1, 15, 16, 63])
def test_a_huge_step_among_small_ones(place: int, dtype: torch.dtype) -> None:
    """Sums of exponents across it would leave no digits for the small ones."""
    given = inputs(1, 300, 4, dtype)
    given["dt"][:, place::64] = 300
    assert_right(given)


@EVERY_DTYPE
@pytest.mark.parametrize(("batch", "heads"), HEADS)
def test_steps_of_0_leave_the_state(batch: int, heads: int, dtype: torch.dtype) -> None:
    given = inputs(batch, 300, heads, dtype)
    given["dt"].zero_()
    given["dt_bias"].zero_()
    _, state = state_space_dual(**given, dt_softplus=False)
    assert torch.equal(state, given["initial_state"])


@pytest.mark.parametrize("name", ["x", "dt", "B", "C"])
def test_nan_is_passed_on(name: str) -> None:
    given = inputs(1, 300, 4, torch.bfloat16)
    given[name][:, 150] = float("nan")
    y, state = state_space_dual(**given)
    steps = y.isnan().flatten(2).all(2)[0]
    if name == "C":
        assert steps[150]
        assert not y[:, 151:].isnan().any()
        assert not state.isnan().any()
    else:
        assert steps[150:].all()
        assert state.isnan().all()
    # A product of a whole chunk meets x of steps that a mask leaves out as 0 times it.
    assert not y[:, : 128 if name == "x" else 150].isnan().any()


def test_states_beyond_the_range_of_fp16() -> None:
    given = inputs(1, 300, 4, torch.float16)
    given["initial_state"] *= 3e5
    given["C"] *= 1e-3
    assert_right(given)


@EVERY_DTYPE
@pytest.mark.parametrize(("batch", "length", "heads"), [(1, 512, 24), (1, 2048, 64), (8, 130, 40)])
def test_the_same_bits_ten_thousand_times(
    batch: int, length: int, heads: int, dtype: torch.dtype
) -> None:
    given = inputs(batch, length, heads, dtype)
    first = state_space_dual(**given)
    graph, repeats = torch.cuda.CUDAGraph(), 10
    with torch.cuda.graph(graph):
        runs = [state_space_dual(**given) for _ in range(repeats)]
    equal = torch.ones((), dtype=torch.bool, device=GPU)
    for _ in range(10_000 // repeats):
        graph.replay()
        for run in runs:
            for left, right in zip(first, run, strict=True):
                bits = torch.int16 if left.element_size() == 2 else torch.int32
                equal &= (left.view(bits) == right.view(bits)).all()
    assert equal
