"""A whole layer of Mamba-2 on the GPU, through the C interface: parity, the same bits, graphs, bad input.

MAMBA_EXPORT_KERNELS=build/libmamba_export_kernels.so pytest -m gpu tests/test_mamba2_layer_cuda.py
"""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
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
from mamba_export.contract.spec import S
from mamba_export.operators.dtypes import TORCH_DTYPES
from mamba_export.operators.mamba2_layer.reference import mamba2_layer_reference

LAYER = Layer(contract.MAMBA2_LAYER, mamba2_layer_reference)

SMALL = {"d_model": 96, "group_heads": 3, "head_dim": 64, "d_state": 64}
SHAPES = [
    {"d_model": 768, "group_heads": 24, "head_dim": 64, "d_state": 128},
    {"d_model": 2560, "group_heads": 80, "head_dim": 64, "d_state": 128},
    {"d_model": 96, "n_groups": 4, "group_heads": 2, "head_dim": 32, "d_state": 16, "d_skip": 32},
    {"d_model": 98, "n_groups": 3, "group_heads": 3, "head_dim": 7, "d_state": 5, "d_conv": 2},
    {"d_model": 64, "group_heads": 2, "head_dim": 80, "d_state": 256, "d_conv": 16},
]


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
@pytest.mark.parametrize(
    ("shape", "rows", "dtype", "is_step"),
    [
        (SHAPES[0], 1, "fp16", 1),
        (SHAPES[0], 4, "fp32", 1),
        (SHAPES[0], 5, "fp32", 0),
        (SHAPES[1], 1, "fp16", 1),
        (SHAPES[1], 4, "fp16", 0),
    ],
    ids=["small", "small, a few", "small, several", "large", "large, a few"],
)
def test_which_sizes_are_a_step(shape: dict[str, int], rows: int, dtype: str, is_step: int) -> None:
    assert Call(LAYER, LAYER.drawn(dtype, batch=rows, length=1, **shape)).is_step == is_step


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("batch", "length"), [(1, 65), (3, 20), (9, 1), (20, 1), (64, 1)], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[0], *SHAPES[2:]], ids=name_of)
@EVERY_DTYPE
def test_many_rows_match_float64(
    dtype: str, shape: dict[str, int], batch: int, length: int
) -> None:
    given = LAYER.drawn(dtype, batch=batch, length=length, **shape)
    call = Call(LAYER, given)
    assert call.is_step == 0
    assert_close(given, call.run(), dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("length", [1, 30], ids=["step", "many rows"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_states_of_16_bits(dtype: str, length: int) -> None:
    given = LAYER.drawn(dtype, low=(S,), batch=2, length=length, **SMALL)
    outputs = Call(LAYER, given).run()
    assert outputs[2].dtype == TORCH_DTYPES[dtype]
    assert_close(given, outputs, dtype)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("limits", [(0.0, 0.05), (0.5, 0.6)], ids=["low", "high"])
@pytest.mark.parametrize("length", [1, 30], ids=["step", "many rows"])
def test_limits_of_dt_and_other_epsilons(length: int, limits: tuple[float, float]) -> None:
    given = LAYER.drawn(
        "fp32", batch=2, length=length, epsilon=0.1, gate_epsilon=0.3,
        dt_min=limits[0], dt_max=limits[1], **SMALL,
    )  # fmt: skip
    assert_close(given, Call(LAYER, given).run(), "fp32")


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize(("batch", "step"), [(3, True), (9, False)], ids=["step", "many rows"])
@EVERY_DTYPE
def test_same_bits_every_time_and_in_place(dtype: str, batch: int, step: bool) -> None:
    given = LAYER.drawn(dtype, batch=batch, length=1, **SMALL)
    check_same_bits_and_in_place(LAYER, given, step)


@pytest.mark.gpu
@NEEDS_KERNELS
@pytest.mark.parametrize("constant", [0, 1], ids=["weights just written", "constant weights"])
@pytest.mark.parametrize("batch", [1, 12])
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
        "batch": 1, "length": 1, "d_model": 32, "n_groups": 1, "group_heads": 4, "head_dim": 16,
        "d_state": 16, "d_conv": 4, "d_skip": 1, "dtype": 1, "dt_max": 1.0,
    }  # fmt: skip
    return LAYER.params(**{**good, **changes})


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
    check_refused(LAYER, params, f"mamba2_layer: {message}")


@NEEDS_KERNELS
def test_workspace_grows_with_the_rows() -> None:
    check_workspace(LAYER, sizes)
