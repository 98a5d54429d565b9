"""A whole layer on the GPU, through the C interface: parity, the same bits every time, graphs, bad input.

MAMBA_EXPORT_KERNELS=build/libmamba_export_kernels.so pytest -m gpu tests/test_layer_cuda.py
"""

from __future__ import annotations

import copy
import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from c_header import mirror
from cases import FP32_BOUND, ROUNDING_FLOOR, error
from layer_calls import CODES, GPU, layer_functions, multiply
from torch import Tensor

from mamba_export import cuda_queries
from mamba_export.models import LayerState, MambaConfig, cast
from mamba_export.models.language_model import Layer
from mamba_export.operators import kernel_library

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
NEEDS_KERNELS = pytest.mark.skipif(
    not kernel_library.available(), reason=kernel_library.why_absent()
)

Params = mirror("mamba_layer_params")


def functions() -> ctypes.CDLL:
    """The library, with the layer's functions declared."""
    return layer_functions("mamba_layer", Params)


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer."""

    d_model: int
    d_inner: int
    dt_rank: int
    d_state: int = 16
    d_conv: int = 4

    def __str__(self) -> str:
        return f"{self.d_model}-{self.d_inner}-r{self.dt_rank}-n{self.d_state}-k{self.d_conv}"


SMALL = Shape(96, 192, 8)
SHAPES = [
    Shape(768, 1536, 48),
    Shape(2560, 5120, 160),
    Shape(96, 200, 5, d_state=8, d_conv=3),
    Shape(98, 201, 7, d_state=5, d_conv=2),  # nothing can be read in 16 bytes
    Shape(64, 128, 8, d_state=64, d_conv=16),
]
ROWS = [(1, 1), (2, 1), (3, 1), (8, 1), (1, 3), (2, 4)]


@dataclass
class Case:
    """A layer in T with inputs, its float64 truth, and what the same layer in T makes of them."""

    layer: Layer
    hidden: Tensor
    state: LayerState
    truth: tuple[Tensor, Tensor, Tensor]
    reference: tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def make_case(shape: Shape, dtype: torch.dtype, batch: int, length: int, wide: bool = True) -> Case:
    config = MambaConfig(
        d_model=shape.d_model, n_layer=1, d_inner=shape.d_inner, dt_rank=shape.dt_rank,
        d_state=shape.d_state, d_conv=shape.d_conv, residual_in_fp32=wide,
    )  # fmt: skip
    layer = Layer(config).to(GPU)
    layer.norm.weight.add_(torch.randn_like(layer.norm.weight) * 0.1)
    cast(layer, dtype)
    hidden = torch.randn(batch, length, shape.d_model, device=GPU)
    hidden = hidden if wide else hidden.to(dtype)
    state = LayerState(
        torch.randn(batch, shape.d_inner, shape.d_conv - 1, device=GPU).to(dtype),
        torch.randn(batch, shape.d_inner, shape.d_state, device=GPU),
    )
    exact = copy.deepcopy(layer).double()
    y, new = exact(hidden.double(), LayerState(*(tensor.double() for tensor in state)))
    own, own_state = layer(hidden, state)
    return Case(layer, hidden, state, (y, *new), (own, *own_state))


Outputs = tuple[Tensor, Tensor, Tensor]


class Call:
    """One call of the layer; what it leaves unwritten stays NaN. ``step``: by the step's kernels."""

    def __init__(self, case: Case, in_place: bool = False, step: bool = False) -> None:
        mixer, hidden, state = case.layer.mixer, case.hidden, case.state
        self.outputs: Outputs = (
            torch.full_like(hidden, torch.nan),
            *(
                tensor.clone() if in_place else torch.full_like(tensor, torch.nan)
                for tensor in state
            ),
        )
        past = self.outputs[1:] if in_place else state
        self.kept = {  # the kernels see addresses alone
            "hidden": hidden,
            "norm_weight": case.layer.norm.weight.float(),
            "in_proj_weight": mixer.in_proj.weight.T.contiguous(),
            "conv_weight": mixer.conv1d.weight.squeeze(1).contiguous(),
            "conv_bias": mixer.conv1d.bias,
            "x_proj_weight": mixer.x_proj.weight.T.contiguous(),
            "dt_proj_weight": mixer.dt_proj.weight.T.contiguous(),
            "dt_bias": mixer.dt_proj.bias,
            "A": -torch.exp(mixer.A_log),
            "D": mixer.D,
            "out_proj_weight": mixer.out_proj.weight.T.contiguous(),
            "conv_state": past[0],
            "recurrent_state": past[1],
            "hidden_out": self.outputs[0],
            "last_conv_state": self.outputs[1],
            "last_recurrent_state": self.outputs[2],
        }
        config = case.layer.mixer.config
        sizes = {
            "batch": hidden.shape[0], "length": hidden.shape[1], "d_model": config.d_model,
            "d_inner": config.inner, "d_state": config.d_state, "d_conv": config.d_conv,
            "dt_rank": config.rank, "epsilon": config.norm_epsilon,
            "dtype": CODES[mixer.in_proj.weight.dtype], "hidden_dtype": CODES[hidden.dtype],
        }  # fmt: skip
        self.params = Params(**sizes, **{k: t.data_ptr() for k, t in self.kept.items()})
        self.library = functions()
        self.step = step
        size = max(
            self.library.mamba_layer_step_cuda_workspace(self.params) if step else 0,
            self.library.mamba_layer_cuda_workspace(self.params),
        )
        self.workspace = torch.full((size,), 255, dtype=torch.uint8, device=GPU)
        torch.cuda.synchronize()

    def queue(self) -> None:
        """Queue it on the current stream."""
        stream = torch.cuda.current_stream().cuda_stream
        workspace = self.workspace.data_ptr()
        if self.step:
            status = self.library.mamba_layer_step_cuda(self.params, workspace, stream)
        else:
            status = self.library.mamba_layer_cuda(self.params, multiply, None, workspace, stream)
        assert status == 0, self.library.mamba_last_error().decode()

    def run(self) -> Outputs:
        self.queue()
        torch.cuda.synchronize()
        return self.outputs


def assert_close(case: Case, outputs: Outputs) -> None:
    """Each output within the project's bounds; of hidden, what the layer adds to it."""
    hidden = case.hidden.double()
    dtype = case.layer.mixer.in_proj.weight.dtype
    for index, (output, truth, reference) in enumerate(
        zip(outputs, case.truth, case.reference, strict=True)
    ):
        assert torch.isfinite(output).all()
        start = hidden if index == 0 else torch.zeros_like(truth)
        allowed = FP32_BOUND
        if dtype != torch.float32:
            own = error(reference.double() - start, truth - start)
            allowed = 2 * own + ROUNDING_FLOOR[dtype]
        assert error(output.double() - start, truth - start) <= allowed, index


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("batch", "length"), ROWS, ids=lambda n: str(n))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY_DTYPE
def test_step_matches_float64(dtype: torch.dtype, shape: Shape, batch: int, length: int) -> None:
    case = make_case(shape, dtype, batch, length)
    assert_close(case, Call(case, step=True).run())


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("rows", "is_step"), [(1, 1), (2, 0), (8, 0)], ids=lambda n: str(n))
def test_large_layers_step_one_row_at_a_time(rows: int, is_step: int) -> None:
    call = Call(make_case(Shape(2560, 5120, 160), torch.float16, rows, 1))
    assert call.library.mamba_layer_is_step_cuda(call.params) == is_step


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("batch", "length"), [(1, 65), (3, 20), (5, 1), (9, 1), (17, 1), (40, 1)], ids=lambda n: str(n)
)
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@EVERY_DTYPE
def test_many_rows_match_float64(dtype: torch.dtype, shape: Shape, batch: int, length: int) -> None:
    case = make_case(shape, dtype, batch, length)
    call = Call(case)
    assert call.library.mamba_layer_is_step_cuda(call.params) == 0
    assert_close(case, call.run())


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("length", [1, 30], ids=["step", "many rows"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_residual_stream_of_16_bits(dtype: torch.dtype, length: int) -> None:
    case = make_case(SMALL, dtype, 2, length, wide=False)
    outputs = Call(case).run()
    assert outputs[0].dtype == dtype
    # hidden itself is rounded here, so the sum is what can be compared.
    own = error(case.reference[0], case.truth[0])
    assert error(outputs[0], case.truth[0]) <= 2 * own + ROUNDING_FLOOR[dtype]


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("batch", [3, 24])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=str)
@EVERY_DTYPE
def test_same_bits_every_time_and_in_place(dtype: torch.dtype, shape: Shape, batch: int) -> None:
    case = make_case(shape, dtype, batch, 1)
    first = Call(case).run()
    for in_place in (False, True, True):
        for again, before in zip(Call(case, in_place).run(), first, strict=True):
            torch.testing.assert_close(again, before, rtol=0, atol=0)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("constant", [0, 1], ids=["weights just written", "constant weights"])
@pytest.mark.parametrize("batch", [1, 12, 64])
def test_steps_in_a_cuda_graph(batch: int, constant: int) -> None:
    """A chain of layers that share a workspace, captured, is the chain without capture."""
    case = make_case(SHAPES[0], torch.float16, batch, 1)
    calls = [Call(case, in_place=True) for _ in range(6)]
    for before, call in itertools.pairwise(calls):
        call.params.hidden = before.outputs[0].data_ptr()
        call.params.constant_weights = constant
        call.workspace = calls[0].workspace

    def restore() -> None:
        for call in calls:
            for output, state in zip(call.outputs[1:], case.state, strict=True):
                output.copy_(state)

    def twice(run: Callable[[], None]) -> list[Tensor]:
        restore()
        run()
        run()
        torch.cuda.synchronize()
        return [tensor.clone() for call in calls for tensor in call.outputs]

    expected = twice(lambda: [call.queue() for call in calls])  # type: ignore[arg-type, return-value]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call.queue()
    for found, wanted in zip(twice(graph.replay), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.gpu
@NEEDS_KERNELS
def test_token_by_token_is_the_whole_sequence() -> None:
    whole = make_case(SMALL, torch.float32, 2, 24)
    state, parts = whole.state, []
    for t in range(24):
        step = copy.copy(whole)
        step.hidden, step.state = whole.hidden[:, t : t + 1].contiguous(), state
        y, *new = Call(step).run()
        state = LayerState(*new)
        parts.append(y)
    assert_close(whole, (torch.cat(parts, dim=1), *state))


def sizes(**changes: int) -> ctypes.Structure:
    """Sizes of a small layer, without pointers."""
    good = {
        "batch": 1, "length": 1, "d_model": 32, "d_inner": 64, "d_state": 16, "d_conv": 4,
        "dt_rank": 2, "dtype": 1,
    }  # fmt: skip
    return Params(**{**good, **changes})


@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("params", "message"),
    [
        (sizes(d_conv=17), "layer: d_conv is 17, expected 1 to 16"),
        (sizes(batch=0), "layer: batch is 0, expected 1 to 2147483647"),
        (sizes(dtype=7), "layer: dtype 7 is unknown"),
        (sizes(hidden_dtype=2), "layer: hidden_dtype 2 is neither fp32 nor dtype"),
        (
            sizes(batch=2**31 - 1, length=2**31 - 1),
            "layer: batch 2147483647 times length 2147483647 is more than 2147483647 rows",
        ),
        (
            sizes(epsilon=float("nan")),
            "layer: epsilon is nan, expected a finite number of at least 0",
        ),
        (sizes(), "layer: a tensor's pointer, or workspace, is null"),
    ],
    ids=["taps", "batch", "dtype", "hidden dtype", "rows", "epsilon", "pointers"],
)
def test_bad_calls_get_a_line(params: ctypes.Structure, message: str) -> None:
    library = functions()
    if not cuda_queries.cuda_architectures(library):
        pytest.skip("the kernels were built without CUDA")
    assert library.mamba_layer_step_cuda(params, None, None) == kernel_library.INVALID
    assert library.mamba_last_error().decode() == message
    assert library.mamba_layer_cuda(params, multiply, None, None, None) == kernel_library.INVALID


@NEEDS_KERNELS
def test_workspace_grows_with_the_rows() -> None:
    library = functions()
    if not cuda_queries.cuda_architectures(library):
        pytest.skip("the kernels were built without CUDA")
    step = library.mamba_layer_step_cuda_workspace
    assert 0 < step(sizes()) < step(sizes(batch=8))
    whole = library.mamba_layer_cuda_workspace
    assert step(sizes(batch=8)) < whole(sizes(length=1000)) < whole(sizes(length=2000))
    for refused in (sizes(batch=0), sizes(batch=2**31 - 1, length=2**31 - 1), sizes(d_state=2**40)):
        assert step(refused) == whole(refused) == 0
    assert step(sizes(batch=9)) == 0, "a step takes 8 rows"
