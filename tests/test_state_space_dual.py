"""State space duality on a CPU: the reference against the dual form, the vectorised path, the functions.

Truths are of ``truths.dual_truth``, which has neither a loop over states nor chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from cases import FP32_BOUND, ROUNDING_FLOOR, double, error
from torch import Tensor
from truths import dual_truth

from mamba_export import export
from mamba_export.contract.operators import LARGEST, STATE_SPACE_DUAL
from mamba_export.errors import ExportError
from mamba_export.export.functions import function_proto
from mamba_export.operators import find, state_space_dual, state_space_dual_reference
from mamba_export.operators.dispatch import forced
from mamba_export.operators.state_space_dual import DEFINITION
from mamba_export.verify.cases import Case
from mamba_export.verify.operators import one_node_model

DUAL = torch.ops.mamba_export.state_space_dual
NAMES = [row.name for row in STATE_SPACE_DUAL.inputs]
X, DT, A, B, C, D, Z, LOG_DECAY, DT_BIAS, STATE = range(len(NAMES))
SEQUENCES = (X, DT, B, C, Z, LOG_DECAY)
FORMS = [(gate, decay) for gate in (True, False) for decay in (True, False)]
"""Whether z and log_decay are there."""
BODY_OPSETS = range(18, 27)
REVERSED = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
EACH_FORM = pytest.mark.parametrize(("gate", "decay"), FORMS, ids=str)


@pytest.fixture(autouse=True)
def _vectorised() -> Iterator[None]:
    with forced("cpu"):
        yield


@dataclass(frozen=True)
class Sizes:
    """batch, length, heads, head_dim, n_groups, d_state, d_skip."""

    batch: int = 2
    length: int = 9
    heads: int = 4
    head_dim: int = 3
    groups: int = 2
    d_state: int = 5
    d_skip: int = 1


def inputs_of(
    sizes: Sizes,
    *,
    gate: bool = True,
    decay: bool = False,
    dtype: torch.dtype = torch.float32,
    shift: float = 0.0,
    narrow_state: bool = False,
) -> list[Any]:
    """Random inputs in the operator's order; ``shift`` is added to dt."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    s = sizes

    def low(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    def full(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=acc)

    steps, states = (s.batch, s.length, s.heads), (s.batch, s.heads, s.head_dim, s.d_state)
    matrices = (s.batch, s.length, s.groups, s.d_state)
    return [
        low(*steps, s.head_dim), low(*steps) + shift, -torch.exp(full(s.heads)), low(*matrices),
        low(*matrices), full(s.heads, s.d_skip), low(*steps, s.head_dim) if gate else None,
        -full(*steps).abs() if decay else None, full(s.heads),
        low(*states) if narrow_state else full(*states),
    ]  # fmt: skip


def assert_right(found: Any, truth: Any, bound: float = FP32_BOUND) -> None:
    for output, exact in zip(found, truth, strict=True):
        assert output.shape == exact.shape
        assert torch.isfinite(output).all()
        assert error(output, exact) <= bound


ODD = [
    Sizes(1, 1, 1, 1, 1, 1),
    Sizes(2, 2, 6, 5, 3, 7),
    Sizes(1, 63, 2, 10, 1, 6, 10),
    Sizes(3, 64, 4, 8, 4, 9, 4),
    Sizes(2, 65, 3, 80, 1, 16),
    Sizes(1, 130, 5, 3, 5, 33),
    Sizes(1, 200, 2, 64, 1, 128),
]
ATTRIBUTES = [(True, 0.0, LARGEST), (True, 0.2, 0.9), (False, 0.0, LARGEST), (False, 0.3, 0.3)]


@REVERSED
@EACH_FORM
@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=str)
def test_the_reference_is_the_dual_form(
    attributes: tuple[bool, float, float], gate: bool, decay: bool, reverse: bool
) -> None:
    inputs = double(inputs_of(Sizes(d_skip=3), gate=gate, decay=decay))
    if not attributes[0]:
        inputs[DT], inputs[DT_BIAS] = inputs[DT].abs(), inputs[DT_BIAS].abs()
    found = state_space_dual_reference(*inputs, *attributes, reverse)
    assert_right(found, dual_truth(*inputs, *attributes, reverse), 1e-13)


@REVERSED
@EACH_FORM
@pytest.mark.parametrize("sizes", ODD, ids=str)
def test_any_shape(sizes: Sizes, gate: bool, decay: bool, reverse: bool) -> None:
    inputs = inputs_of(sizes, gate=gate, decay=decay)
    found = DUAL(*inputs, True, 0.0, LARGEST, reverse)
    assert_right(found, dual_truth(*inputs, reverse=reverse))


@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=str)
def test_limits_of_dt(attributes: tuple[bool, float, float]) -> None:
    inputs = inputs_of(Sizes(length=70))
    if not attributes[0]:
        inputs[DT], inputs[DT_BIAS] = inputs[DT].abs(), inputs[DT_BIAS].abs()
    assert_right(DUAL(*inputs, *attributes), dual_truth(*inputs, *attributes))


@EACH_FORM
@pytest.mark.parametrize("shift", [-80.0, -30.0, -10.0, 10.0, 30.0, 1e4])
def test_extreme_steps(shift: float, gate: bool, decay: bool) -> None:
    inputs = inputs_of(Sizes(length=130), gate=gate, decay=decay, shift=shift)
    assert_right(DUAL(*inputs), dual_truth(*inputs))


def test_huge_and_tiny_steps_beside_each_other() -> None:
    """A step that forgets everything costs nothing of its neighbours' exactness."""
    inputs = inputs_of(Sizes(length=300))
    huge = torch.rand_like(inputs[DT]) < 0.1
    inputs[DT] = torch.where(huge, 1e5 * inputs[DT].abs(), inputs[DT] - 9.0)
    y, last = DUAL(*inputs)
    exact, exact_last = dual_truth(*inputs)
    # A huge step's own output dwarfs the others: they are compared alone.
    small = ~huge & ~huge.roll(1, 1)
    small[:, 0] = False
    y_is_huge = exact.abs().amax(-1) > 1e3
    kept = small & ~y_is_huge
    assert kept.sum() > 50
    assert error(y[kept], exact[kept]) <= FP32_BOUND
    assert_right((y, last), (exact, exact_last))


@pytest.mark.parametrize("factor", [1e2, 1e10, 1e37])
def test_decays_that_underflow(factor: float) -> None:
    """The exponent may be -inf: the state is then gone, and nothing is NaN. So are its gradients."""
    inputs = inputs_of(Sizes(length=70), decay=True, shift=3.0)
    inputs[A] = inputs[A] * factor
    assert_right(DUAL(*inputs), dual_truth(*inputs))
    leaves = [t.requires_grad_() for t in inputs]
    y, last = DUAL(*leaves)
    for gradient in torch.autograd.grad(y.sum() + last.sum(), leaves):
        assert torch.isfinite(gradient).all()


@REVERSED
def test_a_step_of_zero_leaves_the_state(reverse: bool) -> None:
    """A mask: dt exactly 0, without softplus and bias. Such a step is as good as not there."""
    inputs = inputs_of(Sizes(batch=1, length=150, heads=1, groups=1), gate=False)
    inputs[DT], inputs[DT_BIAS] = inputs[DT].abs(), torch.zeros(1)
    kept = torch.rand(150) > 0.4
    inputs[DT][:, ~kept] = 0.0
    y, last = DUAL(*inputs, False, 0.0, LARGEST, reverse)
    short = [t[:, kept] if i in SEQUENCES and t is not None else t for i, t in enumerate(inputs)]
    expected, expected_last = DUAL(*short, False, 0.0, LARGEST, reverse)
    assert_right((y[:, kept], last), (expected, expected_last))
    inputs[DT].zero_()
    assert torch.equal(DUAL(*inputs, False, 0.0, LARGEST, reverse)[1], inputs[STATE])


@REVERSED
@pytest.mark.parametrize("parts", [(1,) * 70, (35, 35), (69, 1), (1, 68, 1), (64, 6)], ids=str)
def test_split_equals_whole(parts: tuple[int, ...], reverse: bool) -> None:
    inputs = inputs_of(Sizes(length=70), decay=True)
    whole, last = DUAL(*inputs, True, 0.0, LARGEST, reverse)
    state, ys, start = inputs[STATE], [], 0
    for size in parts:
        begin = 70 - start - size if reverse else start
        start += size
        cut = [t[:, begin : begin + size] if i in SEQUENCES else t for i, t in enumerate(inputs)]
        y, state = DUAL(*cut[:STATE], state, True, 0.0, LARGEST, reverse)
        ys.append(y)
    assert error(torch.cat(ys[::-1] if reverse else ys, 1), whole) <= FP32_BOUND
    assert error(state, last) <= FP32_BOUND


@pytest.mark.parametrize("narrow_state", [False, True], ids=["fp32 state", "narrow state"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_low_precision(dtype: torch.dtype, narrow_state: bool) -> None:
    inputs = inputs_of(Sizes(length=70), dtype=dtype, narrow_state=narrow_state)
    y, last = DUAL(*inputs)
    truth = dual_truth(*inputs)
    assert (y.dtype, last.dtype) == (dtype, inputs[STATE].dtype)
    for output, exact in ((y, truth[0]), (last, truth[1])):
        floor = ROUNDING_FLOOR.get(output.dtype, FP32_BOUND)
        assert error(output, exact) <= 2 * error(exact.to(output.dtype), exact) + floor


def test_groups_are_shared_matrices() -> None:
    inputs = inputs_of(Sizes(heads=6, groups=3))
    spread = list(inputs)
    spread[B], spread[C] = (t.repeat_interleave(2, dim=2) for t in (inputs[B], inputs[C]))
    assert_right(DUAL(*inputs), DUAL(*spread))


def test_strided_inputs() -> None:
    inputs = inputs_of(Sizes(length=33))
    strided = [
        torch.cat([t, t], -1)[..., : t.shape[-1]] if i in SEQUENCES and t is not None else t
        for i, t in enumerate(inputs)
    ]
    strided[X] = inputs[X].transpose(1, 2).contiguous().transpose(1, 2)
    assert_right(DUAL(*strided), DUAL(*inputs))


def test_defaults_of_the_function() -> None:
    """No skip, no bias, a state of zeros; one group may have no axis; D of each channel."""
    inputs = inputs_of(Sizes(groups=1), gate=False)
    x, dt, decay, matrix, other = inputs[:5]
    found = state_space_dual(x, dt, decay, matrix[:, :, 0], other[:, :, 0], dt_max=float("inf"))
    zeros = torch.zeros(4)
    exact = dual_truth(
        x, dt, decay, matrix, other, zeros[:, None], None, None, zeros, torch.zeros(2, 4, 3, 5)
    )
    assert_right(found, exact)
    skip = torch.randn(4, 3)
    y, _ = state_space_dual(x, dt, decay, matrix, other, skip)
    assert error(y, exact[0] + skip * x) <= FP32_BOUND


@REVERSED
@EACH_FORM
@pytest.mark.parametrize("softplus", [True, False], ids=["softplus", "plain dt"])
def test_gradcheck(softplus: bool, gate: bool, decay: bool, reverse: bool) -> None:
    sizes = Sizes(1, 3, 2, 2, 1, 2, 2)
    inputs = inputs_of(sizes, gate=gate, decay=decay, dtype=torch.float64)
    if not softplus:
        inputs[DT], inputs[DT_BIAS] = 0.1 + inputs[DT].abs(), inputs[DT_BIAS].abs()
    for tensor in inputs:
        if tensor is not None:
            tensor.requires_grad_()

    def call(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return DUAL(*leaves, softplus, 0.05, 1.7, reverse)

    assert torch.autograd.gradcheck(call, inputs)


@REVERSED
def test_gradients_across_chunks(reverse: bool) -> None:
    inputs = inputs_of(Sizes(length=150, d_skip=3), decay=True, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in inputs]
    y, last = DUAL(*leaves, True, 0.0, LARGEST, reverse)
    seeds = torch.randn_like(y), torch.randn_like(last)
    found = torch.autograd.grad((y, last), leaves, seeds)
    exact = dual_truth(*leaves, reverse=reverse)
    for name, one, truth in zip(
        NAMES, found, torch.autograd.grad(exact, leaves, seeds), strict=True
    ):
        assert error(one, truth) <= 1e-12, name


@EACH_FORM
def test_opcheck(gate: bool, decay: bool) -> None:
    inputs = inputs_of(Sizes(), gate=gate, decay=decay)
    for tensor in inputs:
        if tensor is not None:
            tensor.requires_grad_()
    torch.library.opcheck(DUAL.default, tuple(inputs))
    torch.library.opcheck(DUAL.default, (*inputs[:STATE], None))


@EACH_FORM
def test_no_initial_state_is_zeros(gate: bool, decay: bool) -> None:
    """Outputs and gradients; in float64 the state is of float64."""
    leaves = inputs_of(Sizes(length=70), gate=gate, decay=decay)
    leaves[STATE].zero_()
    given = [t for t in leaves[:STATE] if t is not None]
    for tensor in given:
        tensor.requires_grad_()
    found = []
    for state in (leaves[STATE], None):
        y, last = DUAL(*leaves[:STATE], state)
        gradients = torch.autograd.grad(
            (y, last), given, (torch.ones_like(y), torch.ones_like(last))
        )
        found.append((y, last, *gradients))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_file_needs_an_initial_state(tmp_path: Path) -> None:
    class Bare(torch.nn.Module):
        def forward(
            self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor
        ) -> Tensor:
            return DUAL(x, dt, A, B, C, D, None, None, dt_bias, None)[0]

    inputs = [t for t in inputs_of(Sizes(), gate=False, decay=False)[:STATE] if t is not None]
    with pytest.raises(ExportError, match="initial_state is None: give zeros"):
        export(Bare(), tuple(inputs), output=tmp_path / "exported")


@pytest.mark.parametrize("narrow_state", [False, True], ids=["fp32 state", "narrow state"])
def test_autocast_casts_sequences_and_keeps_parameters(narrow_state: bool) -> None:
    inputs = [t.requires_grad_() for t in inputs_of(Sizes(length=20), decay=True)]
    if narrow_state:
        inputs[STATE] = inputs[STATE].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, last = DUAL(*inputs)
    assert (y.dtype, last.dtype) == (torch.bfloat16, inputs[STATE].dtype)
    (y.float().sum() + last.float().sum()).backward()
    assert [t.grad.dtype for t in inputs] == [t.dtype for t in inputs]
    truth, _ = dual_truth(*[t.detach() for t in inputs])
    assert error(y, truth) <= 8 * ROUNDING_FLOOR[torch.bfloat16]


def test_compiled_as_one_graph() -> None:
    inputs = inputs_of(Sizes(length=20))

    def doubled(*tensors: Any) -> Tensor:
        return DUAL(*tensors)[0] * 2

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), doubled(*inputs))


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (X, torch.randn(2, 0, 4, 3), "x has length 0"),
        (X, torch.randn(2, 9, 4), "x has 3 dimensions"),
        (DT, torch.randn(2, 8, 4), r"dt has shape \(2, 8, 4\), expected \(2, 9, 4\)"),
        (A, torch.randn(4, 5), "A has shape"),
        (B, torch.randn(2, 9, 3, 5), "n_groups 3 .* does not divide heads 4"),
        (C, torch.randn(2, 9, 1, 5), "C has shape"),
        (D, torch.randn(4, 2), "d_skip 2 .* does not divide head_dim 3"),
        (Z, torch.randn(2, 9, 4, 3).half(), "z is torch.float16, expected torch.float32"),
        (LOG_DECAY, torch.randn(2, 9, 4).half(), "log_decay is torch.float16"),
        (STATE, torch.randn(2, 4, 3, 6), "initial_state has shape"),
        (STATE, torch.randn(2, 4, 3, 5).half(), "initial_state is torch.float16"),
    ],
)
def test_bad_inputs_are_named(index: int, bad: Tensor, message: str) -> None:
    inputs = inputs_of(Sizes(), decay=True)
    inputs[index] = bad
    with pytest.raises(ValueError, match=message) as caught:
        DUAL(*inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_bad_limits_are_named(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"dt_m(in|ax) is .*expected a finite number"):
        DUAL(*inputs_of(Sizes()), True, *limits)


@pytest.mark.parametrize("opset", BODY_OPSETS)
@pytest.mark.parametrize("form", [form.name for form in STATE_SPACE_DUAL.forms()])
def test_function_body(form: str, opset: int) -> None:
    """In ONNX Runtime without our library: lengths on and off the chunks, huge and tiny steps, both ways."""
    present = {row.name for row in find(form)[1].inputs}
    for length, reverse in ((1, False), (65, True), (130, False)):
        case = Case.of(form, length=length, reverse=reverse, dt_min=1e-4, dt_max=50.0)
        function = function_proto(DEFINITION, find(form)[1], opset)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(
            one_node_model(case, "fp32", [function], opset), options, providers=["CPUExecutionProvider"]
        )  # fmt: skip
        inputs = inputs_of(Sizes(length=length), gate="z" in present, decay="log_decay" in present)
        inputs[DT] = torch.where(torch.rand_like(inputs[DT]) < 0.2, 1e3, inputs[DT] - 5.0)
        feeds = {n: t.numpy() for n, t in zip(NAMES, inputs, strict=True) if t is not None}
        found = [torch.from_numpy(one) for one in session.run(None, feeds)]
        assert_right(found, dual_truth(*inputs, True, 1e-4, 50.0, reverse))
