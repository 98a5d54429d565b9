"""A whole layer on the GPU, through the C interface: parity, the same bits every time, graphs, bad input.

MAMBA_EXPORT_KERNELS=build/libmamba_export_kernels.so pytest -m gpu tests/test_layer_cuda.py
"""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from cases import FP32_BOUND, ROUNDING_FLOOR, error
from layer_calls import (
    EVERY_DTYPE,
    FEW_ROWS,
    NEEDS_KERNELS,
    Call,
    Layer,
    assert_close,
    check_refused,
    check_same_bits_and_in_place,
    check_steps_in_a_graph,
    check_token_by_token,
    check_workspace,
    name_of,
)

from mamba_export import contract
from mamba_export.contract.spec import R
from mamba_export.operators.dtypes import TORCH_DTYPES
from mamba_export.operators.mamba_layer.reference import mamba_layer_reference

LAYER = Layer(contract.MAMBA_LAYER, mamba_layer_reference)

SMALL = {"d_model": 96, "d_inner": 192, "dt_rank": 8}
LARGE = {"d_model": 2560, "d_inner": 5120, "dt_rank": 160}
SHAPES = [
    {"d_model": 768, "d_inner": 1536, "dt_rank": 48},
    LARGE,
    {"d_model": 96, "d_inner": 200, "dt_rank": 5, "d_state": 8, "d_conv": 3},
    # Nothing can be read in 16 bytes.
    {"d_model": 98, "d_inner": 201, "dt_rank": 7, "d_state": 5, "d_conv": 2},
    {"d_model": 64, "d_inner": 128, "dt_rank": 8, "d_state": 64, "d_conv": 16},
    {"d_model": 128, "d_inner": 256, "dt_rank": 8, "d_state": 8, "d_conv": 3},
]
ODD_BATCH = {"d_model": 104, "d_inner": 320, "dt_rank": 24}
"""Sizes that a batch's token takes, and that fill none of its tiles."""


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("batch", "length"), FEW_ROWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
@EVERY_DTYPE
def test_step_matches_float64(dtype: str, shape: dict[str, int], batch: int, length: int) -> None:
    given = LAYER.drawn(dtype, batch=batch, length=length, **shape)
    assert_close(given, Call(LAYER, given, step=True).run(), dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("d_model", [768, 1024, 2048, 2560])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_one_token_of_published_widths(dtype: str, d_model: int) -> None:
    """Of 130M to 2.8B: few columns a block, or a multiprocessor of its own, or a shared one."""
    shape = {"d_model": d_model, "d_inner": 2 * d_model, "dt_rank": d_model // 16}
    given = LAYER.drawn(dtype, batch=1, length=1, **shape)
    assert_close(given, Call(LAYER, given, step=True).run(), dtype)
    check_same_bits_and_in_place(LAYER, given, step=True)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("batch", [2, 8, 12, 40])
@pytest.mark.parametrize("d_model", [2048, 2560])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_batch_of_wide_layers(dtype: str, d_model: int, batch: int) -> None:
    """Stages with room for eight, sixteen or all rows; six or four blocks that share out a depth."""
    shape = {"d_model": d_model, "d_inner": 2 * d_model, "dt_rank": d_model // 16}
    given = LAYER.drawn(dtype, batch=batch, length=1, **shape)
    assert_close(given, Call(LAYER, given).run(), dtype)
    check_same_bits_and_in_place(LAYER, given, step=False)
    check_steps_in_a_graph(LAYER, given, constant=1)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("dtype", "batch"), [("fp32", 1), ("fp16", 1), ("bf16", 8), ("fp16", 64)], ids=str
)
def test_a_long_memory_keeps_its_digits_token_by_token(dtype: str, batch: int) -> None:
    """Nothing enters, so that the state decays alone, by the same small step at every token."""
    given = LAYER.drawn(dtype, batch=batch, length=1, **SHAPES[0])
    given.inputs["conv_weight"].zero_()
    given.inputs["conv_bias"].zero_()
    given.inputs["dt_bias"] -= 8
    tokens = 1000
    steps = torch.nn.functional.softplus(given.inputs["dt_bias"].double())[:, None]
    truth = torch.exp(tokens * steps * given.inputs["A"]) * given.inputs["recurrent_state"]
    call = Call(LAYER, given, in_place=True)
    for _ in range(tokens):
        call.queue()
    torch.cuda.synchronize()
    assert error(call.outputs["last_recurrent_state"], truth) <= FP32_BOUND


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("rows", "is_step"), [(1, 1), (2, 0), (8, 0)], ids=str)
def test_large_layers_step_one_row_at_a_time(rows: int, is_step: int) -> None:
    assert Call(LAYER, LAYER.drawn("fp16", batch=rows, length=1, **LARGE)).is_step == is_step


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("batch", "length"),
    [(1, 65), (3, 20), (5, 1), (9, 1), (17, 1), (32, 1), (33, 1), (64, 1), (70, 1)],
    ids=str,
)
@pytest.mark.parametrize("shape", [*SHAPES[:4], ODD_BATCH], ids=name_of)
@EVERY_DTYPE
def test_many_rows_match_float64(
    dtype: str, shape: dict[str, int], batch: int, length: int
) -> None:
    given = LAYER.drawn(dtype, batch=batch, length=length, **shape)
    call = Call(LAYER, given)
    # One token of a few sequences of 16 bits is the step's where the layer is not large.
    is_quick = length == 1 and batch <= 8 and dtype != "fp32" and shape == SHAPES[0]
    assert call.is_step == is_quick
    assert_close(given, call.run(), dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("length", [70, 129])
@pytest.mark.parametrize(("d_inner", "dt_rank"), [(1536, 48), (2000, 64), (200, 48)])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_dt_proj_in_the_scan(dtype: str, d_inner: int, dt_rank: int, length: int) -> None:
    """Of few channels a block; tiles of steps and of channels that are not full."""
    given = LAYER.drawn(dtype, batch=1, length=length, d_model=96, d_inner=d_inner, dt_rank=dt_rank)
    assert_close(given, Call(LAYER, given).run(), dtype)
    check_same_bits_and_in_place(LAYER, given, step=False)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("length", [1, 30], ids=["step", "many rows"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_residual_stream_of_16_bits(dtype: str, length: int) -> None:
    given = LAYER.drawn(dtype, low=(R,), batch=2, length=length, **SMALL)
    hidden = Call(LAYER, given).run()[0]
    assert hidden.dtype == TORCH_DTYPES[dtype]
    # hidden itself is rounded here, so the sum is what can be compared.
    own = error(given.own[0], given.truth[0])
    assert error(hidden, given.truth[0]) <= 2 * own + ROUNDING_FLOOR[hidden.dtype]


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("batch", [3, 24, 64])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], ODD_BATCH], ids=name_of)
@EVERY_DTYPE
def test_same_bits_every_time_and_in_place(dtype: str, shape: dict[str, int], batch: int) -> None:
    given = LAYER.drawn(dtype, batch=batch, length=1, **shape)
    check_same_bits_and_in_place(LAYER, given, step=False)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("constant", [0, 1], ids=["weights just written", "constant weights"])
@pytest.mark.parametrize("batch", [1, 12, 32, 50])
def test_steps_in_a_cuda_graph(batch: int, constant: int) -> None:
    given = LAYER.drawn("fp16", batch=batch, length=1, **SHAPES[0])
    check_steps_in_a_graph(LAYER, given, constant)


@pytest.mark.gpu
@NEEDS_KERNELS
def test_token_by_token_is_the_whole_sequence() -> None:
    check_token_by_token(LAYER, LAYER.drawn("fp32", batch=2, length=24, **SMALL))


def sizes(**changes: Any) -> ctypes.Structure:
    """Sizes of a small layer, without pointers."""
    good = {
        "batch": 1, "length": 1, "d_model": 32, "d_inner": 64, "d_state": 16, "d_conv": 4,
        "dt_rank": 2, "dtype": 1,
    }  # fmt: skip
    return LAYER.params(**{**good, **changes})


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
    check_refused(LAYER, params, message)


@NEEDS_KERNELS
def test_workspace_grows_with_the_rows() -> None:
    check_workspace(LAYER, sizes)
