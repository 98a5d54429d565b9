"""A whole layer of Mamba-2 on the GPU, through the C interface: parity, the same bits, graphs, bad input.

MAMBA_EXPORT_KERNELS=build/libmamba_export_kernels.so pytest -m gpu tests/test_mamba2_layer_cuda.py
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from c_header import mirror
from cases import FP32_BOUND, ROUNDING_FLOOR, error
from layer_calls import CODES, GPU, layer_functions, multiply
from torch import Tensor

from mamba_export import contract, cuda_queries
from mamba_export.contract.spec import S
from mamba_export.operators import kernel_library
from mamba_export.operators.dtypes import TORCH_DTYPES
from mamba_export.operators.mamba2_layer.reference import mamba2_layer_reference
from mamba_export.verify.cases import Case, draw, dtype_of

ROW = contract.MAMBA2_LAYER
EVERY_DTYPE = pytest.mark.parametrize("dtype", contract.DTYPES)
NEEDS_KERNELS = pytest.mark.skipif(
    not kernel_library.available(), reason=kernel_library.why_absent()
)

Params = mirror("mamba2_layer_params")

SMALL = {"d_model": 96, "group_heads": 3, "head_dim": 64, "d_state": 64}
SHAPES = [
    {"d_model": 768, "group_heads": 24, "head_dim": 64, "d_state": 128},
    {"d_model": 2560, "group_heads": 80, "head_dim": 64, "d_state": 128},
    {"d_model": 96, "n_groups": 4, "group_heads": 2, "head_dim": 32, "d_state": 16, "d_skip": 32},
    {"d_model": 98, "n_groups": 3, "group_heads": 3, "head_dim": 7, "d_state": 5, "d_conv": 2},
    {"d_model": 64, "group_heads": 2, "head_dim": 80, "d_state": 256, "d_conv": 16},
]
ROWS = [(1, 1), (2, 1), (3, 1), (8, 1), (1, 3), (2, 4)]


def name_of(shape: Any) -> str:
    return "-".join(map(str, shape.values())) if isinstance(shape, dict) else str(shape)


@dataclass
class Drawn:
    """Inputs of a layer in T on the GPU, their float64 truth, and what the definition in T makes of them."""

    case: Case
    inputs: dict[str, Tensor]
    attributes: list[float]
    truth: tuple[Tensor, ...]
    own: tuple[Tensor, ...]


def drawn(case: Case, dtype: str, seed: int = 0) -> Drawn:
    exact = draw(case, seed)
    inputs = {
        row.name: exact[row.name].to(TORCH_DTYPES[dtype_of(row, case, dtype)]).to(GPU)
        for row in ROW.inputs
    }
    attributes = [value for _, value in case.attributes]
    truth = mamba2_layer_reference(*(t.double() for t in inputs.values()), *attributes)
    own = mamba2_layer_reference(*inputs.values(), *attributes)
    return Drawn(case, inputs, attributes, truth, own)


class Call:
    """One call of the layer; what it leaves unwritten stays NaN. ``step``: by the step's kernels."""

    def __init__(self, given: Drawn, in_place: bool = False, step: bool = False) -> None:
        inputs = {name: tensor.contiguous() for name, tensor in given.inputs.items()}
        self.outputs = {
            row.name: inputs[row.continues].clone()
            if in_place and row.continues
            else torch.full_like(inputs[ROW.like(row).name], torch.nan)
            for row in ROW.outputs
        }
        if in_place:
            inputs |= {r.continues: self.outputs[r.name] for r in ROW.outputs if r.continues}
        self.kept = {**inputs, **self.outputs}  # the kernels see addresses alone
        dtypes = {
            "dtype": inputs["in_proj_weight"], "hidden_dtype": inputs["hidden"],
            "recurrent_state_dtype": inputs["recurrent_state"],
        }  # fmt: skip
        self.params = Params(
            **dict(given.case.sizes), **dict(given.case.attributes),
            **{name: CODES[tensor.dtype] for name, tensor in dtypes.items()},
            **{name: tensor.data_ptr() for name, tensor in self.kept.items()},
        )  # fmt: skip
        self.library = layer_functions("mamba2_layer", Params)
        self.step = step
        size = max(
            self.library.mamba2_layer_step_cuda_workspace(self.params) if step else 0,
            self.library.mamba2_layer_cuda_workspace(self.params),
        )
        self.workspace = torch.full((size,), 255, dtype=torch.uint8, device=GPU)
        torch.cuda.synchronize()

    def queue(self) -> None:
        """Queue it on the current stream."""
        stream = torch.cuda.current_stream().cuda_stream
        workspace = self.workspace.data_ptr()
        if self.step:
            status = self.library.mamba2_layer_step_cuda(self.params, workspace, stream)
        else:
            status = self.library.mamba2_layer_cuda(self.params, multiply, None, workspace, stream)
        assert status == 0, self.library.mamba_last_error().decode()

    def run(self) -> tuple[Tensor, ...]:
        self.queue()
        torch.cuda.synchronize()
        return tuple(self.outputs.values())


def assert_close(given: Drawn, outputs: tuple[Tensor, ...], dtype: str) -> None:
    """Each output within the project's bounds; of hidden, what the layer adds to it."""
    hidden = given.inputs["hidden"].double()
    for index, (output, truth, own) in enumerate(zip(outputs, given.truth, given.own, strict=True)):
        assert torch.isfinite(output).all(), index
        start = hidden if index == 0 else torch.zeros_like(truth)
        allowed = FP32_BOUND
        if dtype != "fp32":
            floor = ROUNDING_FLOOR[TORCH_DTYPES[dtype]]
            allowed = 2 * error(own.double() - start, truth - start) + floor
        assert error(output.double() - start, truth - start) <= allowed, index


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("batch", "length"), ROWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
@EVERY_DTYPE
def test_step_matches_float64(dtype: str, shape: dict[str, int], batch: int, length: int) -> None:
    given = drawn(Case.of(ROW.name, batch=batch, length=length, **shape), dtype)
    assert_close(given, Call(given, step=True).run(), dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("shape", "rows", "is_step"),
    [(SHAPES[0], 1, 1), (SHAPES[0], 4, 1), (SHAPES[0], 5, 0), (SHAPES[1], 1, 1), (SHAPES[1], 4, 0)],
    ids=["small", "small, a few", "small, several", "large", "large, a few"],
)
def test_which_sizes_are_a_step(shape: dict[str, int], rows: int, is_step: int) -> None:
    call = Call(drawn(Case.of(ROW.name, batch=rows, length=1, **shape), "fp16"))
    assert call.library.mamba2_layer_is_step_cuda(call.params) == is_step


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("batch", "length"), [(1, 65), (3, 20), (9, 1), (64, 1)], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[0], *SHAPES[2:]], ids=name_of)
@EVERY_DTYPE
def test_many_rows_match_float64(
    dtype: str, shape: dict[str, int], batch: int, length: int
) -> None:
    given = drawn(Case.of(ROW.name, batch=batch, length=length, **shape), dtype)
    call = Call(given)
    assert call.library.mamba2_layer_is_step_cuda(call.params) == 0
    assert_close(given, call.run(), dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_dt_as_a_product_of_its_own_matches_float64(dtype: str) -> None:
    """So many rows of so large a layer that in_proj is two products."""
    given = drawn(Case.of(ROW.name, batch=4, length=300, **SHAPES[1]), dtype)
    assert_close(given, Call(given).run(), dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("length", [1, 30], ids=["step", "many rows"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_states_of_16_bits(dtype: str, length: int) -> None:
    case = replace(Case.of(ROW.name, batch=2, length=length, **SMALL), low=(S,))
    given = drawn(case, dtype)
    outputs = Call(given).run()
    assert outputs[2].dtype == TORCH_DTYPES[dtype]
    assert_close(given, outputs, dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("limits", [(0.0, 0.05), (0.5, 0.6)], ids=["low", "high"])
@pytest.mark.parametrize("length", [1, 30], ids=["step", "many rows"])
def test_limits_of_dt_and_other_epsilons(length: int, limits: tuple[float, float]) -> None:
    case = Case.of(
        ROW.name, batch=2, length=length, epsilon=0.1, gate_epsilon=0.3,
        dt_min=limits[0], dt_max=limits[1], **SMALL,
    )  # fmt: skip
    given = drawn(case, "fp32")
    assert_close(given, Call(given).run(), "fp32")


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("batch", "step"), [(3, True), (9, False)], ids=["step", "many rows"])
@EVERY_DTYPE
def test_same_bits_every_time_and_in_place(dtype: str, batch: int, step: bool) -> None:
    given = drawn(Case.of(ROW.name, batch=batch, length=1, **SMALL), dtype)
    first = Call(given, step=step).run()
    for in_place in (False, True, True):
        for again, before in zip(Call(given, in_place, step).run(), first, strict=True):
            torch.testing.assert_close(again, before, rtol=0, atol=0)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("constant", [0, 1], ids=["weights just written", "constant weights"])
def test_steps_in_a_cuda_graph(constant: int) -> None:
    """A chain of layers that share a workspace, captured, is the chain without capture."""
    given = drawn(Case.of(ROW.name, batch=1, length=1, **SHAPES[0]), "fp16")
    calls = [Call(given, in_place=True) for _ in range(6)]
    for before, call in itertools.pairwise(calls):
        call.params.hidden = before.outputs["hidden_out"].data_ptr()
        call.params.constant_weights = constant
        call.workspace = calls[0].workspace

    def restore() -> None:
        for call in calls:
            for row in ROW.outputs:
                if row.continues:
                    call.outputs[row.name].copy_(given.inputs[row.continues])

    def twice(run: Callable[[], Any]) -> list[Tensor]:
        restore()
        run()
        run()
        torch.cuda.synchronize()
        return [tensor.clone() for call in calls for tensor in call.outputs.values()]

    expected = twice(lambda: [call.queue() for call in calls])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call.queue()
    for found, wanted in zip(twice(graph.replay), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.gpu
@NEEDS_KERNELS
def test_token_by_token_is_the_whole_sequence() -> None:
    whole = drawn(Case.of(ROW.name, batch=2, length=24, **SMALL), "fp32")
    inputs, parts = dict(whole.inputs), []
    for t in range(24):
        inputs["hidden"] = whole.inputs["hidden"][:, t : t + 1]
        case = replace(whole.case, sizes=tuple({**dict(whole.case.sizes), "length": 1}.items()))
        y, conv, recurrent = Call(Drawn(case, dict(inputs), whole.attributes, (), ())).run()
        inputs |= {"conv_state": conv, "recurrent_state": recurrent}
        parts.append(y)
    assert_close(whole, (torch.cat(parts, dim=1), conv, recurrent), "fp32")


def sizes(**changes: Any) -> ctypes.Structure:
    """Sizes of a small layer, without pointers."""
    good = {
        "batch": 1, "length": 1, "d_model": 32, "n_groups": 1, "group_heads": 4, "head_dim": 16,
        "d_state": 16, "d_conv": 4, "d_skip": 1, "dtype": 1, "dt_max": 1.0,
    }  # fmt: skip
    return Params(**{**good, **changes})


@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("params", "message"),
    [
        (sizes(d_conv=17), "d_conv is 17, expected 1 to 16"),
        (sizes(n_groups=0), "n_groups is 0, expected 1 to 16777216"),
        (
            sizes(group_heads=2**21),
            "n_groups * group_heads * head_dim is 33554432, expected 1 to 16777216",
        ),
        (sizes(d_skip=3), "d_skip 3 does not divide head_dim 16"),
        (sizes(dtype=7), "dtype 7 is unknown"),
        (sizes(hidden_dtype=2), "hidden_dtype 2 is neither fp32 nor dtype"),
        (sizes(recurrent_state_dtype=2), "recurrent_state_dtype 2 is neither fp32 nor dtype"),
        (
            sizes(batch=2**31 - 1, length=2**31 - 1),
            "batch 2147483647 times length 2147483647 is more than 2147483647 rows",
        ),
        (sizes(epsilon=float("nan")), "epsilon is nan, expected a finite number of at least 0"),
        (sizes(dt_min=-1.0), "dt_min is -1, expected a finite number of at least 0"),
        (sizes(), "a tensor's pointer, or workspace, is null"),
    ],
    ids=["taps", "groups", "width", "skip", "dtype", "hidden dtype", "state dtype", "rows",
         "epsilon", "limit", "pointers"],
)  # fmt: skip
def test_bad_calls_get_a_line(params: ctypes.Structure, message: str) -> None:
    library = layer_functions("mamba2_layer", Params)
    if not cuda_queries.cuda_architectures(library):
        pytest.skip("the kernels were built without CUDA")
    assert library.mamba2_layer_step_cuda(params, None, None) == kernel_library.INVALID
    assert library.mamba_last_error().decode() == f"mamba2_layer: {message}"
    assert library.mamba2_layer_cuda(params, multiply, None, None, None) == kernel_library.INVALID


@NEEDS_KERNELS
def test_workspace_grows_with_the_rows() -> None:
    library = layer_functions("mamba2_layer", Params)
    if not cuda_queries.cuda_architectures(library):
        pytest.skip("the kernels were built without CUDA")
    step = library.mamba2_layer_step_cuda_workspace
    assert 0 < step(sizes()) < step(sizes(batch=8))
    whole = library.mamba2_layer_cuda_workspace
    assert step(sizes(batch=8)) < whole(sizes(length=1000)) < whole(sizes(length=2000))
    for refused in (sizes(batch=0), sizes(batch=2**31 - 1, length=2**31 - 1), sizes(d_state=2**40)):
        assert step(refused) == whole(refused) == 0
    assert step(sizes(batch=9)) == 0, "a step takes 8 rows"
