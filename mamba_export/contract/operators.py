"""The operators, a row each. Their mathematics stands in ``mamba_export/operators``, a folder each."""

from __future__ import annotations

from mamba_export.contract.spec import (
    FP32,
    NEGATIVE,
    WEIGHT,
    Attribute,
    Operator,
    R,
    S,
    Size,
    T,
    Tensor,
    axes,
)

LARGEST = 3.4028234663852886e38
"""The largest fp32 number: an upper limit that limits nothing."""

_BATCH = Size("batch", 2, (1, 3))
_LENGTH = Size("length", 65, (1, 2, 63, 64, 1000))
_REVERSE = Attribute("reverse", "flag", False)
"""Walks the sequence from its last step to its first; states then belong to that walk."""

_WIDTHS = (1, 8, 130, 1536)
"""Below a vector, a vector, several tasks with an odd tail, and the smallest published model."""

SELECTIVE_SCAN = Operator(
    name="SelectiveScan",
    torch_name="selective_scan",
    inputs=(
        Tensor("u", axes("batch, length, d_inner"), T, strided=True),
        Tensor(
            "delta",
            axes("batch, length, d_inner"),
            T,
            strided=True,
            positive_unless="delta_softplus",  # without softplus a step must not be negative
            extremes=((20.0, 10.0), (-20.0, 10.0)),  # exp(dt A) underflows to 0; dt vanishes
        ),
        Tensor("A", axes("d_inner, d_state"), FP32, weight=True, values=NEGATIVE),
        Tensor("B", axes("batch, length, n_groups, d_state"), T, strided=True),
        Tensor("C", axes("batch, length, n_groups, d_state"), T, strided=True),
        Tensor("D", axes("d_inner"), FP32, weight=True),
        Tensor("z", axes("batch, length, d_inner"), T, strided=True, without="Ungated"),
        Tensor("delta_bias", axes("d_inner"), FP32, weight=True, positive_unless="delta_softplus"),
        Tensor("initial_state", axes("batch, d_inner, d_state"), FP32, null_is_zeros=True),
    ),
    outputs=(
        Tensor("y", axes("batch, length, d_inner"), T),
        Tensor("last_state", axes("batch, d_inner, d_state"), FP32, continues="initial_state"),
    ),
    attributes=(
        Attribute("delta_softplus", "flag", True),
        _REVERSE,
        # B by exact zero-order hold, (exp(dt A) - 1) / A B, where it else is dt B.
        Attribute("exact_zoh", "flag", False, within="ExactZoh"),
    ),
    sizes=(
        _BATCH,
        _LENGTH,
        Size("d_inner", 24, _WIDTHS),
        Size("d_state", 16, (1, 8, 64, 256)),
        Size("n_groups", 1, (2, 4), divides="d_inner"),
    ),
    kernels=("cpu", "cuda"),
    cases=(
        # A few steps, by the number of states; 6 of them cannot be read in fours.
        {"length": 3, "d_state": 1},
        {"length": 3, "d_state": 6},
        {"length": 3, "d_state": 64},
        {"length": 3, "d_state": 128},
        {"length": 3, "d_state": 256},
        {"length": 3, "d_inner": 130},
        # Many steps of few states, also in groups.
        {"length": 130, "d_state": 1, "n_groups": 4},
        {"length": 130, "d_state": 2},
        {"length": 130, "d_state": 3, "n_groups": 2},
        # Many steps: many channels of all sequences, by how many, with more tiles of steps than a kernel holds
        # at a time; many states, more than registers hold; groups with many states.
        {"length": 40, "batch": 3, "d_inner": 1536},
        {"length": 99, "batch": 67, "d_inner": 56},
        {"length": 37, "batch": 67, "d_inner": 32, "d_state": 8},
        {"length": 40, "d_state": 128},
        {"length": 40, "d_state": 300},
        {"length": 40, "d_state": 32, "n_groups": 2},
        {"length": 40, "d_state": 64, "n_groups": 2},
        {"length": 40, "d_state": 128, "n_groups": 2},
        # Few channels and a length that is cut into many parts.
        {"length": 4099, "batch": 1},
    ),
)

CAUSAL_CONV1D = Operator(
    name="CausalConv1d",
    torch_name="causal_conv1d",
    inputs=(
        Tensor("x", axes("batch, length, channels"), T, strided=True),
        Tensor("weight", axes("channels, d_conv"), FP32, weight=True),
        Tensor("bias", axes("channels"), FP32, weight=True),
        Tensor("initial_state", axes("batch, channels, d_conv - 1"), T),  # oldest step first
    ),
    outputs=(
        Tensor("y", axes("batch, length, channels"), T),
        Tensor("last_state", axes("batch, channels, d_conv - 1"), T, continues="initial_state"),
    ),
    attributes=(Attribute("silu", "flag", True), _REVERSE),
    sizes=(_BATCH, _LENGTH, Size("channels", 24, _WIDTHS), Size("d_conv", 4, (2, 3))),
    kernels=("cpu", "cuda"),
    cases=({"length": 40, "d_conv": 9}, {"length": 1, "channels": 130}),
)

_SMALLEST = {"d_model": 768, "d_inner": 1536, "dt_rank": 48}
"""Sizes of the smallest published model."""

STATE_SPACE_DUAL = Operator(
    name="StateSpaceDual",
    torch_name="state_space_dual",
    inputs=(
        Tensor("x", axes("batch, length, heads, head_dim"), T, strided=True),
        Tensor(
            "dt",
            axes("batch, length, heads"),
            T,
            strided=True,
            positive_unless="dt_softplus",
            extremes=((20.0, 10.0), (-20.0, 10.0)),  # decays underflow to 0; dt vanishes
        ),
        Tensor("A", axes("heads"), FP32, weight=True, values=NEGATIVE),
        Tensor("B", axes("batch, length, n_groups, d_state"), T, strided=True),
        Tensor("C", axes("batch, length, n_groups, d_state"), T, strided=True),
        Tensor("D", axes("heads, d_skip"), FP32, weight=True),  # one of a head, or of each channel
        Tensor(
            "z",
            axes("batch, length, heads, head_dim"),
            T,
            strided=True,
            without="",
            within="Gated",
        ),
        # Of the decay, beside dt A: at most 0.
        Tensor(
            "log_decay",
            axes("batch, length, heads"),
            FP32,
            without="",
            within="WithDecay",
            values=NEGATIVE,
        ),
        Tensor("dt_bias", axes("heads"), FP32, weight=True, positive_unless="dt_softplus"),
        Tensor("initial_state", axes("batch, heads, head_dim, d_state"), R, null_is_zeros=True),
    ),
    outputs=(
        Tensor("y", axes("batch, length, heads, head_dim"), T),
        Tensor("last_state", axes("batch, heads, head_dim, d_state"), R, continues="initial_state"),
    ),
    attributes=(
        Attribute("dt_softplus", "flag", True),
        Attribute("dt_min", "float", 0.0),  # limits of dt, after its bias and softplus
        Attribute("dt_max", "float", LARGEST),
        _REVERSE,
    ),
    sizes=(
        _BATCH,
        _LENGTH,
        Size("heads", 4, (1, 24)),
        Size("head_dim", 16, (1, 64, 80, 128)),
        Size("d_state", 16, (1, 8, 64, 128, 256)),
        Size("n_groups", 1, (2, 4), divides="heads"),
        Size("d_skip", 1, (16,), divides="head_dim"),
    ),
    kernels=("cpu", "cuda"),
    cases=(
        # The shapes of published models, around the chunks of a kernel.
        {"length": 1, "heads": 24, "head_dim": 64, "d_state": 128},
        {"length": 1, "heads": 4, "n_groups": 2},
        {"length": 130, "batch": 1, "heads": 5, "head_dim": 64, "d_state": 128},
        {"length": 257, "batch": 1, "heads": 8, "head_dim": 64, "d_state": 128, "n_groups": 2},
        {"length": 70, "heads": 6, "head_dim": 80, "d_state": 64, "n_groups": 3, "d_skip": 80},
        {"length": 300, "batch": 1, "heads": 2, "head_dim": 64, "d_state": 256},
        {"length": 66, "heads": 3, "head_dim": 10, "d_state": 6},
        # A length that is cut into parts.
        {"length": 4099, "batch": 1, "heads": 2, "head_dim": 64, "d_state": 128},
        # A few steps, of channels and states that fill no vector; limits that most steps meet.
        {"length": 3, "heads": 3, "head_dim": 10, "d_state": 6},
        {"dt_min": 0.5, "dt_max": 1.0},
    ),
)
"""State space duality (Mamba-2): h = exp(dt A + log_decay) h + dt x B, y = C h + D x, then y silu(z)."""

GATED_RMS_NORM = Operator(
    name="GatedRmsNorm",
    torch_name="gated_rms_norm",
    inputs=(
        Tensor("x", axes("batch, length, groups, group_width"), T, strided=True),
        Tensor("z", axes("batch, length, groups, group_width"), T, strided=True),
        Tensor("weight", axes("groups, group_width"), FP32, weight=True),
    ),
    outputs=(Tensor("y", axes("batch, length, groups, group_width"), T),),
    attributes=(
        Attribute("epsilon", "float", 1e-5),
        Attribute("norm_before_gate", "flag", False),
    ),
    sizes=(
        _BATCH,
        _LENGTH,
        Size("groups", 1, (2, 8)),
        Size("group_width", 24, _WIDTHS),
    ),
    kernels=("cpu", "cuda"),
    each_step_alone=True,
)
"""The norm of Mamba-2's block, a group's own: of x silu(z), or of x alone with the gate behind it."""

MAMBA_LAYER = Operator(
    name="MambaLayer",
    torch_name="mamba_layer",
    inputs=(
        Tensor("hidden", axes("batch, length, d_model"), R),
        Tensor("norm_weight", axes("d_model"), FP32, weight=True),
        # The convolution's columns, then the gate's.
        Tensor(
            "in_proj_weight",
            axes("d_model, 2 * d_inner"),
            T,
            weight=True,
            values=WEIGHT,
            packs=True,
        ),
        Tensor("conv_weight", axes("d_inner, d_conv"), FP32, weight=True),
        Tensor("conv_bias", axes("d_inner"), FP32, weight=True),
        Tensor(
            "x_proj_weight", axes("d_inner, dt_rank + 2 * d_state"), T, weight=True, values=WEIGHT
        ),
        Tensor("dt_proj_weight", axes("dt_rank, d_inner"), T, weight=True, values=WEIGHT),
        Tensor("dt_bias", axes("d_inner"), FP32, weight=True),
        Tensor("A", axes("d_inner, d_state"), FP32, weight=True, values=NEGATIVE),
        Tensor("D", axes("d_inner"), FP32, weight=True),
        Tensor(
            "out_proj_weight", axes("d_inner, d_model"), T, weight=True, values=WEIGHT, packs=True
        ),
        Tensor("conv_state", axes("batch, d_inner, d_conv - 1"), T),  # oldest step first
        Tensor("recurrent_state", axes("batch, d_inner, d_state"), FP32),
    ),
    outputs=(
        Tensor("hidden_out", axes("batch, length, d_model"), R),
        Tensor("last_conv_state", axes("batch, d_inner, d_conv - 1"), T, continues="conv_state"),
        Tensor(
            "last_recurrent_state",
            axes("batch, d_inner, d_state"),
            FP32,
            continues="recurrent_state",
        ),
    ),
    attributes=(
        Attribute("epsilon", "float", 1e-5),  # added under the root of the norm
        # How the output of x_proj is split into dt, B and C.
        Attribute("split", "ints", derived=axes("dt_rank, d_state, d_state")),
    ),
    sizes=(
        _BATCH,
        _LENGTH,
        Size("d_model", 12, (65, 768)),
        Size("d_inner", 24, (130, 1536)),
        Size("d_state", 16, (1, 8, 64)),
        Size("d_conv", 4, (2, 3)),
        Size("dt_rank", 3, (1, 48)),
    ),
    kernels=("cpu", "cuda"),
    constant_weights=True,
    calls_products=True,
    cases=(
        # One token of one sequence, and of some, in the smallest published model and at odd widths.
        {"length": 1, "batch": 1, **_SMALLEST},
        {"length": 1, "batch": 3, **_SMALLEST},
        {"length": 1, "batch": 1, "d_model": 65, "d_inner": 130},
        {"length": 1, "batch": 1, "d_state": 64},
        {"length": 1, "batch": 1, "d_conv": 2},
        {"length": 3, "batch": 1},
        # One token of a batch, with more of dt_rank than a tile of tensor cores is deep; many rows.
        {"length": 1, "batch": 35, "d_model": 96, "d_inner": 192, "dt_rank": 40},
        {"length": 1, "batch": 20, "d_model": 64, "d_inner": 512, "dt_rank": 8},
        {"length": 40, **_SMALLEST},
    ),
)
"""A whole layer of a language model: norm, projections, convolution, scan and residual sum. Its function
calls the operators above, so a runtime without a kernel for it loses nothing."""

_SMALLEST_2 = {"d_model": 768, "group_heads": 24, "head_dim": 64, "d_state": 128}
"""Sizes of the smallest published model of Mamba-2."""

MAMBA2_LAYER = Operator(
    name="Mamba2Layer",
    torch_name="mamba2_layer",
    inputs=(
        Tensor("hidden", axes("batch, length, d_model"), R),
        Tensor("norm_weight", axes("d_model"), FP32, weight=True),
        # The gate's columns z; those of the convolution: x, B and C; dt.
        Tensor(
            "in_proj_weight",
            axes("d_model, 2 * d_inner + 2 * d_group_states + heads"),
            T,
            weight=True,
            values=WEIGHT,
            packs=True,
        ),
        Tensor("conv_weight", axes("d_inner + 2 * d_group_states, d_conv"), FP32, weight=True),
        Tensor("conv_bias", axes("d_inner + 2 * d_group_states"), FP32, weight=True),
        Tensor(
            "dt_bias",
            axes("heads"),
            FP32,
            weight=True,
            extremes=((20.0, 10.0), (-20.0, 10.0)),  # decays underflow to 0; dt vanishes
        ),
        Tensor("A", axes("heads"), FP32, weight=True, values=NEGATIVE),
        Tensor("D", axes("heads, d_skip"), FP32, weight=True),  # one of a head, or of each channel
        Tensor("gate_norm_weight", axes("n_groups, group_heads, head_dim"), FP32, weight=True),
        Tensor(
            "out_proj_weight", axes("d_inner, d_model"), T, weight=True, values=WEIGHT, packs=True
        ),
        # Oldest step first.
        Tensor("conv_state", axes("batch, d_inner + 2 * d_group_states, d_conv - 1"), T),
        Tensor("recurrent_state", axes("batch, heads, head_dim, d_state"), S),
    ),
    outputs=(
        Tensor("hidden_out", axes("batch, length, d_model"), R),
        Tensor(
            "last_conv_state",
            axes("batch, d_inner + 2 * d_group_states, d_conv - 1"),
            T,
            continues="conv_state",
        ),
        Tensor(
            "last_recurrent_state",
            axes("batch, heads, head_dim, d_state"),
            S,
            continues="recurrent_state",
        ),
    ),
    attributes=(
        Attribute("epsilon", "float", 1e-5),  # of the first norm, added under the root
        Attribute("gate_epsilon", "float", 1e-5),  # of the gated norm, which is of each group alone
        Attribute("dt_min", "float", 0.0),  # limits of dt, after its bias and softplus
        Attribute("dt_max", "float", LARGEST),
        # How the output of in_proj is split, and that of the convolution.
        Attribute("split", "ints", derived=axes("d_inner, d_inner + 2 * d_group_states, heads")),
        Attribute("conv_split", "ints", derived=axes("d_inner, d_group_states, d_group_states")),
        # Shapes of x, of B and C, and of the gated norm's input, as Reshape takes them.
        Attribute("x_shape", "ints", derived=axes("0, 0, heads, head_dim")),
        Attribute("B_shape", "ints", derived=axes("0, 0, n_groups, d_state")),
        Attribute("norm_shape", "ints", derived=axes("0, 0, n_groups, -1")),
    ),
    sizes=(
        _BATCH,
        _LENGTH,
        Size("d_model", 12, (65, 768)),
        Size("n_groups", 1, (2, 4)),
        Size("group_heads", 2, (1, 24)),
        Size("head_dim", 8, (1, 64, 80)),
        Size("d_state", 16, (1, 8, 128)),
        Size("d_conv", 4, (2, 3)),
        Size("d_skip", 1, (8,), divides="head_dim"),
        Size("heads", factors=("n_groups", "group_heads")),
        Size("d_inner", factors=("heads", "head_dim")),
        Size("d_group_states", factors=("n_groups", "d_state")),  # of B, and of C
    ),
    kernels=("cpu", "cuda"),
    constant_weights=True,
    calls_products=True,
    cases=(
        # One token of one sequence, and of some, in the smallest published model and at odd widths.
        {"length": 1, "batch": 1, **_SMALLEST_2},
        {"length": 1, "batch": 3, **_SMALLEST_2},
        {"length": 1, "batch": 1, "d_model": 65, "head_dim": 9, "d_state": 6},
        {"length": 1, "batch": 2, "n_groups": 3, "d_skip": 8},
        {"length": 1, "batch": 1, "d_conv": 2},
        {"length": 3, "batch": 1},
        # Many rows.
        {"length": 40, **_SMALLEST_2},
        {"length": 40, "n_groups": 2, "head_dim": 64, "d_state": 64, "d_skip": 64},
    ),
)
"""A whole layer of a Mamba-2 language model: norm, projections, convolution, state space duality, gated norm
and residual sum. As above, its function calls the other operators."""

LINEAR = Operator(
    name="Linear",
    torch_name="linear",
    inputs=(
        Tensor("x", axes("batch, length, in_features"), T),
        Tensor(
            "weight",
            axes("out_features, in_features"),
            T,
            weight=True,
            values=WEIGHT,
            packs=True,
            outputs_first=True,
        ),
    ),
    outputs=(Tensor("y", axes("batch, length, out_features"), T),),
    attributes=(),
    sizes=(
        _BATCH,
        _LENGTH,
        Size("in_features", 24, (1, 65, 768)),
        Size("out_features", 40, (1, 7, 1000)),
    ),
    kernels=("cpu",),
    constant_weights=True,
    calls_products=True,
    each_step_alone=True,
    cases=(
        # Few rows and many.
        {"length": 1, "batch": 1, "in_features": 768, "out_features": 1000},
        {"length": 1, "batch": 7, "in_features": 65, "out_features": 130},
        {"length": 9, "batch": 1, "in_features": 768, "out_features": 130},
    ),
)
"""The product with a language model's head, which may be the embedding. On a CPU runtimes widen a matrix of 16
bits when they open the file, and read twice its bytes for every token; on a GPU they
have quick products, but for a few rows and codes, so there it has kernels of its packed forms."""

OPERATORS = (
    SELECTIVE_SCAN,
    CAUSAL_CONV1D,
    STATE_SPACE_DUAL,
    GATED_RMS_NORM,
    MAMBA_LAYER,
    MAMBA2_LAYER,
    LINEAR,
)
"""Every operator that the package ships, in the order of the C++ table."""
