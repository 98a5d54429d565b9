"""A token on a CPU: layers of few rows, on any number of threads; states written in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from mamba_export import contract
from mamba_export.backends import registry
from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.backends.onnxruntime.bound_steps import BoundSteps
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.export import export
from mamba_export.export.functions import function_protos
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaConfig, MambaLM
from mamba_export.models.mamba2_config import Mamba2Config
from mamba_export.verify import operators
from mamba_export.verify.cases import Case, draw

pytestmark = pytest.mark.skipif(CUSTOM_OPS.path() is None, reason=CUSTOM_OPS.why_absent())

OPSET = 20
# Enough work to wake threads; sums in several parts, and columns that fill neither a task nor a vector.
TOKENS = {
    contract.MAMBA_LAYER.name: {"length": 1, "d_model": 150, "d_inner": 200, "dt_rank": 70},
    contract.MAMBA2_LAYER.name: {
        "length": 1, "d_model": 150, "n_groups": 2, "group_heads": 3, "head_dim": 40, "d_state": 24,
    },
}  # fmt: skip
GRAPHS = operators.NodeGraphs(function_protos(OPSET), OPSET)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("node", TOKENS)
def test_a_token_of_one_to_five_sequences(node: str, dtype: str) -> None:
    (backend,), _ = registry.present(("native",))
    for batch in range(1, 6):
        check = operators.check_case(
            Case.of(node, batch=batch, **TOKENS[node]), dtype, "native", batch, GRAPHS,
            backend.run_graph, exact_products=backend.exact_products,
        )  # fmt: skip
        assert check.passed, check


@pytest.mark.parametrize("length", [1, 9], ids=["few rows", "many rows"])
@pytest.mark.parametrize("node", TOKENS)
def test_any_number_of_threads_gives_the_same_bits(node: str, length: int) -> None:
    case = Case.of(node, **TOKENS[node] | {"length": length})
    model = GRAPHS.of(case, "fp32")
    inputs = {name: tensor.float().numpy() for name, tensor in draw(case, seed=0).items()}
    bits = set()
    for threads in (1, 2, 5):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        custom_ops.register(options, True)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(50):
            bits.add(b"".join(output.tobytes() for output in session.run(None, inputs)))
    assert len(bits) == 1


MODELS: dict[str, tuple[Any, dict[str, str]]] = {
    "mamba": (MambaConfig(d_model=64, n_layer=2, vocab_size=64), {}),
    "mamba, states that fill no vector": (
        MambaConfig(d_model=64, n_layer=2, vocab_size=64, d_state=5),
        {"dtype": "fp16"},
    ),
    "mamba2": (Mamba2Config(d_model=64, n_layer=2, vocab_size=64, head_dim=16, d_state=20), {}),
    "mamba2, states of fp16": (
        Mamba2Config(d_model=64, n_layer=2, vocab_size=64, head_dim=16, d_state=20),
        {"dtype": "fp16", "state_dtype": "fp16"},
    ),
    "mamba2, int8": (
        Mamba2Config(d_model=64, n_layer=2, vocab_size=64, head_dim=16),
        {"weights": "int8"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_states_are_written_in_their_place(name: str, tmp_path: Path) -> None:
    config, told = MODELS[name]
    torch.manual_seed(0)
    folder = export(MambaLM(config).eval(), tmp_path / "model", **told)
    session = OrtSession(folder, providers=["CPUExecutionProvider"], native=True)
    ids = np.random.default_rng(0).integers(0, 64, (3, 12))
    start = session.advance(ids[:, :4])
    kept = start.numpy()
    steps, state = BoundSteps(session._model, start), start
    addresses = set()
    for position in range(4, 12):
        expected, state = session.run(ids[:, position : position + 1], state)  # memory of its own
        (logits,) = steps.advance(ids[:, position])
        np.testing.assert_array_equal(logits.astype(np.float32), expected[:, 0])
        for found, wanted in zip(steps.state.numpy(), state.numpy(), strict=True):
            np.testing.assert_array_equal(found, wanted)
        addresses.add(tuple(tensor.address for tensor in steps.state.tensors))
    assert len(addresses) == 1
    for before, after in zip(kept, start.numpy(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_function_bodies_write_elsewhere(tiny_model: MambaLM, tmp_path: Path) -> None:
    folder = export(tiny_model, tmp_path / "model")
    session = OrtSession(folder, providers=["CPUExecutionProvider"], native=False)
    steps = BoundSteps(session._model, session.initial_state(1))
    addresses = set()
    for _ in range(4):
        steps.advance(np.array([1]))
        addresses.add(tuple(tensor.address for tensor in steps.state.tensors))
    assert len(addresses) == 2
