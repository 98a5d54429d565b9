"""The contract as values: axes, forms, and what follows from them."""

from __future__ import annotations

import pytest

from mamba_export.contract.operators import (
    CAUSAL_CONV1D,
    MAMBA_LAYER,
    OPERATORS,
    SELECTIVE_SCAN,
)
from mamba_export.contract.spec import FP32, NORMAL, Axis, Operator, R, Size, T, Tensor, axes


@pytest.mark.parametrize(
    ("text", "sizes", "number"),
    [
        ("d_inner", {"d_inner": 24}, 24),
        ("d_conv - 1", {"d_conv": 4}, 3),
        ("2 * d_inner", {"d_inner": 24}, 48),
        ("dt_rank + 2 * d_state", {"dt_rank": 3, "d_state": 16}, 35),
        ("3", {}, 3),
        ("-1", {}, -1),
    ],
)
def test_an_axis_is_a_linear_form(text: str, sizes: dict[str, int], number: int) -> None:
    axis = Axis.parse(text)
    assert axis.resolve(sizes) == number
    if axis.terms:
        assert str(axis) == text


def test_forms_leave_out_the_optional_input() -> None:
    gated, ungated, *exact = SELECTIVE_SCAN.forms()
    assert (gated.name, ungated.name) == ("SelectiveScan", "SelectiveScanUngated")
    # A flag of names: nodes without it are those of before, without an attribute of it.
    assert [form.name for form in exact] == [
        "SelectiveScanExactZoh",
        "SelectiveScanUngatedExactZoh",
    ]
    assert [dict(form.flags) for form in exact] == [{"exact_zoh": True}] * 2
    assert gated.flags == ungated.flags == {"exact_zoh": False}
    assert [one.name for one in SELECTIVE_SCAN.node_attributes] == ["delta_softplus", "reverse"]
    assert [t.name for t in gated.inputs if t not in ungated.inputs] == ["z"]
    assert [form.name for form in CAUSAL_CONV1D.forms()] == ["CausalConv1d"]


def test_outputs_are_like_an_input() -> None:
    like = {
        output.name: op.like(output).name
        for op in (SELECTIVE_SCAN, MAMBA_LAYER)
        for output in op.outputs
    }
    assert like == {
        "y": "u",
        "last_state": "initial_state",
        "hidden_out": "hidden",
        "last_conv_state": "conv_state",
        "last_recurrent_state": "recurrent_state",
    }


def test_bytes_count_each_tensor_once() -> None:
    sizes = {"batch": 1, "length": 512, "d_inner": 1536, "d_state": 16, "n_groups": 1}
    sequences = 5 * 512 * 1536 + 2 * 512 * 16  # u, delta, z, y, and B, C in between
    parameters = 1536 * 16 + 1536 + 1536
    states = 2 * 1536 * 16
    moved = SELECTIVE_SCAN.bytes_moved(sizes, {T: 2, FP32: 4})
    assert moved == 2 * (sequences - 512 * 1536) + 4 * (parameters + states)


def test_every_state_has_the_shape_of_what_takes_it() -> None:
    for op in OPERATORS:
        for output in op.outputs:
            if output.continues is not None:
                taken = op.tensor(output.continues)
                assert (taken.axes, taken.dtype) == (output.axes, output.dtype)


def test_an_axis_of_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="x has an axis of unknown size"):
        Operator(
            "Op",
            "op",
            (Tensor("x", axes("batch, width"), T, values=NORMAL),),
            (),
            (),
            (Size("batch", 1),),
        )


def test_a_residual_stream_has_a_class_of_its_own() -> None:
    assert {t.name for t in MAMBA_LAYER.inputs if t.dtype == R} == {"hidden"}
