"""The parity grid and its inputs, as the rows give them."""

from __future__ import annotations

import pytest
import torch

from mamba_export.contract.operators import OPERATORS
from mamba_export.verify.cases import Case, draw, grid

NODES = [form.name for op in OPERATORS for form in op.forms()]


@pytest.mark.parametrize("node", NODES)
def test_the_grid_holds_every_number_that_is_tried(node: str) -> None:
    spec = next(op for op in OPERATORS if node in [form.name for form in op.forms()])
    cases = grid(node)
    form = next(form for form in spec.forms() if form.name == node)
    assert all(dict(case.attributes) | form.flags == dict(case.attributes) for case in cases)
    for size in spec.free_sizes:
        assert {size.usual, *size.tried} <= {case.number(size.name) for case in cases}
    for one in spec.node_attributes:
        if one.kind == "flag":
            assert {dict(case.attributes)[one.name] for case in cases} == {True, False}
    both = {(case.number("batch"), case.number("length")) for case in cases}
    assert {(b, n) for b in (1, 3) for n in (1, 2, 63, 64, 65, 1000)} <= both
    assert len(set(cases)) == len(cases)
    assert len({str(case) for case in cases}) == len(cases), "every point has words of its own"


def test_sizes_that_must_divide_do() -> None:
    for case in grid("SelectiveScan"):
        assert case.number("d_inner") % case.number("n_groups") == 0
    assert {case.number("n_groups") for case in grid("SelectiveScan")} == {1, 2, 4}


def test_inputs_are_drawn_as_the_row_says() -> None:
    case = Case.of("SelectiveScan", delta_softplus=False, n_groups=2)
    inputs = draw(case, seed=1)
    assert inputs["B"].shape == (2, 65, 2, 16)
    assert (inputs["A"] < 0).all()
    assert (inputs["delta"] >= 0).all()
    assert (inputs["delta_bias"] >= 0).all()
    assert (inputs["u"] < 0).any()
    assert all(torch.equal(inputs[name], t) for name, t in draw(case, seed=1).items())
    assert "z" not in draw(Case.of("SelectiveScanUngated"), seed=1)
    extreme = next(case for case in grid("SelectiveScan") if case.extreme)
    assert draw(extreme, seed=1)["delta"].mean() > 15


def test_words() -> None:
    case = Case.of("SelectiveScan", d_state=64, reverse=True, delta_softplus=False)
    assert str(case) == "batch 2, length 65, d_state 64, no delta_softplus, reverse"
    with pytest.raises(ValueError, match="SelectiveScan has no size or attribute width"):
        Case.of("SelectiveScan", width=3)
    with pytest.raises(ValueError, match="there is no operator NoSuchThing"):
        Case.of("NoSuchThing")
