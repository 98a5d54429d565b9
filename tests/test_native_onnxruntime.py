"""The compiled custom-op library under ONNX Runtime: arithmetic, errors, threads, and how it is found."""

from __future__ import annotations

import copy
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from mamba_export import contract, verify
from mamba_export.backends import registry
from mamba_export.backends.backend import Backend
from mamba_export.backends.onnxruntime import custom_ops, loading
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.contract.operators import GATED_RMS_NORM, STATE_SPACE_DUAL
from mamba_export.contract.spec import Operator
from mamba_export.errors import SessionError
from mamba_export.export import export
from mamba_export.export.functions import function_protos
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaLM
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.verify import operators
from mamba_export.verify.cases import Case, definition_of, draw, grid

OLDEST_ORT = Path(__file__).parent.parent / ".ort-oldest"
OPSET = 20
SCAN, CONV = contract.SELECTIVE_SCAN.name, contract.CAUSAL_CONV1D.name
DUAL, NORM = STATE_SPACE_DUAL.name, GATED_RMS_NORM.name
ROWS = [op for op in contract.OPERATORS if "cpu" in op.kernels]
LAYERS = tuple(op.name for op in ROWS if op.calls_products)
OPERATORS = tuple(form.name for op in ROWS if op.name not in LAYERS for form in op.forms())
FUNCTIONS = [function for function in function_protos(OPSET) if function.name in OPERATORS + LAYERS]
GRAPHS = operators.NodeGraphs(FUNCTIONS, OPSET)

# Absence, and how the library is found, is tested wherever this runs; the rest needs the library.
needs_library = pytest.mark.skipif(CUSTOM_OPS.path() is None, reason=CUSTOM_OPS.why_absent())


def native_options(threads: int = 0) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    custom_ops.register(options, True)
    return options


def open_graph(model: bytes, threads: int = 0) -> ort.InferenceSession:
    return ort.InferenceSession(model, native_options(threads), providers=["CPUExecutionProvider"])


SMALL = {
    "selective_scan": {"d_inner": 8, "n_groups": 2},
    "causal_conv1d": {"channels": 8},
    "state_space_dual": {"heads": 4, "head_dim": 8, "n_groups": 2},
    "gated_rms_norm": {"groups": 2, "group_width": 8},
    "mamba_layer": {"d_model": 8},
    "mamba2_layer": {"d_model": 8, "n_groups": 2},
    "linear": {"in_features": 8},
}


def row_of(op: str) -> Operator:
    return definition_of(op)[0].spec


def small(op: str, **values: Any) -> Case:
    """A point of the grid with few channels, in 2 groups where the operator has groups."""
    return Case.of(op, **SMALL[row_of(op).torch_name], **values)


def along(op: str, size: str) -> list[str]:
    """Inputs that have this size as an axis."""
    rows = definition_of(op)[1].inputs
    return [row.name for row in rows if size in map(str, row.axes)]


def states(op: str) -> list[str]:
    """Inputs that the operator's outputs continue."""
    return [row.continues for row in row_of(op).outputs if row.continues]


def node_session(
    op: str, dtype: str = "fp32", case: Case | None = None, threads: int = 0
) -> ort.InferenceSession:
    model = operators.one_node_model(case or small(op), dtype, FUNCTIONS, OPSET)
    return open_graph(model, threads)


def names_of(op: str) -> list[str]:
    return [tensor.name for tensor in definition_of(op)[1].inputs]


def random_inputs(op: str, case: Case | None = None) -> dict[str, np.ndarray]:
    drawn = draw(case or small(op), seed=0)
    return {name: tensor.float().numpy() for name, tensor in drawn.items()}


def native_backend() -> Backend:
    found, _ = registry.present(("native",))
    return found[0]


@pytest.fixture(scope="module")
def exported(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("native") / "out")


def broken_functions() -> list[onnx.FunctionProto]:
    """Functions whose first output is zero: a graph that runs them cannot give the right answer."""
    functions = []
    for function in FUNCTIONS:
        broken = copy.deepcopy(function)
        output = broken.output[0]
        last = next(node for node in broken.node if output in node.output)
        source, like = last.input
        broken.node.remove(last)
        broken.node.append(helper.make_node("Sub", [source, source], ["zero_y"]))
        broken.node.append(helper.make_node("CastLike", ["zero_y", like], [output]))
        functions.append(broken)
    return functions


@needs_library
@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        (op, dtype)
        for op in OPERATORS + LAYERS
        for dtype in contract.DTYPES
        # One form of state space duality shows what 16-bit sequences do, and one of exact zero-order hold.
        if dtype == "fp32"
        or not (op.startswith(DUAL) or op == "SelectiveScanUngatedExactZoh")
        or op == f"{DUAL}GatedWithDecay"
    ],
)
def test_parity_grid(op: str, dtype: str) -> None:
    backend = native_backend()
    assert backend.exact_products
    for seed, case in enumerate(grid(op)):
        check = operators.check_case(
            case,
            dtype,
            "native",
            seed,
            GRAPHS,
            backend.run_graph,
            exact_products=backend.exact_products,
        )
        assert check.passed, check


@needs_library
@pytest.mark.parametrize("d_conv", [1, 2, 3, 4, 5])
def test_widths_of_the_convolution(d_conv: int) -> None:
    inputs = draw(small(CONV, d_conv=d_conv), seed=0)
    expected = causal_conv1d_reference(**inputs)
    outputs = node_session(CONV).run(None, {k: v.float().numpy() for k, v in inputs.items()})
    for output, exact in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, exact.numpy(), rtol=1e-4, atol=1e-5)


@needs_library
@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        (op, dtype)
        for op in OPERATORS + LAYERS
        for dtype in contract.DTYPES
        # ONNX Runtime's CPU provider has no product in bf16, which a layer's function holds.
        if op in OPERATORS or dtype != "bf16"
    ],
)
def test_the_library_runs_and_not_the_function(op: str, dtype: str) -> None:
    inputs = random_inputs(op)
    good = operators.one_node_model(small(op), dtype, FUNCTIONS, OPSET)
    broken = operators.one_node_model(small(op), dtype, broken_functions(), OPSET)
    expected = open_graph(good).run(None, inputs)
    np.testing.assert_array_equal(open_graph(broken).run(None, inputs)[0], expected[0])
    without = ort.InferenceSession(broken, providers=["CPUExecutionProvider"])
    assert not without.run(None, inputs)[0].any()


@needs_library
@pytest.mark.parametrize("reverse", [False, True])
def test_a_split_run_equals_the_whole(reverse: bool) -> None:
    for op in filter(states, OPERATORS):
        case = small(op, batch=3, length=100, reverse=reverse)
        session, inputs = node_session(op, case=case), random_inputs(op, case)
        whole = session.run(None, inputs)
        cuts = [slice(0, 1), slice(1, 64), slice(64, 100)]
        state, parts = inputs["initial_state"], []
        for cut in reversed(cuts) if reverse else cuts:
            part = {**inputs, **{name: inputs[name][:, cut] for name in along(op, "length")}}
            y, state = session.run(None, {**part, "initial_state": state})
            parts.append(y)
        joined = np.concatenate(parts[::-1] if reverse else parts, axis=1)
        np.testing.assert_allclose(joined, whole[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state, whole[1], rtol=1e-4, atol=1e-5)


@needs_library
@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("op", tuple(filter(states, OPERATORS)))
def test_nan_in_the_state_is_passed_on(op: str, dtype: str) -> None:
    case = small(op, length=2)
    inputs = random_inputs(op, case)
    state = inputs["initial_state"]
    channel = (1, *[3] * (state.ndim - 2))
    state[channel][-1] = np.nan
    y, last_state = node_session(op, dtype, case).run(None, inputs)
    assert np.isnan(y[(1, 0, *channel[1:])])
    assert np.isnan(last_state[channel]).any()
    rest = y[1].reshape(2, -1)
    here = np.ravel_multi_index(channel[1:], y.shape[2:])
    assert np.isfinite(np.delete(rest, here, axis=-1)).all(), "other channels are not touched"
    assert np.isfinite(y[0]).all()
    assert np.isfinite(last_state[0]).all()


@needs_library
@pytest.mark.parametrize("op", OPERATORS + LAYERS)
def test_repetitions_and_thread_counts_give_the_same_bits(op: str) -> None:
    session, inputs = node_session(op, threads=2), random_inputs(op)
    first = session.run(None, inputs)
    for _ in range(1000):
        for output, expected in zip(session.run(None, inputs), first, strict=True):
            assert output.tobytes() == expected.tobytes()
    alone = node_session(op, threads=1).run(None, inputs)
    assert [array.tobytes() for array in alone] == [array.tobytes() for array in first]


@needs_library
def test_two_sessions_in_two_threads(exported: Path) -> None:
    sessions = [OrtSession(exported, native=True) for _ in range(2)]
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, (2, 70)) for _ in range(2)]
    expected = [session.run(ids)[0] for session, ids in zip(sessions, prompts, strict=True)]

    def work(index: int) -> bool:
        # Each thread uses both sessions, so that one kernel also runs in two threads at once.
        return all(
            np.array_equal(sessions[k].run(prompts[k])[0], expected[k])
            for i in range(50)
            for k in [(i + index) % 2]
        )

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(2)))


@needs_library
def test_sessions_outlive_their_options_and_each_other() -> None:
    inputs = random_inputs(CONV)
    expected = node_session(CONV).run(None, inputs)
    for _ in range(20):  # options and session go at each round; the library's objects must not
        np.testing.assert_array_equal(node_session(CONV).run(None, inputs)[0], expected[0])


# --- Errors ----------------------------------------------------------------------------------------


def run_error(op: str, changed: dict[str, np.ndarray]) -> str:
    session, inputs = node_session(op), random_inputs(op)
    with pytest.raises(Exception, match=f"mamba_export {op}: ") as caught:
        session.run(None, {**inputs, **changed})
    session.run(None, inputs)  # the session still works
    return str(caught.value)


@needs_library
@pytest.mark.parametrize(("op", "name"), [(op, name) for op in OPERATORS for name in names_of(op)])
def test_a_wrong_size_names_the_contract_s_tensor(op: str, name: str) -> None:
    array = random_inputs(op)[name]
    if name in {"u", "x"}:  # it sets the sizes, so the next tensor is the one that differs
        message = run_error(op, {name: array[:, :, :-2]})
        assert names_of(op)[1] in message
    else:
        longer = np.concatenate([array, array[:1]], axis=0)
        assert f": {name} has shape {list(longer.shape)}, expected (" in run_error(
            op, {name: longer}
        )


@needs_library
def test_the_text_says_what_was_expected() -> None:
    inputs = random_inputs(SCAN)
    assert (
        "mamba_export SelectiveScan: B has shape [2, 5, 2, 16], "
        "expected (batch = 2, length = 65, n_groups, d_state = 16)"
    ) in run_error(SCAN, {"B": inputs["B"][:, :5]})
    conv = random_inputs(CONV)
    assert (
        "initial_state has shape [2, 8, 2], expected (batch = 2, channels = 8, d_conv - 1 = 3)"
    ) in run_error(CONV, {"initial_state": conv["initial_state"][..., 1:]})
    three = np.concatenate([inputs["B"], inputs["B"][:, :, :1]], axis=2)
    assert "n_groups 3, which does not divide d_inner 8" in run_error(
        SCAN, {"B": three, "C": three}
    )


@needs_library
@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize(("axis", "size"), [(0, "batch"), (1, "length"), (2, "")])
def test_nothing_to_read_is_refused(op: str, axis: int, size: str) -> None:
    along_it = along(op, size or "length")
    inputs = random_inputs(op)
    empty = {
        name: array[tuple([slice(None)] * axis + [slice(0, 0)])]
        for name, array in inputs.items()
        if name in along_it
    }
    assert f"{size} is 0, expected at least 1" in run_error(op, empty)


def raw_model(
    shapes: dict[str, list[int | str] | None],
    attributes: dict[str, Any],
    outputs: tuple[str, ...] = ("y", "last_state"),
) -> bytes:
    """A convolution without declared output shapes and without function, straight on graph inputs."""
    node = helper.make_node(CONV, list(shapes), list(outputs), domain=contract.DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "raw",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs if n],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(contract.DOMAIN, 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=imports).SerializeToString()


SHAPES: dict[str, list[int | str] | None] = {
    "x": ["batch", "length", 8],
    "weight": [8, 4],
    "bias": [8],
    "initial_state": ["batch", 8, 3],
}
ATTRIBUTES = {"silu": 1, "reverse": 0, "plugin_version": "1", "plugin_namespace": "mamba_export"}


@needs_library
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"silu": None}, "the integer attribute silu is missing"),
        ({"reverse": "yes"}, "the integer attribute reverse is missing"),
        ({"reverse": 2}, "attribute reverse is 2, expected 0 or 1"),
        ({"plugin_version": "2"}, "the file has version 2 of this operator, the library has version 1"),
        ({"plugin_version": None}, "plugin_version is missing"),
        ({"plugin_version": "1" * 99}, "plugin_version is missing or too long"),
    ],
)  # fmt: skip
def test_bad_attributes(changed: dict[str, Any], message: str) -> None:
    attributes = {k: v for k, v in {**ATTRIBUTES, **changed}.items() if v is not None}
    with pytest.raises(Exception, match=f"mamba_export CausalConv1d: .*{message}"):
        open_graph(raw_model(SHAPES, attributes))


@needs_library
def test_the_shape_of_y_is_inferred() -> None:
    session = open_graph(raw_model(SHAPES, ATTRIBUTES))
    assert session.get_outputs()[0].shape == ["batch", "length", 8]


@needs_library
@pytest.mark.parametrize("shape", [None, [None, None, 8], [None, None, None]])
def test_unknown_shapes_stay_unknown_and_run(shape: list[None] | None) -> None:
    shapes = {**SHAPES, "x": shape, "initial_state": None}
    session, inputs = open_graph(raw_model(shapes, ATTRIBUTES)), random_inputs(CONV)
    expected = node_session(CONV).run(None, inputs)
    for output, exact in zip(session.run(None, inputs), expected, strict=True):
        np.testing.assert_array_equal(output, exact)


@needs_library
@pytest.mark.parametrize("rank", [1, 2, 4, 9])
def test_a_wrong_rank(rank: int) -> None:
    session, inputs = open_graph(raw_model({**SHAPES, "x": None}, ATTRIBUTES)), random_inputs(CONV)
    inputs["x"] = np.ones([1] * rank, np.float32)
    with pytest.raises(
        Exception, match=r"CausalConv1d: x has shape .* \(batch, length, channels\)"
    ):
        session.run(None, inputs)


@needs_library
def test_an_output_that_the_graph_leaves_out() -> None:
    inputs = random_inputs(CONV)
    expected = node_session(CONV).run(None, inputs)[0]
    for outputs in (("y",), ("y", "")):
        session = open_graph(raw_model(SHAPES, ATTRIBUTES, outputs))
        np.testing.assert_array_equal(session.run(None, inputs)[0], expected)


def test_an_onnxruntime_too_old_for_the_interface() -> None:
    """A runtime whose GetApi knows no version above 1 gets a status with our text."""
    path = CUSTOM_OPS.path()
    if path is None:
        pytest.skip(CUSTOM_OPS.why_absent())
    texts: list[bytes] = []
    create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda code, text: texts.append(text) or 1
    )
    table = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p))
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(table) if version == 1 else None
    )
    version = ctypes.create_string_buffer(b"1.9.0")
    get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(version))
    base = (ctypes.c_void_p * 2)(
        ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(get_version, ctypes.c_void_p)
    )
    function = ctypes.CDLL(str(path)).RegisterCustomOps
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
    assert function(None, base) == 1
    assert texts == [
        b"mamba_export: ONNX Runtime 1.9.0 is too old for this library: 1.17 or newer is needed"
    ]


# --- Whole models and sessions ---------------------------------------------------------------------


@needs_library
def test_verify_covers_both(exported: Path, tiny_model: MambaLM) -> None:
    report = verify(exported, model=tiny_model, backends=["cpu", "native"])
    assert [check for check in report.checks if not check.passed] == []
    counts = {
        name: sum(check.backend == name for check in report.checks)
        for name in ("onnxruntime CPU", "onnxruntime CPU, native")
    }
    assert counts["onnxruntime CPU"] == counts["onnxruntime CPU, native"] >= 20


@needs_library
def test_fp16_model(tiny_model: MambaLM, tmp_path: Path) -> None:
    out = export(copy.deepcopy(tiny_model), tmp_path / "out", dtype="fp16")
    report = verify(out, model=tiny_model, backends=["native"], quick=True)
    assert [check for check in report.checks if not check.passed] == []


@needs_library
def test_a_session_takes_the_library_by_itself(exported: Path) -> None:
    cpu = ["CPUExecutionProvider"]
    by_itself = OrtSession(exported, providers=cpu)
    bodies = OrtSession(exported, providers=cpu, native=False)
    assert by_itself.native
    assert OrtSession(exported, providers=cpu, native=True).native
    assert not bodies.native
    ids = np.arange(130).reshape(2, 65)
    np.testing.assert_allclose(by_itself.run(ids)[0], bodies.run(ids)[0], rtol=1e-3, atol=1e-3)


@needs_library
def test_options_of_the_user(exported: Path) -> None:
    cpu = ["CPUExecutionProvider"]
    options = ort.SessionOptions()
    for _ in range(2):  # registered once, used twice
        assert OrtSession(exported, providers=cpu, session_options=options).native
    assert OrtSession(exported, providers=cpu, session_options=native_options()).native
    untouched = ort.SessionOptions()
    assert not OrtSession(exported, providers=cpu, session_options=untouched, native=False).native
    assert not custom_ops.is_registered(untouched)
    with pytest.raises(SessionError, match="native is False, but session_options has our library"):
        OrtSession(exported, providers=cpu, session_options=options, native=False)


@needs_library
def test_the_oldest_onnxruntime(exported: Path) -> None:
    if not (OLDEST_ORT / "onnxruntime").is_dir():
        pytest.skip("ONNX Runtime 1.20 is not in .ort-oldest: `make test` puts it there")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, onnxruntime\n"
        "from mamba_export import OrtSession\n"
        "session = OrtSession(sys.argv[2], native=True)\n"
        "ids = np.arange(130).reshape(2, 65)\n"
        "whole, _ = session.run(ids)\n"
        "bodies, _ = OrtSession(sys.argv[2], native=False).run(ids)\n"
        "np.testing.assert_allclose(whole, bodies, rtol=1e-3, atol=1e-3)\n"
        "first, state = session.run(ids[:, :1])\n"
        "rest, _ = session.run(ids[:, 1:], state)\n"
        "split = np.concatenate([first, rest], axis=1)\n"
        "np.testing.assert_allclose(split, whole, rtol=1e-3, atol=1e-3)\n"
        "print(onnxruntime.__version__, session.native)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(OLDEST_ORT), str(exported)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    version, native = result.stdout.split()
    assert version.startswith("1.20.")
    assert native == "True"


@needs_library
def test_these_tests_under_the_oldest_onnxruntime() -> None:
    """The interface's corners: 1.20 once ended the process where 1.31 did not mind."""
    if not (OLDEST_ORT / "onnxruntime").is_dir():
        pytest.skip("ONNX Runtime 1.20 is not in .ort-oldest: `make test` puts it there")
    chosen = "not_the_function or inferred or unknown or rank or leaves_out or attributes or names"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(OLDEST_ORT), *sys.path])},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


# --- Finding it ------------------------------------------------------------------------------------


def session_error(action: Callable[[], object]) -> str:
    with pytest.raises(SessionError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_switched_off(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUSTOM_OPS.variable, "none")
    assert CUSTOM_OPS.path() is None
    assert "switched off by MAMBA_EXPORT_LIBRARY=none" in CUSTOM_OPS.why_absent()
    assert not OrtSession(exported).native
    message = session_error(
        lambda: OrtSession(exported, providers=["CPUExecutionProvider"], native=True)
    )
    assert message.startswith("native=True: the native library is switched off")
    _, missing = registry.present(("native",))
    assert "switched off" in missing["onnxruntime CPU, native"]


def test_a_file_that_is_not_there(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUSTOM_OPS.variable, "/nowhere/lib.so")
    message = session_error(lambda: OrtSession(exported, providers=["CPUExecutionProvider"]))
    assert message.startswith("MAMBA_EXPORT_LIBRARY=/nowhere/lib.so is not a file")


def test_a_file_that_does_not_load(
    exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "broken.so"
    path.write_bytes(b"not a library")
    monkeypatch.setenv(CUSTOM_OPS.variable, str(path))
    message = session_error(lambda: OrtSession(exported, providers=["CPUExecutionProvider"]))
    assert message.startswith(f"{path} cannot be loaded by ONNX Runtime")
    assert "set MAMBA_EXPORT_LIBRARY=none to run without it" in message
    assert not OrtSession(exported, providers=["CPUExecutionProvider"], native=False).native


# --- Kernels for CUDA, where there may be no GPU -----------------------------------------------------


def library_without(message: str, **functions: Any) -> Any:
    """A stand-in for the library's C functions."""
    return type(
        "Library",
        (),
        {"mamba_last_error": lambda: message.encode(), **functions},
    )


@needs_library
@pytest.mark.parametrize(
    ("library", "problem"),
    [
        (library_without("", mamba_cuda_architectures=lambda: b""), "was built without CUDA"),
        (
            library_without(
                "GPU 0 is sm_70",
                mamba_cuda_architectures=lambda: b"90",
                mamba_cuda_check_device=lambda device: 2,
            ),
            "GPU 0 is sm_70",
        ),
    ],
    ids=["no CUDA", "another GPU"],
)
def test_a_gpu_without_our_kernels(
    library: Any, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_ops, "load", lambda path: library)
    options = ort.SessionOptions()
    loading._register_native(options, "CUDAExecutionProvider", None)
    assert not custom_ops.is_registered(options), "its CPU kernels would slow the GPU down"
    message = session_error(
        lambda: loading._register_native(options, "CUDAExecutionProvider", True)
    )
    assert message.startswith("native=True: ")
    assert problem in message
    assert problem in custom_ops.cuda_problem()


@needs_library
def test_a_gpu_with_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    covers = library_without(
        "", mamba_cuda_architectures=lambda: b"90", mamba_cuda_check_device=lambda device: 0
    )
    monkeypatch.setattr(custom_ops, "load", lambda path: covers)
    assert custom_ops.cuda_problem() == ""
    options = ort.SessionOptions()
    loading._register_native(options, "CUDAExecutionProvider", False)
    assert not custom_ops.is_registered(options)
    loading._register_native(options, "CUDAExecutionProvider", None)
    assert custom_ops.is_registered(options)
    assert options.get_session_config_entry("mamba_export.cuda") == "1"


def test_switched_off_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUSTOM_OPS.variable, "none")
    assert "switched off" in custom_ops.cuda_problem()


def test_a_provider_that_we_have_nothing_for() -> None:
    options = ort.SessionOptions()
    loading._register_native(options, "OpenVINOExecutionProvider", None)
    assert not custom_ops.is_registered(options)
    message = session_error(
        lambda: loading._register_native(options, "OpenVINOExecutionProvider", True)
    )
    assert "no kernels for OpenVINOExecutionProvider" in message


@needs_library
def test_registration_for_cuda_leaves_the_operators_on_the_cpu() -> None:
    """The operators of the contract have a kernel for either provider, so one set of options serves both."""
    options = ort.SessionOptions()
    custom_ops.register(options, True, for_cuda=True)
    for op in OPERATORS:
        model = operators.one_node_model(small(op), "fp32", FUNCTIONS, OPSET)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        expected = node_session(op).run(None, random_inputs(op))
        for found, wanted in zip(session.run(None, random_inputs(op)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
