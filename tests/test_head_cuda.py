"""A head over codes, the node LinearPacked, under ONNX Runtime's CUDA provider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from cuda_provider import CUDA, NEEDS_CUDA_KERNELS
from onnx import helper

from mamba_export import contract, export, verify
from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.contract import LINEAR
from mamba_export.contract.weights import Weights
from mamba_export.models import MambaConfig, MambaLM
from mamba_export.packing import pack, unpack

pytestmark = NEEDS_CUDA_KERNELS

ROWS = ((1, 1), (1, 3), (8, 1), (3, 3), (64, 1), (1, 200))
"""Batch and length: a step's, and those that widen the matrix."""
SHAPES = ((768, 50280), (2560, 4096), (64, 96), (256, 2002))
"""Inputs and outputs; rows of the last cannot be read eight columns at a time."""


def _session(weights: Weights, matrix: np.ndarray, dtype: np.dtype) -> tuple:
    """A session of one node, without a function, and the matrix that its codes stand for."""
    packed = pack(matrix, weights, dtype)
    [form] = [one for one in LINEAR.packed_forms() if one.has_zero_points != weights.symmetric]
    parts = [part for part in (packed.codes, packed.scales, packed.zero_points) if part is not None]
    names = [row.name for row in form.inputs]
    tensors = [
        ir.to_proto(ir.tensor(part, name=name)) for part, name in zip(parts, names[1:], strict=True)
    ]
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    node = helper.make_node(
        form.name, names, ["y"], domain=contract.DOMAIN, block=weights.block,
        **contract.PLUGIN_ATTRIBUTES,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "head",
        [helper.make_tensor_value_info("x", kind, ["batch", "length", len(matrix)])],
        [helper.make_tensor_value_info("y", kind, ["batch", "length", matrix.shape[1]])],
        tensors,
    )
    imports = [
        helper.make_opsetid("", 21),
        helper.make_opsetid(contract.DOMAIN, contract.CONTRACT_VERSION),
    ]
    model = helper.make_model(graph, ir_version=10, opset_imports=imports)
    options = ort.SessionOptions()
    custom_ops.register(options, True, for_cuda=True)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[CUDA])
    return session, unpack(packed).astype(np.float64)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_a_vocabulary_that_8_does_not_divide(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = MambaLM(MambaConfig(d_model=256, n_layer=1, vocab_size=2003)).eval()
    out = export(model, tmp_path / "out", dtype="fp16", weights=kind)
    report = verify(out, model=model, quick=True, backends=["cuda-native"])
    assert [check for check in report.checks if not check.passed] == []


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["fp16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(
    shape: tuple[int, int], dtype: type[np.floating], kind: str, symmetric: bool
) -> None:
    random = np.random.default_rng(0)
    matrix = (random.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype)
    session, wanted = _session(Weights(kind, symmetric=symmetric), matrix, np.dtype(dtype))
    for batch, length in ROWS:
        x = random.standard_normal((batch, length, shape[0])).astype(dtype)
        [found] = session.run(None, {"x": x})
        exact = x.astype(np.float64) @ wanted
        # Weights are widened to the dtype for many rows, and y is rounded to it.
        allowed = 1e-3 if dtype is np.float16 else 1e-5
        assert np.linalg.norm(found - exact) <= allowed * np.linalg.norm(exact), (batch, length)
