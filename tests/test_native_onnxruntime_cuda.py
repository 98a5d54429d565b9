"""The compiled kernels under ONNX Runtime's CUDA provider: arithmetic, errors, and decoding in CUDA graphs."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cuda_provider import CUDA, NEEDS_CUDA_KERNELS

from mamba_export import contract
from mamba_export.backends import registry
from mamba_export.backends.backend import Backend
from mamba_export.backends.onnxruntime.graph_stepper import GraphStepper
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.stepper import OrtStepper
from mamba_export.errors import SessionError
from mamba_export.export import export
from mamba_export.export.functions import function_protos
from mamba_export.models import MambaConfig, MambaLM
from mamba_export.verify import operators
from mamba_export.verify.cases import Case, definition_of, draw, grid

pytestmark = NEEDS_CUDA_KERNELS

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
