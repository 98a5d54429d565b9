"""Whole layers on the GPU whose large matrices are codes of 4 and 8 bits, through the C interface.

MAMBA_EXPORT_KERNELS=build/libmamba_export_kernels.so pytest -m gpu tests/test_packed_layers_cuda.py
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass, replace
from typing import Any

import layer_calls
import pytest
import torch
from layer_calls import (
    EVERY_DTYPE,
    NEEDS_KERNELS,
    Call,
    Drawn,
    Layer,
    PackedCodes,
    assert_close,
    multiply,
    name_of,
)
from torch import Tensor

from mamba_export import contract, cuda_queries
from mamba_export.operators import kernel_library
from mamba_export.operators.mamba2_layer.reference import mamba2_layer_reference
from mamba_export.operators.mamba_layer.reference import mamba_layer_reference

LAYERS = {
    "mamba": Layer(contract.MAMBA_LAYER, mamba_layer_reference),
    "mamba2": Layer(contract.MAMBA2_LAYER, mamba2_layer_reference),
}
MATRICES = ("in_proj_weight", "out_proj_weight")

SMALLEST = {"d_model": 768, "d_inner": 1536, "dt_rank": 48}
SMALL = {"d_model": 96, "d_inner": 192, "dt_rank": 8}
SMALLEST_2 = {"d_model": 768, "group_heads": 24, "head_dim": 64, "d_state": 128}
SMALL_2 = {"d_model": 128, "group_heads": 16, "head_dim": 8, "d_state": 16}
SHAPES = [
    ("mamba", SMALLEST),
    ("mamba", SMALL),
    ("mamba2", SMALLEST_2),  # in_proj's columns are a multiple of 8 alone
    ("mamba2", SMALL_2),
]
WIDE = {"d_model": 2560, "d_inner": 5120, "dt_rank": 160}
# On an H100 in_proj's blocks have 80 columns of these for one row of 4 bits, 96 for several rows.
LARGE = [
    ("mamba", WIDE),
    ("mamba", {"d_model": 2848, "d_inner": 5280, "dt_rank": 160}),  # uneven shares of warps
    ("mamba", {"d_model": 2048, "d_inner": 4096, "dt_rank": 128}),
    ("mamba2", {"d_model": 2560, "group_heads": 80, "head_dim": 64, "d_state": 128}),
]
"""Shapes whose blocks of in_proj have more columns than SMALLEST's 32, and its depth more rows."""
ODD = {"d_model": 96, "group_heads": 3, "head_dim": 64, "d_state": 64}
"""A layer of Mamba-2 whose in_proj has an odd number of columns."""

EVERY_SHAPE = pytest.mark.parametrize(
    ("layer", "shape"), SHAPES, ids=[f"{name} {name_of(shape)}" for name, shape in SHAPES]
)
EVERY_CODE = pytest.mark.parametrize(
    ("bits", "symmetric"),
    list(itertools.product((4, 8), (True, False))),
    ids=["int4", "uint4", "int8", "uint8"],
)


@dataclass
class Codes:
    """A matrix as codes: the bytes and scales of a file, and in fp32 what they stand for."""

    bits: int
    block: int
    stored: Tensor
    scales: Tensor
    zero_points: Tensor | None
    exact: Tensor

    @classmethod
    def drawn(cls, like: Tensor, bits: int, symmetric: bool, block: int) -> Codes:
        """Random codes, scales and zero points for a matrix of this shape and dtype."""
        depth, columns = like.shape
        r = torch.Generator().manual_seed(depth + columns + bits)
        low = -(1 << (bits - 1)) if symmetric else 0
        spread = (1 << bits) / 12**0.5  # of uniform codes

        def codes(rows: int) -> Tensor:
            return torch.randint(low, low + (1 << bits), (rows, columns), generator=r)

        wide = codes(depth)
        scales = 0.5 + torch.rand(depth // block, columns, generator=r)
        scales = (scales / spread / depth**0.5).to(like.dtype)
        zero_points = None if symmetric else codes(depth // block)
        steps = wide if zero_points is None else wide - zero_points.repeat_interleave(block, 0)
        exact = steps * scales.double().repeat_interleave(block, 0)
        device = layer_calls.GPU
        return cls(
            bits, block, _bytes(wide, bits).to(device), scales.to(device),
            None if zero_points is None else _bytes(zero_points, bits).to(device),
            exact.float().to(device),
        )  # fmt: skip

    def struct(self) -> ctypes.Structure:
        """What the C functions take beside the codes themselves."""
        zero_points = None if self.zero_points is None else self.zero_points.data_ptr()
        return PackedCodes(
            bits=self.bits, blocks=self.exact.shape[0] // self.block,
            scales=self.scales.data_ptr(), zero_points=zero_points,
        )  # fmt: skip


def _bytes(codes: Tensor, bits: int) -> Tensor:
    """As a tensor of an ONNX file: of 4 bits two in a byte, the first in its lower half."""
    flat = (codes.flatten() & ((1 << bits) - 1)).to(torch.uint8)
    if bits == 8:
        return flat
    if flat.numel() % 2:
        flat = torch.cat((flat, flat.new_zeros(1)))
    return flat[0::2] | flat[1::2] << 4


def packed(
    layer: Layer,
    dtype: str,
    bits: int,
    symmetric: bool,
    block: int = 32,
    matrices: tuple[str, ...] = MATRICES,
    **numbers: Any,
) -> tuple[Drawn, dict[str, Codes]]:
    """Inputs with the weights that random codes stand for, and those codes, by the matrix."""
    given = layer.drawn(dtype, **numbers)
    _keep_apart_from_zero(given.inputs)
    codes = {name: Codes.drawn(given.inputs[name], bits, symmetric, block) for name in matrices}
    exact = {**given.inputs, **{name: one.exact for name, one in codes.items()}}
    rounded = {name: exact[name].to(tensor.dtype) for name, tensor in given.inputs.items()}
    truth = layer.reference(*(t.double() for t in exact.values()), *given.attributes)
    own = layer.reference(*rounded.values(), *given.attributes)
    return replace(given, inputs=rounded, truth=truth, own=own), codes


def _keep_apart_from_zero(inputs: dict[str, Tensor]) -> None:
    """Draws a Mamba's C half along its B, so that B C, a factor of every channel's y, is no small rest.

    Where it is 0.16 of |B| |C| = 22, as one draw has it, a single number of u rounded otherwise moves
    the whole output by 2e-3 of it: the definition in T is then off by 0.8e-3 or 2.5e-3, as its sums
    happen to round, and exact products with u in T by 4e-3.
    """
    if "x_proj_weight" not in inputs:
        return
    weight, states = inputs["x_proj_weight"], inputs["A"].shape[1]
    B, C = weight[:, -2 * states : -states].float(), weight[:, -states:].float()
    weight[:, -states:] = ((B + C) / 2**0.5).to(weight.dtype)


class PackedCall(Call):
    """A call of a layer some of whose matrices are codes. It reads no other form of them."""

    def __init__(
        self, layer: Layer, given: Drawn, codes: dict[str, Codes], in_place: bool = False
    ) -> None:
        super().__init__(layer, given, in_place)
        self.codes = codes
        for name, one in codes.items():
            setattr(self.params, name, one.stored.data_ptr())
        structs = {name: one.struct() for name, one in codes.items()}
        self.packed = layer.packed_params(layer=self.params, **structs)
        self.params = self.packed.layer  # of which that is a copy
        size = layer.function("packed_cuda_workspace")(self.packed)
        device = layer_calls.GPU
        self.workspace = torch.full((size,), 255, dtype=torch.uint8, device=device)

    @property
    def is_step(self) -> int:
        return self.layer.function("packed_is_step_cuda")(self.packed)

    def queue(self) -> None:
        run = self.layer.function("packed_cuda")
        stream = torch.cuda.current_stream().cuda_stream
        arguments = (multiply, None, self.workspace.data_ptr(), stream)
        status = run(self.packed, *arguments)
        assert status == 0, kernel_library.library().functions.mamba_last_error().decode()


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 1), (1, 4), (8, 1)], ids=str)
@EVERY_SHAPE
@EVERY_CODE
@EVERY_DTYPE
def test_step_matches_float64(
    dtype: str,
    bits: int,
    symmetric: bool,
    layer: str,
    shape: dict[str, Any],
    batch: int,
    length: int,
) -> None:
    row = LAYERS[layer]
    given, codes = packed(row, dtype, bits, symmetric, batch=batch, length=length, **shape)
    call = PackedCall(row, given, codes)
    assert call.is_step == (dtype == "fp16" or batch * length <= 4), "tensor cores take more rows"
    assert_close(given, call.run(), dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("layer", "shape"), LARGE, ids=[f"{name} {shape['d_model']}" for name, shape in LARGE]
)
@pytest.mark.parametrize(
    ("bits", "symmetric"), [(4, True), (4, False), (8, False)], ids=["int4", "uint4", "uint8"]
)
def test_large_step_matches_float64(
    bits: int, symmetric: bool, layer: str, shape: dict[str, Any], batch: int
) -> None:
    row = LAYERS[layer]
    given, codes = packed(row, "fp16", bits, symmetric, batch=batch, length=1, **shape)
    call = PackedCall(row, given, codes)
    assert call.is_step
    assert_close(given, call.run(), "fp16")


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(("layer", "shape"), [("mamba2", SMALLEST_2), ("mamba", WIDE)])
@EVERY_CODE
def test_longer_blocks(
    bits: int, symmetric: bool, layer: str, shape: dict[str, Any], block: int
) -> None:
    row = LAYERS[layer]
    numbers: dict[str, Any] = {"batch": 1, "length": 1, **shape}
    given, codes = packed(row, "fp16", bits, symmetric, block, **numbers)
    call = PackedCall(row, given, codes)
    assert call.is_step
    assert_close(given, call.run(), "fp16")


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("layer", "shape", "batch", "length"),
    [
        ("mamba", SMALLEST, 9, 1),
        ("mamba", SMALL, 2, 40),
        ("mamba2", SMALLEST_2, 9, 1),
        ("mamba2", SMALL_2, 2, 40),
        ("mamba2", ODD, 1, 1),
    ],
    ids=["9 rows", "80 rows", "9 rows of Mamba-2", "80 rows of Mamba-2", "odd columns"],
)
@EVERY_CODE
@EVERY_DTYPE
def test_what_is_no_step_matches_float64(
    dtype: str,
    bits: int,
    symmetric: bool,
    layer: str,
    shape: dict[str, Any],
    batch: int,
    length: int,
) -> None:
    row = LAYERS[layer]
    given, codes = packed(row, dtype, bits, symmetric, batch=batch, length=length, **shape)
    call = PackedCall(row, given, codes)
    assert not call.is_step
    assert_close(given, call.run(), dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("rows", [1, 6, 9])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(("layer", "shape"), [("mamba", SMALL), ("mamba2", SMALL_2)])
def test_one_matrix_alone(layer: str, shape: dict[str, Any], matrix: str, rows: int) -> None:
    row = LAYERS[layer]
    numbers: dict[str, Any] = {"batch": rows, "length": 1, **shape}
    given, codes = packed(row, "fp16", 4, True, matrices=(matrix,), **numbers)
    assert_close(given, PackedCall(row, given, codes).run(), "fp16")


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("layer", "shape", "batch"),
    [*(("mamba2", SMALLEST_2, batch) for batch in (1, 4, 8, 9)), ("mamba", WIDE, 1)],
)
def test_same_bits_every_time_and_in_place(layer: str, shape: dict[str, Any], batch: int) -> None:
    row = LAYERS[layer]
    numbers: dict[str, Any] = {"batch": batch, "length": 1, **shape}
    given, codes = packed(row, "fp16", 4, False, **numbers)
    first = PackedCall(row, given, codes).run()
    for in_place in (False, True):
        again = PackedCall(row, given, codes, in_place).run()
        for one, other in zip(again, first, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [SMALLEST, WIDE], ids=["130M", "2.8B"])
def test_a_step_reads_the_states_that_the_one_before_it_has_written(
    shape: dict[str, Any], bits: int
) -> None:
    """Kernels of steps that follow one another overlap: what they leave is as if each had waited."""
    row = LAYERS["mamba"]
    numbers: dict[str, Any] = {"batch": 1, "length": 1, **shape}
    given, codes = packed(row, "fp16", bits, True, **numbers)

    def in_place() -> PackedCall:
        call = PackedCall(row, given, codes, in_place=True)
        call.params.constant_weights = 1
        return call

    one_by_one, captured = in_place(), in_place()
    for _ in range(8):
        one_by_one.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(8):
            captured.queue()
    graph.replay()
    torch.cuda.synchronize()
    for name, expected in one_by_one.outputs.items():
        torch.testing.assert_close(captured.outputs[name], expected, rtol=0, atol=0)


@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "layer: codes of in_proj have 5 bits, expected 4 or 8"),
        ({"blocks": 5}, "layer: 5 blocks of in_proj do not divide its 96 rows"),
        ({"blocks": 0}, "layer: 0 blocks of in_proj do not divide its 96 rows"),
        ({"scales": None}, "layer: the scales of in_proj are null"),
    ],
    ids=["bits", "blocks", "no blocks", "scales"],
)
def test_bad_codes_get_a_line(changes: dict[str, Any], message: str) -> None:
    library = kernel_library.library().functions
    if not cuda_queries.cuda_architectures(library):
        pytest.skip("the kernels were built without CUDA")
    row = LAYERS["mamba"]
    # Addresses that nothing reads: what is refused reaches no kernel.
    pointers = {field[0]: 256 for field in row.params._fields_ if field[1] is ctypes.c_void_p}
    params = row.params(batch=1, length=1, d_state=16, d_conv=4, dtype=1, **SMALL, **pointers)
    codes = PackedCodes(**{"bits": 4, "blocks": 3, "scales": 256, **changes})
    packed = row.packed_params(layer=params, in_proj_weight=codes)
    run = row.function("packed_cuda")
    assert run(packed, multiply, None, 256, None) == kernel_library.INVALID
    assert library.mamba_last_error().decode() == message
