"""What the tests of whole layers on the GPU share: calls of the C functions, and what every layer must do.

The C functions are told apart by the row's stem alone, the tensors by the row; the products are torch's.
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
from torch import Tensor

from mamba_export import contract, cuda_queries
from mamba_export.contract import layout
from mamba_export.contract.spec import Operator
from mamba_export.operators import kernel_library
from mamba_export.operators.dtypes import TORCH_DTYPES
from mamba_export.verify.cases import Case, draw, dtype_of

GPU = torch.device("cuda", 0)
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""``mamba_dtype`` of each dtype."""

EVERY_DTYPE = pytest.mark.parametrize("dtype", contract.DTYPES)
NEEDS_KERNELS = pytest.mark.skipif(
    not kernel_library.available(), reason=kernel_library.why_absent()
)
FEW_ROWS = [(1, 1), (2, 1), (3, 1), (8, 1), (1, 3), (2, 4)]
"""(batch, length) of calls that the step's kernels take."""

Product = mirror("mamba_product")
PackedCodes = mirror("mamba_codes")
Multiply = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Product), ctypes.c_void_p)


class _DeviceMemory:
    """Memory at an address, for torch to look at."""

    def __init__(self, address: int, count: int, bytes_each: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": f"<i{bytes_each}", "data": (address, False), "version": 2,
        }  # fmt: skip


def _matrix(address: int, rows: int, columns: int, stride: int, code: int) -> Tensor:
    dtype = {number: dtype for dtype, number in CODES.items()}[code]
    count = (rows - 1) * stride + columns
    memory = torch.as_tensor(_DeviceMemory(address, count, dtype.itemsize), device=GPU)
    return memory.view(dtype).as_strided((rows, columns), (stride, 1))


@Multiply
def multiply(_context: object, product: object, _stream: object) -> int:
    """What ONNX Runtime's cuBLAS does in the custom op, by torch."""
    p = product.contents  # type: ignore[attr-defined]
    a = _matrix(p.a, p.rows, p.depth, p.a_stride, p.dtype)
    b = _matrix(p.b, p.depth, p.columns, p.columns, p.dtype)
    c = _matrix(p.c, p.rows, p.columns, p.c_stride, p.c_dtype)
    result = a.float() @ b.float()
    if p.addend:
        result += _matrix(p.addend, p.rows, p.columns, p.c_stride, p.c_dtype).float()
    c.copy_(result)
    return 0


def name_of(shape: Any) -> str:
    """A shape in a test's name."""
    return "-".join(map(str, shape.values())) if isinstance(shape, dict) else str(shape)


@dataclass
class Drawn:
    """Inputs of a layer in T on the GPU, their float64 truth, and what the definition in T makes of them."""

    case: Case
    inputs: dict[str, Tensor]
    attributes: list[float]
    truth: tuple[Tensor, ...]
    own: tuple[Tensor, ...]


@dataclass(frozen=True)
class Layer:
    """A row whose kernels are a step's and those for many rows, and its definition."""

    row: Operator
    reference: Callable[..., tuple[Tensor, ...]]

    @property
    def stem(self) -> str:
        """What its C names begin with."""
        return layout.stem(self.row)

    @property
    def params(self) -> type[ctypes.Structure]:
        """Its parameter struct."""
        return mirror(f"{self.stem}_params")

    @property
    def packed_params(self) -> type[ctypes.Structure]:
        """The struct of its packed forms."""
        return mirror(f"{self.stem}_packed_params")

    def function(self, name: str) -> Any:
        """A function of the library, declared: ``is_step_cuda``, ``step_cuda``, ``cuda`` or a workspace.

        ``packed_`` before the name: of a layer whose matrices may be codes.
        """
        found = getattr(kernel_library.library().functions, f"{self.stem}_{name}")
        pointer = ctypes.c_void_p
        plain = name.removeprefix("packed_")
        params = self.params if plain == name else self.packed_params
        further = {
            "step_cuda": [pointer, pointer],
            "cuda": [Multiply, pointer, pointer, pointer],
        }.get(plain, [])
        found.argtypes = [ctypes.POINTER(params), *further]
        if name.endswith("workspace"):
            found.restype = ctypes.c_size_t
        return found

    def drawn(self, dtype: str, low: tuple[str, ...] = (), **numbers: float) -> Drawn:
        """Inputs of these sizes and attributes; low: the classes beside T that have T's dtype."""
        case = replace(Case.of(self.row.name, **numbers), low=low)
        exact = draw(case, 0)
        inputs = {
            row.name: exact[row.name].to(TORCH_DTYPES[dtype_of(row, case, dtype)]).to(GPU)
            for row in self.row.inputs
        }
        attributes = [value for _, value in case.attributes]
        truth = self.reference(*(t.double() for t in inputs.values()), *attributes)
        own = self.reference(*inputs.values(), *attributes)
        return Drawn(case, inputs, attributes, truth, own)


class Call:
    """One call of a layer; what it leaves unwritten stays NaN. ``step``: by the step's kernels."""

    def __init__(
        self, layer: Layer, given: Drawn, in_place: bool = False, step: bool = False
    ) -> None:
        row = layer.row
        inputs = {name: tensor.contiguous() for name, tensor in given.inputs.items()}
        self.outputs = {
            one.name: inputs[one.continues].clone()
            if in_place and one.continues
            else torch.full_like(inputs[row.like(one).name], torch.nan)
            for one in row.outputs
        }
        if in_place:
            inputs |= {r.continues: self.outputs[r.name] for r in row.outputs if r.continues}
        self.kept = {**inputs, **self.outputs}  # the kernels see addresses alone
        typed = {"dtype": inputs[row.inputs[layout.dtype_source(row)].name]} | {
            field.name: inputs[field.name.removesuffix("_dtype")]
            for field in layout.fields(row)
            if field.kind == layout.DTYPE and field.name != "dtype"
        }
        self.params = layer.params(
            **dict(given.case.sizes), **dict(given.case.attributes),
            **{name: CODES[tensor.dtype] for name, tensor in typed.items()},
            **{name: tensor.data_ptr() for name, tensor in self.kept.items()},
        )  # fmt: skip
        self.layer, self.step = layer, step
        size = max(
            layer.function("step_cuda_workspace")(self.params) if step else 0,
            layer.function("cuda_workspace")(self.params),
        )
        self.workspace = torch.full((size,), 255, dtype=torch.uint8, device=GPU)
        torch.cuda.synchronize()

    @property
    def is_step(self) -> int:
        """Whether the library runs these sizes by the step's kernels of itself."""
        return self.layer.function("is_step_cuda")(self.params)

    def queue(self) -> None:
        """Queue it on the current stream."""
        stream = torch.cuda.current_stream().cuda_stream
        workspace = self.workspace.data_ptr()
        if self.step:
            status = self.layer.function("step_cuda")(self.params, workspace, stream)
        else:
            run = self.layer.function("cuda")
            status = run(self.params, multiply, None, workspace, stream)
        assert status == 0, kernel_library.library().functions.mamba_last_error().decode()

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


# --- What every layer must do


def check_same_bits_and_in_place(layer: Layer, given: Drawn, step: bool) -> None:
    first = Call(layer, given, step=step).run()
    for in_place in (False, True, True):
        for again, before in zip(Call(layer, given, in_place, step).run(), first, strict=True):
            torch.testing.assert_close(again, before, rtol=0, atol=0)


def check_steps_in_a_graph(layer: Layer, given: Drawn, constant: int) -> None:
    """A chain of layers that share a workspace, captured, is the chain without capture."""
    calls = [Call(layer, given, in_place=True) for _ in range(6)]
    for before, call in itertools.pairwise(calls):
        call.params.hidden = before.outputs["hidden_out"].data_ptr()
        call.params.constant_weights = constant
        call.workspace = calls[0].workspace

    def restore() -> None:
        for call in calls:
            for row in layer.row.outputs:
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


def check_token_by_token(layer: Layer, whole: Drawn) -> None:
    """Steps of one token, each from the states before it, are the whole sequence in fp32."""
    inputs, parts = dict(whole.inputs), []
    sizes = tuple({**dict(whole.case.sizes), "length": 1}.items())
    states: list[Tensor] = []
    for t in range(whole.inputs["hidden"].shape[1]):
        inputs["hidden"] = whole.inputs["hidden"][:, t : t + 1]
        step = Drawn(replace(whole.case, sizes=sizes), dict(inputs), whole.attributes, (), ())
        y, *states = Call(layer, step).run()
        names = [row.continues for row in layer.row.outputs if row.continues]
        inputs |= dict(zip(names, states, strict=True))
        parts.append(y)
    assert_close(whole, (torch.cat(parts, dim=1), *states), "fp32")


def check_refused(layer: Layer, params: ctypes.Structure, message: str) -> None:
    """A call of both functions with params gets MAMBA_INVALID and the line."""
    library = kernel_library.library().functions
    if not cuda_queries.cuda_architectures(library):
        pytest.skip("the kernels were built without CUDA")
    assert layer.function("step_cuda")(params, None, None) == kernel_library.INVALID
    assert library.mamba_last_error().decode() == message
    assert layer.function("cuda")(params, multiply, None, None, None) == kernel_library.INVALID


def check_workspace(layer: Layer, sizes: Callable[..., ctypes.Structure]) -> None:
    """It grows with the rows. sizes: of a small call, with changes."""
    if not cuda_queries.cuda_architectures(kernel_library.library().functions):
        pytest.skip("the kernels were built without CUDA")
    step = layer.function("step_cuda_workspace")
    assert 0 < step(sizes()) <= step(sizes(batch=8))
    whole = layer.function("cuda_workspace")
    assert step(sizes(batch=8)) < whole(sizes(length=1000)) < whole(sizes(length=2000))
    for function, most in ((step, 8), (whole, 40)):
        bytes_of_rows = [function(sizes(batch=rows)) for rows in range(1, most + 1)]
        assert bytes_of_rows == sorted(bytes_of_rows), "TensorRT asks for the most rows alone"
    for rows in range(1, 9):
        assert step(sizes(batch=rows)) <= whole(sizes(batch=rows)), "the GPU may not be there"
    for refused in (sizes(batch=0), sizes(batch=2**31 - 1, length=2**31 - 1), sizes(d_state=2**40)):
        assert step(refused) == whole(refused) == 0
    assert step(sizes(batch=9)) == 0, "a step takes 8 rows"
