"""The kernels' parameter structs, as the rows give them."""

from __future__ import annotations

import pytest

from mamba_export.contract import layout
from mamba_export.contract.operators import CAUSAL_CONV1D, MAMBA_LAYER, OPERATORS, SELECTIVE_SCAN
from mamba_export.contract.spec import Operator, Size, T, Tensor, axes


def test_fields_follow_the_rule() -> None:
    names = {op.name: [field.name for field in layout.fields(op)] for op in OPERATORS}
    assert names["SelectiveScan"] == [
        "batch", "length", "d_inner", "d_state", "n_groups", "dtype", "delta_softplus", "reverse",
        "exact_zoh", "u", "delta", "B", "C", "z", "A", "D", "delta_bias", "initial_state", "y", "last_state",
    ]  # fmt: skip
    assert names["CausalConv1d"] == [
        "batch", "length", "channels", "d_conv", "dtype", "silu", "reverse",
        "x", "weight", "bias", "initial_state", "y", "last_state",
    ]  # fmt: skip
    assert names["MambaLayer"][7:12] == [
        "dtype", "hidden_dtype", "epsilon", "constant_weights", "hidden",
    ]  # fmt: skip


def test_types_in_c() -> None:
    types = {field.name: layout.c_type(field) for field in layout.fields(SELECTIVE_SCAN)}
    assert types["batch"] == "int64_t"
    assert (types["dtype"], types["reverse"], types["u"]) == (
        "mamba_dtype",
        "int",
        "mamba_sequence",
    )
    assert (types["A"], types["y"], types["last_state"]) == ("const float*", "void*", "float*")
    layer = {field.name: layout.c_type(field) for field in layout.fields(MAMBA_LAYER)}
    assert (layer["epsilon"], layer["hidden"]) == ("float", "const void*")


def test_sizes_of_the_structs() -> None:
    assert layout.packer(CAUSAL_CONV1D).size == 4 * 8 + 3 * 4 + 4 + 3 * 8 + 5 * 8  # 4 of padding
    assert layout.packer(SELECTIVE_SCAN).size == 5 * 8 + 3 * 4 + 4 + 5 * 24 + 6 * 8


def test_every_size_has_a_source() -> None:
    assert layout.size_sources(SELECTIVE_SCAN) == {
        "batch": (0, 0), "length": (0, 1), "d_inner": (0, 2), "d_state": (2, 1), "n_groups": (3, 2),
    }  # fmt: skip
    sources = {
        name: MAMBA_LAYER.inputs[index].name
        for name, (index, _) in layout.size_sources(MAMBA_LAYER).items()
    }
    assert (sources["d_inner"], sources["dt_rank"]) == ("conv_weight", "dt_proj_weight")
    assert layout.dtype_source(MAMBA_LAYER) == 2


def test_a_size_without_a_source_is_refused() -> None:
    op = Operator(
        "Op",
        "op",
        (Tensor("x", axes("batch, width - 1"), T),),
        (),
        (),
        (Size("batch", 1), Size("width", 2)),
    )
    with pytest.raises(ValueError, match="no input has an axis that is the size width alone"):
        layout.size_sources(op)
    with pytest.raises(ValueError, match="no input of dtype class R"):
        layout.dtype_source(op, "R")
