"""OrtSession.run: the model's numbers, any split, states, and every refusal."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from mamba_export import contract
from mamba_export.backends.onnxruntime import loading, providers
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.errors import SessionError
from mamba_export.export import export
from mamba_export.folder.metadata import read_metadata
from mamba_export.models import LayerState, MambaBackbone, MambaConfig, MambaLM

OLDEST_ORT = Path(__file__).parent.parent / ".ort-oldest"


@pytest.fixture(scope="module")
def exported(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("session") / "fp32")


@pytest.fixture(scope="module")
def session(exported: Path) -> OrtSession:
    return OrtSession(exported, providers=["CPUExecutionProvider"], threads=1)


def random_ids(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, length))


def close(found: np.ndarray, expected: np.ndarray, bound: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= bound, f"relative error {error:.2e} above {bound:.0e}"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 65])
def test_logits_and_states_are_the_models(
    session: OrtSession, tiny_model: MambaLM, batch: int, length: int
) -> None:
    ids = random_ids(batch, length)
    with torch.no_grad():
        expected, expected_state = tiny_model(torch.from_numpy(ids))
    logits, state = session.run(ids)
    assert logits.dtype == np.float32
    close(logits, expected.numpy())
    flat = [tensor for layer in expected_state for tensor in layer]
    assert state.batch == batch
    for found, tensor in zip(state.numpy(), flat, strict=True):
        close(found, tensor.numpy())


def test_a_given_state_is_used_and_left_as_it_is(session: OrtSession, tiny_model: MambaLM) -> None:
    rng = np.random.default_rng(3)
    arrays = [
        rng.normal(size=info.past.resolve({"batch": 2})).astype(np.float32)
        for info in session.metadata.states
    ]
    tensors = [torch.from_numpy(array) for array in arrays]
    layers = [LayerState(*tensors[i : i + 2]) for i in range(0, len(tensors), 2)]
    ids = random_ids(2, 5)
    with torch.no_grad():
        expected, _ = tiny_model(torch.from_numpy(ids), layers)
    state = session.state_from_numpy(arrays)
    for _ in range(2):
        close(session.run(ids, state)[0], expected.numpy())
    for kept, array in zip(state.numpy(), arrays, strict=True):
        np.testing.assert_array_equal(kept, array)


@pytest.mark.parametrize("cuts", [[1], [64], [1, 2, 3], list(range(1, 65)), [0x20, 0x21]])
def test_any_split_is_the_whole(session: OrtSession, cuts: list[int]) -> None:
    ids = random_ids(3, 65)
    whole, whole_state = session.run(ids)
    parts, state = [], None
    for part in np.split(ids, cuts, axis=1):
        logits, state = session.run(part, state)
        parts.append(logits)
    close(np.concatenate(parts, axis=1), whole)
    assert state is not None
    for found, expected in zip(state.numpy(), whole_state.numpy(), strict=True):
        close(found, expected)


def test_advance_is_run_for_the_state(session: OrtSession) -> None:
    ids = random_ids(2, 9)
    for found, expected in zip(
        session.advance(ids).numpy(), session.run(ids)[1].numpy(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_stepper_is_run_token_by_token(session: OrtSession) -> None:
    ids = random_ids(3, 12)
    start = session.advance(ids[:, :5])
    kept = start.numpy()
    stepper, state = session.stepper(start), start
    for position in range(5, 12):
        expected, state = session.run(ids[:, position : position + 1], state)
        np.testing.assert_array_equal(stepper.step(ids[:, position]), expected[:, 0])
        for found, tensor in zip(stepper.state.numpy(), state.numpy(), strict=True):
            np.testing.assert_array_equal(found, tensor)
    for before, after in zip(kept, start.numpy(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_states_go_through_numpy_and_are_copies(session: OrtSession) -> None:
    ids = random_ids(2, 4)
    _, state = session.run(ids)
    expected, _ = session.run(ids, state)
    arrays = state.numpy()
    again = OrtState.from_numpy(arrays, session.device)
    for array in arrays:
        array[:] = np.nan
    for one in (state, again):
        np.testing.assert_array_equal(session.run(ids, one)[0], expected)


def test_select_and_concatenate(session: OrtSession) -> None:
    ids, more = random_ids(3, 6), random_ids(3, 2, seed=1)
    singles = [session.run(row[None])[1] for row in ids]
    joined = session.concatenate(singles)
    assert joined.batch == 3
    order = [2, 0, 2]
    logits, _ = session.run(more, joined.select(order))
    for row, source in enumerate(order):
        alone, _ = session.run(more[row : row + 1], singles[source])
        close(logits[row], alone[0])


def test_nested_lists_and_any_integers(session: OrtSession) -> None:
    expected, _ = session.run([[1, 2, 3]])
    for dtype in (np.int8, np.uint16, np.int32):
        np.testing.assert_array_equal(session.run(np.array([[1, 2, 3]], dtype))[0], expected)
    strided = np.array([[1, 9, 2, 9, 3, 9]])[:, ::2]
    np.testing.assert_array_equal(session.run(strided)[0], expected)


def test_threads_share_a_session(session: OrtSession) -> None:
    inputs = [random_ids(1, 20, seed) for seed in range(4)]
    expected = [session.run(ids)[0] for ids in inputs]
    found: dict[tuple[int, int], np.ndarray] = {}

    def work(index: int) -> None:
        for attempt in range(20):
            _, state = session.run(inputs[index][:, :11])
            found[index, attempt] = session.run(inputs[index][:, 11:], state)[0]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 80
    for (index, _), logits in found.items():
        close(logits, expected[index][:, 11:])


# Other kinds of file


def test_fp16_on_the_cpu(tiny_model: MambaLM, tmp_path: Path) -> None:
    session = OrtSession(export(tiny_model, tmp_path / "fp16", dtype="fp16"), threads=1)
    ids = random_ids(2, 33)
    with torch.no_grad():
        expected, _ = tiny_model(torch.from_numpy(ids))
    logits, state = session.run(ids)
    assert logits.dtype == np.float16
    assert [array.dtype for array in state.numpy()] == [np.float16, np.float32] * 2
    close(logits, expected.numpy(), 2e-2)
    first, state = session.run(ids[:, :10])
    second, _ = session.run(ids[:, 10:], state)
    close(np.concatenate([first, second], axis=1), logits, 1e-2)
    step = session.stepper(state).step(ids[:, 10])
    assert step.dtype == np.float32
    close(step, logits[:, 10], 1e-2)


def test_bf16_on_the_cpu_is_refused_in_one_line_without_our_kernels(
    tiny_model: MambaLM, tmp_path: Path
) -> None:
    folder = export(tiny_model, tmp_path / "bf16", dtype="bf16")
    session = OrtSession(folder, providers=["CPUExecutionProvider"])  # all its products are ours
    ids = np.arange(1, 12)[None]
    with torch.no_grad():
        expected, _ = tiny_model(torch.from_numpy(ids))
    assert session.native
    close(session.run(ids)[0].astype(np.float32), expected.numpy(), 3e-2)
    with pytest.raises(SessionError) as caught:
        OrtSession(folder, providers=["CPUExecutionProvider"], native=False)
    message = str(caught.value)
    assert "is bf16, which the CPU provider of ONNX Runtime" in message
    assert "--dtype fp32" in message
    assert "\n" not in message


def test_a_model_without_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MambaBackbone(MambaConfig(d_model=16, n_layer=1)).eval()
    session = OrtSession(export(model, tmp_path / "embeds"), threads=1)
    x = np.random.default_rng(0).normal(size=(2, 9, 16))
    with torch.no_grad():
        expected, _ = model(torch.from_numpy(x).float())
    whole, _ = session.run(x)  # float64 is converted
    close(whole, expected.numpy())
    first, state = session.run(x[:, :4].astype(ml_dtypes.bfloat16).astype(np.float32))
    assert first.shape == (2, 4, 16)
    for call in (
        lambda: session.generate([[1]]),
        lambda: session.stepper(state),
    ):
        with pytest.raises(SessionError, match=r"(without|no) tokens"):
            call()
    for wrong in (x[..., :15], x[0], x[:, :0], np.full(x.shape, "a")):
        with pytest.raises(SessionError, match="inputs_embeds"):
            session.run(wrong)


def test_last_logits_only(tiny_model: MambaLM, session: OrtSession, tmp_path: Path) -> None:
    last = OrtSession(export(tiny_model, tmp_path / "last", last_logits_only=True), threads=1)
    ids = random_ids(2, 7)
    logits, _ = last.run(ids)
    assert logits.shape == (2, 1, 256)
    close(logits, session.run(ids)[0][:, -1:])
    prompts = [[1, 2, 3], [4]]
    assert [one.tokens for one in last.generate(prompts, max_new_tokens=8)] == [
        one.tokens for one in session.generate(prompts, max_new_tokens=8)
    ]


def bf16_counter(folder: Path) -> Path:
    """A graph of casts, which the CPU provider computes in bf16: the state counts the tokens by sums."""
    past, present = contract.state_names(1)
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids", "last_axis"], ["sum"], keepdims=1),  # (batch, 1)
        helper.make_node("Unsqueeze", ["sum", "last_axis"], ["sum3"]),  # (batch, 1, 1)
        helper.make_node("Cast", [past[0]], ["state"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["state", "sum3"], ["new"]),
        helper.make_node("Cast", ["new"], [present[0]], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["new"], ["logits"], to=TensorProto.BFLOAT16),
        helper.make_node("Identity", [past[1]], [present[1]]),
    ]
    bf16, fp32 = TensorProto.BFLOAT16, TensorProto.FLOAT
    state = ("batch", 1, 4)
    inputs = [("input_ids", TensorProto.INT64, ("batch", "length"))]
    inputs += [(past[0], bf16, state), (past[1], fp32, state)]
    outputs = [("logits", bf16, state), (present[0], bf16, state), (present[1], fp32, state)]
    graph = helper.make_graph(
        nodes,
        "counter",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [helper.make_tensor("last_axis", TensorProto.INT64, [1], [-1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / contract.MODEL_FILE)
    names = {TensorProto.INT64: "int64", bf16: "bf16", fp32: "fp32"}

    def describe(values: list) -> list[dict]:  # type: ignore[type-arg]
        return [{"name": n, "dtype": names[d], "shape": list(s)} for n, d, s in values]

    content = {
        "format": 1,  # of a folder of before programs, which still runs
        "contract_version": contract.CONTRACT_VERSION,
        "dtype": "bf16",
        "opset": 20,
        "last_logits_only": True,
        "vocab_size": 4,
        "eos_token_id": None,
        "inputs": describe(inputs),
        "outputs": describe(outputs),
        "states": [{"past": a, "present": b} for a, b in zip(past, present, strict=True)],
        "model": {},
        "source": {},
        "versions": {},
    }
    (folder / contract.METADATA_FILE).write_text(json.dumps(content))
    return folder


def test_bf16_tensors_keep_their_bits(tmp_path: Path) -> None:
    session = OrtSession(bf16_counter(tmp_path), threads=1)
    start = np.array([[[0.5, -1.25, 3.0, 0.0078125]]], ml_dtypes.bfloat16)
    state = OrtState.from_numpy([start, np.zeros((1, 1, 4), np.float32)])
    logits, after = session.run([[1, 2]], state)
    assert logits.dtype == ml_dtypes.bfloat16
    expected = (start.astype(np.float32) + 3).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(after.numpy()[0], expected)
    assert after.numpy()[0].dtype == ml_dtypes.bfloat16
    pair = session.concatenate([after, state]).select([1, 0])
    np.testing.assert_array_equal(pair.numpy()[0], np.concatenate([start, expected]))
    step = session.stepper(pair).step(np.array([0, 1]))
    assert step.dtype == np.float32
    assert step.shape == (2, 4)
    np.testing.assert_array_equal(step[0], start[0, 0].astype(np.float32))


# Bad input


def error(call: Callable[[], object]) -> str:
    with pytest.raises(SessionError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((1, 0), np.int64), "length at least 1"),
        (np.zeros((0, 3), np.int64), "batch and length at least 1"),
        ([[]], "length at least 1"),
        (np.zeros(3, np.int64), "expected (batch, length)"),
        (np.zeros((1, 2, 3), np.int64), "expected (batch, length)"),
        ([[1, 2], [3]], "ragged"),
        ([[1.0, 2.0]], "dtype float64, expected integers"),
        ([[True]], "expected integers"),
        ([["a"]], "expected integers"),
        ([[1, 256]], "token id 256 is outside the vocabulary: ids are in [0, 256)"),
        ([[-1, 5]], "token id -1 is outside"),
        (np.array([[2**64 - 1]], np.uint64), "token id 18446744073709551615 is outside"),
    ],
)
@pytest.mark.parametrize("method", ["run", "advance"])
def test_bad_tokens(session: OrtSession, method: str, ids: object, message: str) -> None:
    assert message in error(lambda: getattr(session, method)(ids))


def test_bad_states(session: OrtSession) -> None:
    ids = random_ids(2, 3)
    good = session.run(ids)[1].numpy()
    conv, scan = good[:2]

    def run(arrays: list[np.ndarray]) -> str:
        return error(lambda: session.run(ids, OrtState.from_numpy(arrays)))

    assert "state has 3 tensors, the model has 4" in run(good[:3])
    assert "has dtype fp16, expected fp32" in run([conv.astype(np.float16), *good[1:]])
    assert "has batch 1, the input has batch 2" in run([array[:1] for array in good])
    assert "past_key_values.0.recurrent_state has shape" in run([conv, scan[..., :8], *good[2:]])
    assert "past_key_values.0.conv_state has shape" in run([conv[..., 0], *good[1:]])
    assert "past_key_values.1.conv_state has batch 1" in run([conv, scan, good[2][:1], good[3]])
    assert "float64" in run([conv.astype(np.float64), *good[1:]])
    assert "past_key_values.0.conv_state has dtype int64" in run([conv.astype(np.int64), *good[1:]])
    assert "state is a list" in error(lambda: session.run(ids, good))
    assert "state is a NoneType" in error(lambda: session.stepper(None))
    assert "the model has 4" in error(lambda: session.state_from_numpy(good[:3]))
    assert "has shape" in error(lambda: session.state_from_numpy([conv, scan[..., :8], *good[2:]]))
    assert "at least one dimension" in error(lambda: OrtState.from_numpy([]))
    assert "batch is 0" in error(lambda: session.initial_state(0))


@pytest.mark.parametrize("indices", [[], [2], [-1]])
def test_bad_selection(session: OrtSession, indices: list[int]) -> None:
    state = session.initial_state(2)
    assert "of a state of batch 2" in error(lambda: state.select(indices))


def test_bad_concatenation(session: OrtSession) -> None:
    state = session.initial_state(1)
    assert "no states" in error(lambda: session.concatenate([]))
    other = OrtState.from_numpy([np.zeros((1, 2, 3), np.float32)])
    assert "different models" in error(lambda: session.concatenate([state, other]))


@pytest.mark.parametrize("version", ["1.19.2", "0.5", "1.3.0+cpu"])
def test_an_onnxruntime_too_old(
    exported: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    message = error(lambda: OrtSession(exported))
    assert f"ONNX Runtime {version} is too old: 1.20 or newer is needed" in message


def test_the_oldest_onnxruntime(session: OrtSession, exported: Path, tmp_path: Path) -> None:
    """The whole runtime under ONNX Runtime 1.20: binding by address, stepping, generation."""
    if not (OLDEST_ORT / "onnxruntime").is_dir():
        pytest.skip("ONNX Runtime 1.20 is not in .ort-oldest: `make test` puts it there")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import onnxruntime\n"
        "from mamba_export import OrtSession\n"
        "session = OrtSession(sys.argv[2])\n"
        "prompts = [[1, 2, 3], [4], [5, 6, 7]]\n"
        "tokens = [one.tokens for one in session.generate(prompts, max_new_tokens=20)]\n"
        "print(onnxruntime.__version__, tokens)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(OLDEST_ORT), str(exported)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = session.generate([[1, 2, 3], [4], [5, 6, 7]], max_new_tokens=20)
    version, _, tokens = result.stdout.strip().partition(" ")
    assert version.startswith("1.20.")
    assert json.loads(tokens) == [one.tokens for one in expected]


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_a_truncated_graph(copied: Path) -> None:
    graph = copied / contract.MODEL_FILE
    graph.write_bytes(graph.read_bytes()[:1000])
    assert "model.onnx cannot be loaded by ONNX Runtime" in error(lambda: OrtSession(copied))


@pytest.mark.parametrize("keep", [None, 100])
def test_missing_or_truncated_weights(copied: Path, keep: int | None) -> None:
    weights = copied / contract.WEIGHTS_FILE
    content = weights.read_bytes()
    weights.unlink()
    if keep is not None:
        weights.write_bytes(content[:keep])
    assert "model.onnx cannot be loaded by ONNX Runtime" in error(lambda: OrtSession(copied))


def test_a_graph_that_is_not_the_metadatas(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(bf16_counter(tmp_path / "other") / contract.MODEL_FILE, copied)
    message = error(lambda: OrtSession(copied))
    assert "is not the file that copy's metadata describes" in message


def test_bad_options(exported: Path) -> None:
    assert "threads is 0" in error(lambda: OrtSession(exported, threads=0))
    most = 4 * (os.cpu_count() or 1)
    for threads in (most + 1, 500, 2**31, 10**400):  # 500 took 35 s on two cores, 2,000 never ended
        assert f"expected at most {most}, 4 for each" in error(
            lambda threads=threads: OrtSession(exported, threads=threads)
        )
    assert "not both" in error(
        lambda: OrtSession(exported, threads=1, session_options=ort.SessionOptions())
    )
    assert "providers is empty" in error(lambda: OrtSession(exported, providers=[]))
    message = error(lambda: OrtSession(exported, providers=["NoSuchProvider"]))
    assert "has no NoSuchProvider (it has " in message


def test_cuda_where_there_is_none(exported: Path) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    message = error(lambda: OrtSession(exported, providers=["CUDAExecutionProvider"]))
    assert message.endswith("install onnxruntime-gpu")
    assert OrtSession(exported).provider == "CPUExecutionProvider"


def test_the_runtime_needs_no_pytorch() -> None:
    script = (
        "import sys, mamba_export.backends.onnxruntime, mamba_export.cli.run\n"
        "heavy = {'torch', 'onnx', 'onnxscript', 'transformers', 'mamba_export.models',\n"
        "         'mamba_export.export'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_norm_that_a_provider_has_no_kernel_for_is_not_fused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ONNX Runtime 1.31 does on CUDA with a bf16 residual stream."""
    calls: list[dict[str, Any]] = []

    def session(model: str, options: object, **more: Any) -> str:
        calls.append(more)
        if "disabled_optimizers" not in more:
            raise RuntimeError("Failed to find kernel for SimplifiedLayerNormalization(1)")
        return "a session"

    monkeypatch.setattr(ort, "InferenceSession", session)
    made = providers.make_session("model.onnx", ort.SessionOptions(), ["CPUExecutionProvider"])
    assert made == "a session"
    assert [more.get("disabled_optimizers") for more in calls] == [
        None,
        ["SimplifiedLayerNormFusion"],
    ]


def test_other_failures_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def session(*_: object, **__: object) -> None:
        raise RuntimeError("no such file")

    monkeypatch.setattr(ort, "InferenceSession", session)
    with pytest.raises(RuntimeError, match="no such file"):
        providers.make_session("model.onnx", ort.SessionOptions(), ["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("provider", "is_module", "reuses"),
    [
        ("CUDAExecutionProvider", True, False),
        ("CUDAExecutionProvider", False, True),
        ("CPUExecutionProvider", True, True),
    ],
)
def test_memory_reuse_is_off_where_it_is_wrong(
    exported: Path, monkeypatch: pytest.MonkeyPatch, provider: str, is_module: bool, reuses: bool
) -> None:
    """A module's function bodies on CUDA; tests/test_programs_cuda.py has the case on a GPU."""
    seen: list[bool] = []

    def session(model: str, options: ort.SessionOptions, *_: object, **__: object) -> None:
        seen.append(options.enable_mem_reuse)
        raise RuntimeError("enough was seen")

    metadata = read_metadata(exported)
    if is_module:
        metadata = dataclasses.replace(metadata, model=None)
    monkeypatch.setattr(loading, "make_session", session)
    with pytest.raises(SessionError, match="enough was seen"):
        loading._open(metadata, ort.SessionOptions(), [provider])
    assert seen == [reuses]
