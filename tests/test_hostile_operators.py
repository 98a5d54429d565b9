"""Hostile calls of the operators, in PyTorch and in ONNX Runtime: an answer of the right shape, or one line.

Seeded: the number of a case is its seed. ``MAMBA_HOSTILE_CASES`` asks for more of them.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch._subclasses.fake_tensor import FakeTensorMode

from mamba_export import contract
from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.contract import layout, spec
from mamba_export.contract.spec import Operator
from mamba_export.export.functions import function_protos
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.operators import find, native
from mamba_export.operators.selective_scan.reference import selective_scan_reference
from mamba_export.verify.cases import Case
from mamba_export.verify.operators import one_node_model

CASES = int(os.environ.get("MAMBA_HOSTILE_CASES", "600"))
HUGE = (2**31, 2**33, 2**40)
MOST = 1 << 20  # elements of a tensor that is really made

needs_kernels = pytest.mark.skipif(not native.available(), reason=native.why_absent())
needs_library = pytest.mark.skipif(CUSTOM_OPS.path() is None, reason=CUSTOM_OPS.why_absent())


def sizes_of(op: Operator, r: random.Random, hostile: tuple[int, ...]) -> dict[str, int]:
    """A number for each size; in half the cases one of them is hostile."""
    sizes = {size.name: r.randint(1, 4) for size in op.free_sizes}
    for size in op.free_sizes:
        if size.divides:
            sizes[size.divides] = sizes[size.name] * r.randint(1, 2)
    if r.random() < 0.5:
        sizes[r.choice(list(sizes))] = r.choice((0, *hostile))
    return op.with_products(sizes)


def damaged(shape: tuple[int, ...], r: random.Random) -> tuple[int, ...]:
    """The shape with an axis more, less or of another size."""
    kind = r.randrange(3)
    if kind == 0:
        return (*shape, r.randint(0, 2))
    if kind == 1 or not shape:
        return shape[:-1]
    axis = r.randrange(len(shape))
    return (*shape[:axis], r.choice((0, 1, 7)), *shape[axis + 1 :])


def shapes_of(op: Operator, r: random.Random, hostile: tuple[int, ...]) -> list[tuple[int, ...]]:
    sizes = sizes_of(op, r, hostile)
    shapes = [tuple(max(0, size) for size in row.shape(sizes)) for row in op.inputs]
    return [damaged(shape, r) if r.random() < 0.06 else shape for shape in shapes]


# --- PyTorch ---------------------------------------------------------------------------------------


def torch_call(r: random.Random, *, fake: bool) -> tuple[Operator, list[Any]]:
    """An operator, and a call's tensors and attributes."""
    op = r.choice(contract.OPERATORS)
    dtype = r.choice((torch.float32, torch.float16, torch.bfloat16, torch.float64))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    arguments: list[Any] = []
    for row, shape in zip(op.inputs, shapes_of(op, r, HUGE if fake else (5000, 17)), strict=True):
        own = {spec.FP32: wide, spec.T: dtype}.get(row.dtype) or r.choice((wide, dtype))
        if r.random() < 0.02:
            own = r.choice((torch.int64, torch.complex64, torch.bool, torch.float64))
        if (row.is_optional and r.random() < 0.3) or r.random() < 0.01:
            arguments.append(None)
        elif fake:
            arguments.append(torch.empty(shape, dtype=own))
        else:
            # Large ones hold one number, which takes no memory.
            is_large = math.prod(shape) > MOST
            arguments.append(
                torch.full((), 0.25).to(own).expand(shape)
                if is_large
                else torch.rand(shape).to(own)
            )
    for one in op.attributes:
        if not one.derived:
            bad = (math.nan, -1.0, math.inf, 1e300, None)
            good = (True, False) if one.kind == "flag" else (1e-5, 0.0)
            arguments.append(r.choice(bad if r.random() < 0.1 else good))
    return op, arguments


def assert_one_line(op: Operator, error: Exception) -> None:
    """Ours; or PyTorch's own, of a value of another type or a storage that is too large."""
    text = str(error)
    if isinstance(error, ValueError):
        assert text.startswith(f"{op.torch_name}: "), text
        assert "\n" not in text
    else:
        assert isinstance(error, RuntimeError), f"{type(error).__name__}: {text}"
        own = f"{contract.DOMAIN}::{op.torch_name}() Expected a value of type"
        assert own in text or "alloc" in text or "overflow" in text, text


def overflows(op: Operator, arguments: list[Any]) -> list[torch.Tensor]:
    """Where the definition of a layer in fp16 has NaN; of all else False everywhere.

    What a layer rounds to fp16 between its operators may be beyond 65504 (5000 taps of a convolution add up to
    that), and the norm of an infinity is NaN.
    """
    definition = find(op.name)
    assert definition is not None
    with torch.no_grad():
        found = definition[0].reference(*arguments)
    outputs = found if isinstance(found, tuple) else (found,)
    rounds = op.calls_products and arguments[layout.dtype_source(op)].dtype == torch.float16
    return [output.isnan() & rounds for output in outputs]


def assert_answer(op: Operator, arguments: list[Any], answer: Any, *, fake: bool) -> None:
    sizes = layout.sizes_of(op, arguments)
    outputs = answer if isinstance(answer, tuple) else (answer,)
    for row, output in zip(op.outputs, outputs, strict=True):
        assert tuple(output.shape) == row.shape(sizes)
    if not fake and any(output.isnan().any() for output in outputs):
        for output, allowed in zip(outputs, overflows(op, arguments), strict=True):
            assert torch.equal(output.isnan(), allowed)


def test_only_a_layer_in_fp16_may_overflow() -> None:
    r = random.Random(3959)
    torch.manual_seed(3959)
    op, arguments = torch_call(r, fake=False)
    assert op is contract.MAMBA2_LAYER
    assert any(where.any() for where in overflows(op, arguments))
    wide = [one.double() if isinstance(one, torch.Tensor) else one for one in arguments]
    assert not any(where.any() for where in overflows(op, wide))
    answer = getattr(torch.ops.mamba_export, op.torch_name)(*wide)
    assert_answer(op, wide, answer, fake=False)


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
def test_hostile_calls_in_torch(fake: bool) -> None:
    answered = 0
    for case in range(CASES):
        r = random.Random(case)
        torch.manual_seed(case)
        mode = FakeTensorMode() if fake else torch.no_grad()
        try:
            with mode:
                op, arguments = torch_call(r, fake=fake)
        except RuntimeError as error:  # PyTorch has no such fake tensor
            assert "overflow" in str(error)  # noqa: PT017
            continue
        if not fake and sum(a.numel() for a in arguments if isinstance(a, torch.Tensor)) > 8 * MOST:
            continue
        try:
            with mode:
                answer = getattr(getattr(torch.ops, contract.DOMAIN), op.torch_name)(*arguments)
        except Exception as error:
            assert_one_line(op, error)
            continue
        assert_answer(op, arguments, answer, fake=fake)
        answered += 1
    assert CASES / 10 < answered < CASES


def layer_call(op: Operator, epsilon: float) -> Any:
    sizes = op.with_products({size.name: 4 for size in op.free_sizes})
    return getattr(torch.ops.mamba_export, op.torch_name)(
        *(torch.zeros(row.shape(sizes)) for row in op.inputs), epsilon
    )


@pytest.mark.parametrize(
    "op", [contract.MAMBA_LAYER, contract.MAMBA2_LAYER], ids=lambda op: op.name
)
@pytest.mark.parametrize("epsilon", [math.nan, math.inf, -1e-5, 1e300])
def test_an_epsilon_that_is_no_number_is_refused(op: Operator, epsilon: float) -> None:
    layer_call(op, 0.0)
    for mode in (torch.no_grad(), FakeTensorMode()):
        with (
            mode,
            pytest.raises(ValueError, match=rf"{op.torch_name}: epsilon is .*, expected a finite"),
        ):
            layer_call(op, epsilon)


def test_a_required_tensor_that_is_none() -> None:
    with pytest.raises(ValueError, match="causal_conv1d: bias is missing"):
        torch.ops.mamba_export.causal_conv1d(
            torch.zeros(1, 2, 3), torch.zeros(3, 4), None, torch.zeros(1, 3, 3)
        )


def test_fake_tensors_of_known_sizes_are_checked_as_real_ones_are() -> None:
    with FakeTensorMode(), pytest.raises(ValueError, match=r"weight has shape \(2, 4\), expected"):
        torch.ops.mamba_export.causal_conv1d(
            torch.zeros(1, 2, 3), torch.zeros(2, 4), torch.zeros(3), torch.zeros(1, 3, 3)
        )


@needs_kernels
@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("d_state", [16384, 16385, 20001])
def test_very_many_states(length: int, d_state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes are channels up to 16,384 states at more than a few steps, and states beyond."""
    monkeypatch.setenv("MAMBA_EXPORT_BACKEND", "native")
    torch.manual_seed(0)
    sequence, states = (2, length, 3), (2, length, 1, d_state)
    inputs = (
        torch.randn(sequence),
        torch.randn(sequence),
        -torch.rand(3, d_state),
        torch.randn(states),
        torch.randn(states),
        torch.randn(3),
        torch.randn(sequence),
        torch.randn(3),
        torch.randn(2, 3, d_state),
    )
    found = torch.ops.mamba_export.selective_scan(*inputs)
    truth = selective_scan_reference(*(one.double() for one in inputs))
    for own, exact in zip(found, truth, strict=True):
        assert ((own - exact).norm() / exact.norm()).item() <= 1e-5


# --- ONNX Runtime ----------------------------------------------------------------------------------

CPU_OPERATORS = [op for op in contract.OPERATORS if "cpu" in op.kernels]


def hostile_model(r: random.Random) -> tuple[bytes, dict[str, np.ndarray]]:
    """A graph of one node, and arrays for its inputs; the graph's own shapes may differ from theirs."""
    op = r.choice(CPU_OPERATORS)
    form = r.choice(list(op.forms()))
    shapes = dict(zip([row.name for row in op.inputs], shapes_of(op, r, (5000,)), strict=True))
    arrays = {
        row.name: np.full(shapes[row.name], 0.25, np.float32)
        for row in form.inputs
        if math.prod(shapes[row.name]) <= MOST
    }
    inputs = []
    for row in form.inputs:
        known: list[Any] | None = [r.choice((size, f"s{size}")) for size in shapes[row.name]]
        if r.random() < 0.2:
            known = r.choice((None, [2**62] * 3, [0], [-5, 2], [1] * 20, []))
        inputs.append(helper.make_tensor_value_info(row.name, TensorProto.FLOAT, known))
    attributes: dict[str, Any] = {
        "plugin_version": contract.PLUGIN_VERSION,
        "plugin_namespace": "x",
    }
    for one in op.node_attributes:
        if not one.derived and r.random() < 0.98:
            bad = (2, -1, 2**63 - 1, -(2**63), 0.5, -0.5, math.nan, "1", [1, 0], b"\xff")
            good = (0, 1) if one.kind == "flag" else (0.0, 1e-5, 1e38)
            attributes[one.name] = r.choice(bad if r.random() < 0.05 else good)
    names = [row.name if r.random() < 0.99 else "" for row in form.inputs][
        : r.choice((99, 99, 99, 2))
    ]
    outputs = [row.name if r.random() < 0.9 else "" for row in op.outputs]
    node = helper.make_node(form.name, names, outputs, domain=contract.DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "hostile",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=imports)
    return model.SerializeToString(), arrays


def ort_cases() -> Iterator[tuple[int, bytes, dict[str, np.ndarray]]]:
    for case in range(CASES):
        yield (case, *hostile_model(random.Random(case)))


@needs_library
def test_hostile_models_in_onnxruntime() -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    custom_ops.register(options, True)
    answered = 0
    for case, model, arrays in ort_cases():
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            found = session.run(None, arrays)
        except Exception as error:
            text = str(error)
            assert text, case
            if "mamba_export " in text:
                assert "\n" not in text, f"{case}: {text}"
                assert "internal error" not in text, f"{case}: {text}"
            continue
        answered += 1
        assert not any(np.isnan(array).any() for array in found), case
    assert CASES / 20 < answered < CASES


# --- No memory to work in --------------------------------------------------------------------------

MANY_STATES = 1 << 24
CHILD = """
import resource, sys
import numpy as np

def address_space():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def limit(extra):
    most = address_space() + extra
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

N, model = int(sys.argv[1]), sys.argv[2]
one, states = np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1, N), np.float32)
scalar, A = np.ones(1, np.float32), -np.ones((1, N), np.float32)
arrays = dict(u=one, delta=one, A=A, B=states, C=states, D=scalar, z=one, delta_bias=scalar,
              initial_state=states[0])
if model:
    import onnxruntime as ort
    from mamba_export.backends.onnxruntime import custom_ops
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.enable_cpu_mem_arena = False
    custom_ops.register(options, True)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    call = lambda: session.run(None, arrays)
else:
    import torch, mamba_export
    from mamba_export.operators.selective_scan import torch_op
    torch.set_num_threads(1)
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    call = lambda: torch.ops.mamba_export.selective_scan(*tensors)
call()
limit(6 * N)  # the state that comes out takes 4 N bytes, the work 8 N
try:
    call()
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "runtime",
    [pytest.param("torch", marks=needs_kernels), pytest.param("onnxruntime", marks=needs_library)],
)
def test_memory_that_is_not_there_is_a_line_with_its_bytes(runtime: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx" if runtime == "onnxruntime" else ""
    if model:
        sizes = {"d_inner": 1, "batch": 1, "length": 1}
        case = Case.of(contract.SELECTIVE_SCAN.name, **sizes, d_state=MANY_STATES)
        functions = [f for f in function_protos(20) if f.name == contract.SELECTIVE_SCAN.name]
        model.write_bytes(one_node_model(case, "fp32", functions, 20))
    environment = {**os.environ, "MAMBA_EXPORT_BACKEND": "native", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(MANY_STATES), str(model)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("RuntimeError " if runtime == "torch" else "Fail ")
    bytes_needed = 2 * 4 * MANY_STATES
    assert f"selective_scan: failed to allocate {bytes_needed} bytes" in lines[0]
