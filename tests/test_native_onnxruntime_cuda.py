"""The compiled kernels under ONNX Runtime's CUDA provider: arithmetic, errors, and decoding in CUDA graphs."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from mamba_export import contract
from mamba_export.backends import registry
from mamba_export.backends.backend import Backend
from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.backends.onnxruntime.cuda_stream import (
    CHOOSE_BEST,
    CHOOSE_DRAWN,
    CHOOSE_NOTHING,
    NOT_CHOSEN,
    ChoiceOptions,
    ChooseParams,
    GpuStream,
)
from mamba_export.backends.onnxruntime.device import Device, DeviceTensor
from mamba_export.backends.onnxruntime.graph_stepper import GraphStepper
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.stepper import OrtStepper
from mamba_export.errors import SessionError
from mamba_export.export import export
from mamba_export.export.functions import function_protos
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.generation.sampling import Sampler, Sampling
from mamba_export.models import MambaConfig, MambaLM
from mamba_export.verify import operators
from mamba_export.verify.cases import Case, definition_of, draw, grid

CUDA = "CUDAExecutionProvider"


def _missing() -> str:
    if CUDA not in ort.get_available_providers():
        return "this ONNX Runtime has no CUDA provider (onnxruntime-gpu has)"
    return custom_ops.cuda_problem()


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_missing()), reason=_missing())]

OPSET = 20
OPERATORS = tuple(
    form.name
    for op in contract.OPERATORS
    if set(op.kernels) == {"cpu", "cuda"} and not op.calls_products
    for form in op.forms()
)
FUNCTIONS = [function for function in function_protos(OPSET) if function.name in OPERATORS]
GRAPHS = operators.NodeGraphs(FUNCTIONS, OPSET)
SAMPLED = {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 3}


def backend(name: str = "cuda-native") -> Backend:
    found, missing = registry.present((name,))
    assert found, missing
    return found[0]


def small(op: str, **values: Any) -> Case:
    has = {size.name for size in definition_of(op)[0].spec.sizes}
    sizes = {"channels": 8, "d_inner": 8, "n_groups": 2}
    return Case.of(op, **{name: size for name, size in sizes.items() if name in has}, **values)


def random_inputs(op: str) -> dict[str, np.ndarray]:
    return {name: t.float().numpy() for name, t in draw(small(op), seed=0).items()}


def free_memory() -> int:
    gc.collect()
    return int(torch.cuda.mem_get_info()[0])


# --- Operators -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("op", OPERATORS)
def test_parity_grid(op: str, dtype: str) -> None:
    run_graph = backend().run_graph
    for seed, case in enumerate(grid(op)):
        check = operators.check_case(case, dtype, "cuda native", seed, GRAPHS, run_graph)
        assert check.passed, check


@pytest.mark.parametrize("op", OPERATORS)
def test_the_kernel_runs_and_not_the_function(op: str) -> None:
    model = onnx.load_model_from_string(
        operators.one_node_model(small(op), "fp32", FUNCTIONS, OPSET)
    )
    expected = backend().run_graph(model.SerializeToString(), random_inputs(op))
    for function in model.functions:  # a body that could not be run
        del function.node[:]
        function.node.append(onnx.helper.make_node("NoSuchOperator", [], list(function.output)))
    for found, wanted in zip(
        backend().run_graph(model.SerializeToString(), random_inputs(op)), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "op", [op for op in OPERATORS if len(definition_of(op)[0].spec.outputs) > 1]
)
def test_an_output_that_the_graph_leaves_out(op: str) -> None:
    model = onnx.load_model_from_string(
        operators.one_node_model(small(op), "fp16", FUNCTIONS, OPSET)
    )
    whole = backend().run_graph(model.SerializeToString(), random_inputs(op))
    last = model.graph.output.pop()
    node = next(node for node in model.graph.node if node.domain == contract.DOMAIN)
    kept = [n for n in model.graph.node if last.name not in n.output or n is node]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    node = next(node for node in model.graph.node if node.domain == contract.DOMAIN)
    del node.output[1:]
    (found,) = backend().run_graph(model.SerializeToString(), random_inputs(op))
    np.testing.assert_array_equal(found, whole[0])


@pytest.mark.parametrize("op", OPERATORS)
def test_errors_name_the_operator_and_the_session_lives_on(op: str) -> None:
    run = backend().open_graph(operators.one_node_model(small(op), "fp32", FUNCTIONS, OPSET))
    inputs = random_inputs(op)
    expected = run(inputs)
    name = next(row.name for row in definition_of(op)[1].inputs if row.weight)
    with pytest.raises(Exception, match=f"mamba_export {op}: {name} has shape"):
        run({**inputs, name: inputs[name][:-1]})
    for found, wanted in zip(run(inputs), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_another_version_of_the_contract_is_refused() -> None:
    for op in OPERATORS:
        model = onnx.load_model_from_string(
            operators.one_node_model(small(op), "fp32", FUNCTIONS, OPSET)
        )
        node = next(node for node in model.graph.node if node.domain == contract.DOMAIN)
        version = next(a for a in node.attribute if a.name == contract.ATTR_PLUGIN_VERSION)
        version.s = b"2"
        with pytest.raises(Exception, match="the file has version 2 of this operator"):
            backend().open_graph(model.SerializeToString())


# --- The choice of a token -------------------------------------------------------------------------


def choose(
    stream: GpuStream, logits: DeviceTensor, sampling: Sampling, draws: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    batch, vocab_size = logits.shape
    device = logits.device
    options = stream.host_array((64,), np.uint8)
    choice = ChoiceOptions.from_buffer(options.data)
    choice.choice = CHOOSE_BEST if sampling.temperature == 0 else CHOOSE_DRAWN
    choice.temperature, choice.top_k, choice.top_p = (
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
    )
    choice.repetition_penalty = sampling.repetition_penalty
    host_draws = stream.host_array((batch,), np.float64)
    host_draws[:] = draws
    chosen = stream.host_array((batch,), np.int64)
    scores = DeviceTensor.empty("fp32", logits.shape, device)
    following = DeviceTensor.empty("int64", (batch,), device)
    marks = torch.from_numpy(seen.astype(np.uint8)).cuda()
    torch.cuda.synchronize()
    params = ChooseParams(
        batch=batch,
        vocab_size=vocab_size,
        dtype=contract.DTYPES.index(logits.dtype),
        logits=logits.address,
        scores=scores.address,
        seen=marks.data_ptr(),
        options=options.ctypes.data,
        draws=host_draws.ctypes.data,
        next=following.address,
        chosen=chosen.ctypes.data,
    )
    stream.choose(params)
    stream.wait()
    tokens = chosen.copy()
    np.testing.assert_array_equal(following.numpy(), np.maximum(tokens, 0))
    if sampling.repetition_penalty != 1:
        rows = np.arange(batch)
        expected = seen.copy()
        expected[rows[tokens >= 0], tokens[tokens >= 0]] = True
        np.testing.assert_array_equal(marks.cpu().numpy().astype(bool), expected)
    return tokens


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 31, 256, 50280])
def test_choices_are_those_of_the_host(vocab_size: int, dtype: str) -> None:
    """Draws may differ where a rounded exponential moves a border: at most one in a hundred here."""
    stream = GpuStream(0)
    rng = np.random.default_rng(vocab_size)
    options = [
        Sampling(),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=40),
        Sampling(temperature=1.3, top_p=0.9),
        Sampling(temperature=1.0, top_k=50, top_p=0.5, repetition_penalty=1.2),
        Sampling(temperature=2.0, top_p=1e-4),
        Sampling(temperature=1e-30),
    ]
    differ, count = 0, 0
    for sampling in options:
        values = rng.normal(size=(8, vocab_size)) * rng.choice([0.1, 1, 5], (8, 1))
        values[4:] = values[4:].round(1)  # ties
        torch_dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
        rounded = torch.from_numpy(values).to(torch_dtype)
        bits = rounded.view(torch.int16).numpy() if dtype == "bf16" else rounded.numpy()
        if dtype == "bf16":
            import ml_dtypes

            bits = bits.view(ml_dtypes.bfloat16)
        logits = DeviceTensor.from_numpy(bits, Device("cuda", 0))
        prompts = [rng.integers(0, vocab_size, 20) for _ in range(8)]
        host = Sampler(sampling, prompts, vocab_size)
        seen = np.zeros((8, vocab_size), bool) if host.seen is None else host.seen.copy()
        draws = Sampler(sampling, prompts, vocab_size).draws()
        found = choose(stream, logits, sampling, draws, seen)
        expected = host.sample(rounded.float().numpy())
        if sampling.temperature == 0:
            np.testing.assert_array_equal(found, expected)
        differ += int((found != expected).sum())
        count += 8
    assert differ <= count / 50, f"{differ} of {count} differ"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("batch", "vocab_size"), [(1, 50277), (3, 200_000), (12, 4099), (40, 1025), (70, 257)]
)
def test_rows_of_any_number_and_length(batch: int, vocab_size: int, dtype: str) -> None:
    """Blocks share a row by the batch, and read 16 bytes at once: rows begin anywhere between them."""
    stream = GpuStream(0)
    rng = np.random.default_rng(batch)
    values = rng.normal(size=(batch, vocab_size)).astype(NUMPY_DTYPES[dtype])
    logits = DeviceTensor.from_numpy(values, Device("cuda", 0))
    prompts = [rng.integers(0, vocab_size, 20) for _ in range(batch)]
    differ = 0
    for sampling in (
        Sampling(),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=0.9, top_k=20, top_p=0.8),
        Sampling(temperature=0.2, top_p=0.7),
    ):
        host = Sampler(sampling, prompts, vocab_size)
        seen = np.zeros((batch, vocab_size), bool) if host.seen is None else host.seen.copy()
        draws = Sampler(sampling, prompts, vocab_size).draws()
        found = choose(stream, logits, sampling, draws, seen)
        expected = host.sample(values.astype(np.float32))
        if sampling.temperature == 0:
            np.testing.assert_array_equal(found, expected)
        differ += int((found != expected).sum())
    assert differ <= batch // 20, f"{differ} of {2 * batch} differ"


def test_two_choices_have_slots_that_take_turns() -> None:
    stream = GpuStream(0)
    device = Device("cuda", 0)
    batch, vocab_size = 3, 1000
    values = np.random.default_rng(0).normal(size=(batch, vocab_size)).astype(np.float32)
    logits = DeviceTensor.from_numpy(values, device)
    memory = stream.host_array((64,), np.uint8)
    options = ChoiceOptions.from_buffer(memory.data)
    options.choice, options.temperature = CHOOSE_DRAWN, 1.0
    options.repetition_penalty = options.top_p = 1.0
    draws = stream.host_array((2, batch), np.float64)
    draws[:] = np.random.default_rng(1).random((2, batch))
    chosen = stream.host_array((2, batch), np.int64)
    turns = DeviceTensor.from_numpy(np.zeros((batch, 4), np.float16), device)  # of int64's size
    scores, seen = (DeviceTensor.empty("fp32", logits.shape, device) for _ in range(2))
    following = DeviceTensor.empty("int64", (batch,), device)
    params = ChooseParams(
        batch=batch,
        vocab_size=vocab_size,
        dtype=contract.DTYPES.index("fp32"),
        logits=logits.address,
        scores=scores.address,
        seen=seen.address,
        options=memory.ctypes.data,
        draws=draws.ctypes.data,
        next=following.address,
        chosen=chosen.ctypes.data,
        turns=turns.address,
    )
    weights = np.exp(values - values.max(-1, keepdims=True)).cumsum(-1, dtype=np.float64)
    for step in range(5):
        slot = step % 2
        chosen[:] = NOT_CHOSEN
        stream.choose(params)
        stream.wait_choice(chosen[slot])
        expected = (weights <= draws[slot, :, None] * weights[:, -1:]).sum(-1)
        np.testing.assert_array_equal(chosen[slot], expected)
        assert (chosen[1 - slot] == NOT_CHOSEN).all()
        if step == 1:  # steps whose logits are read are turns, too
            options.choice = CHOOSE_NOTHING
            stream.choose(params)
            stream.choose(params)
            stream.wait()
            np.testing.assert_array_equal(scores.numpy(), values)
            options.choice = CHOOSE_DRAWN


def test_logits_that_are_not_finite_are_told() -> None:
    stream = GpuStream(0)
    values = np.zeros((4, 1000), np.float32)
    values[0, 999], values[1, 3], values[2, :] = np.nan, np.inf, -np.inf
    values[3, 5] = -np.inf  # a token that is ruled out is none of this
    logits = DeviceTensor.from_numpy(values, Device("cuda", 0))
    none = np.zeros((4, 1000), bool)
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        assert choose(stream, logits, sampling, np.zeros(4), none).tolist() == [-1, -1, -1, 0]


# --- Whole models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose text depends on what was read before (see test_generate.py)."""
    torch.manual_seed(0)
    config = MambaConfig(
        d_model=32, n_layer=2, vocab_size=256, tie_embeddings=False, eos_token_id=0
    )
    model = MambaLM(config).eval()
    with torch.no_grad():
        model.embeddings.weight.normal_(std=0.3)
        model.lm_head.weight.normal_(std=1.0)
        for layer in model.backbone.layers:
            layer.mixer.out_proj.weight.mul_(20)
    return export(model, tmp_path_factory.mktemp("cuda") / "out")


@pytest.fixture(scope="module")
def session(folder: Path) -> OrtSession:
    found = OrtSession(folder, providers=[CUDA], native=True)
    assert found.native
    assert found.provider == CUDA
    return found


@pytest.fixture(scope="module")
def cpu(folder: Path) -> OrtSession:
    return OrtSession(folder, providers=["CPUExecutionProvider"])


def tokens_of(session: OrtSession, prompts: Any, **options: Any) -> list[list[int]]:
    options = {"stop_at_end": False, "max_new_tokens": 60} | options
    return [one.tokens for one in session.generate(prompts, **options)]


def prompts_of(*lengths: int) -> list[list[int]]:
    return [np.random.default_rng(n).integers(0, 256, n).tolist() for n in lengths]


def test_steps_are_captured(session: OrtSession) -> None:
    for batch in (1, 3):
        stepper = session.stepper(session.initial_state(batch))
        assert isinstance(stepper, GraphStepper)
        for token in range(3):
            stepper.step(np.full(batch, token))
        assert stepper.is_captured, stepper.capture_problem


@pytest.mark.parametrize("batch", [1, 3])
def test_a_replayed_step_is_a_plain_one(session: OrtSession, batch: int) -> None:
    ids = np.random.default_rng(0).integers(0, 256, (batch, 60))
    start = session.advance(ids[:, :7])
    kept = start.numpy()
    graph, plain = session.stepper(start), OrtStepper(session._model, start)
    for position in range(7, 60):
        found, expected = graph.step(ids[:, position]), plain.step(ids[:, position])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for mine, its in zip(graph.state.numpy(), plain.state.numpy(), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-4)
    for before, after in zip(kept, start.numpy(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_states_are_in_place(session: OrtSession) -> None:
    stepper = session.stepper(session.initial_state(2))
    addresses = set()
    for token in range(5):
        stepper.step(np.array([token, token]))
        addresses.add(tuple(tensor.address for tensor in stepper.state.tensors))
    assert len(addresses) == 1


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("lengths", [(1,), (5, 1, 5)], ids=["one", "three"])
def test_generation_is_the_cpus(
    session: OrtSession, cpu: OrtSession, lengths: tuple[int, ...], options: dict[str, Any]
) -> None:
    prompts = prompts_of(*lengths)
    expected = tokens_of(cpu, prompts, **options)
    for _ in range(2):
        assert tokens_of(session, prompts, **options) == expected


def test_prefill_of_any_length_between_captured_steps(session: OrtSession, cpu: OrtSession) -> None:
    for length in (1, 2, 65, 600, 3):
        prompts = prompts_of(length)
        assert tokens_of(session, prompts, max_new_tokens=20) == tokens_of(
            cpu, prompts, max_new_tokens=20
        )


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_16_bit_models(tiny_model: MambaLM, tmp_path: Path, dtype: str) -> None:
    session = OrtSession(export(tiny_model, tmp_path / dtype, dtype=dtype), providers=[CUDA])
    assert session.native
    ids = np.random.default_rng(0).integers(0, 256, (3, 20))
    graph = session.stepper(session.initial_state(3))
    plain = OrtStepper(session._model, session.initial_state(3))
    for position in range(20):
        found, expected = graph.step(ids[:, position]), plain.step(ids[:, position])
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2 * np.abs(expected).max())
    assert isinstance(graph, GraphStepper)
    assert graph.is_captured, graph.capture_problem


def test_memory_is_constant(session: OrtSession) -> None:
    for batch in (2, 1):  # what is kept for either
        tokens_of(session, [[1]] * batch, max_new_tokens=200)
    before = free_memory()
    tokens_of(session, [[1]], max_new_tokens=2000)
    for index in range(100):
        tokens_of(session, [[index]] * (1 + index % 2), max_new_tokens=3)
    assert before - free_memory() <= 8 << 20  # the driver's own pages come in 2 MiB


def test_threads_share_a_session(session: OrtSession, cpu: OrtSession) -> None:
    requests = [prompts_of(1), prompts_of(5, 6), prompts_of(70)]
    run_threads([session] * 3, requests, [tokens_of(cpu, prompts) for prompts in requests])


def test_two_sessions_in_two_threads(folder: Path, session: OrtSession, cpu: OrtSession) -> None:
    requests = [prompts_of(9), prompts_of(4, 4)]
    other = OrtSession(folder, providers=[CUDA])
    run_threads([session, other], requests, [tokens_of(cpu, prompts) for prompts in requests])


def run_threads(sessions: list[OrtSession], requests: list[Any], expected: list[Any]) -> None:
    found: dict[tuple[int, int], Any] = {}

    def work(index: int) -> None:
        for attempt in range(5):
            found[index, attempt] = tokens_of(sessions[index], requests[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 5 * len(sessions)
    assert all(tokens == expected[index] for (index, _), tokens in found.items())


def test_function_bodies_still_run(folder: Path, cpu: OrtSession) -> None:
    bodies = OrtSession(folder, providers=[CUDA], native=False)
    assert not bodies.native
    assert isinstance(bodies.stepper(bodies.initial_state(1)), OrtStepper)
    assert tokens_of(bodies, [[5, 6]]) == tokens_of(cpu, [[5, 6]])


def test_options_of_the_user(folder: Path, cpu: OrtSession) -> None:
    given = (CUDA, {"device_id": "0", "use_tf32": "0"})
    assert isinstance(
        (one := OrtSession(folder, providers=[given])).stepper(one.initial_state(1)), GraphStepper
    )
    captures_itself = (CUDA, {"enable_cuda_graph": "0", "use_tf32": "0"})
    plain = OrtSession(folder, providers=[captures_itself])
    assert isinstance(plain.stepper(plain.initial_state(1)), OrtStepper)
    assert tokens_of(plain, [[5, 6]]) == tokens_of(cpu, [[5, 6]])


def test_out_of_gpu_memory_is_one_line(folder: Path, cpu: OrtSession) -> None:
    small = OrtSession(
        folder, providers=[(CUDA, {"gpu_mem_limit": str(16 << 20), "use_tf32": "0"})]
    )
    with pytest.raises(SessionError) as caught:
        small.run(np.zeros((40_000, 20), np.int64))  # more than the shortest parts of a prompt hold
    assert "\n" not in str(caught.value)
    assert tokens_of(small, [[5, 6]]) == tokens_of(cpu, [[5, 6]])
    with pytest.raises(SessionError, match="out of memory on cuda"):
        small._graphs.states.take(10**9)  # type: ignore[union-attr]
