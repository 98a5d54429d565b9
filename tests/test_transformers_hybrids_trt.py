"""Engines of a hybrid on a machine without a GPU: TensorRT-RTX builds them, with our plugins and without."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import onnx
import pytest
from transformers_hybrids import bamba, make

from mamba_export.backends.tensorrt import BuildOptions, build
from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.backends.tensorrt.plugin import OPERATORS
from mamba_export.export import export
from mamba_export.libraries import TRT_PLUGIN

pytestmark = [
    pytest.mark.skipif(
        not libraries.is_installed(TENSORRT_RTX), reason="tensorrt-rtx is not installed"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("onnx_graphsurgeon") is None,
        reason="onnx-graphsurgeon is not installed",
    ),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(make(bamba), tmp_path_factory.mktemp("hybrid") / "out", dtype="fp16")


@pytest.mark.parametrize(
    "plugin",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                TRT_PLUGIN.path() is None,
                reason="the TensorRT plugin was not built (no CUDA toolkit or headers)",
            ),
        ),
    ],
    ids=["functions", "plugins"],
)
def test_a_hybrid_builds(exported: Path, plugin: bool) -> None:
    """Two kinds of state, an empty past among the sizes."""
    options = BuildOptions(
        plugin=plugin,
        runtime="tensorrt-rtx",
        batch=(1, 1, 2),
        length=(1, 8, 32),
        past=(0, 8, 64),
    )
    description = build(exported, options, force=True)
    graph = onnx.load(exported / "model.onnx", load_external_data=False).graph
    ours = Counter(node.op_type for node in graph.node if node.op_type in OPERATORS)
    assert description.plugins == (ours if plugin else {})
    assert ours["CausalConv1d"] == 2
    assert (exported / "model.engine").stat().st_size > 0
