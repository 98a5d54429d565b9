"""Vision models in the style of VMamba and Vim as TensorRT-RTX engines: any image size, every scan a plugin."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from third_party.exported import Exported

from mamba_export.backends.tensorrt import BuildOptions, build, read_description
from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.libraries import TRT_PLUGIN

AXES = {"EfficientVMamba": ("rows", "columns")}
"""Names of the axes of images that a model takes in multiples of these."""


@pytest.mark.skipif(
    not libraries.is_installed(TENSORRT_RTX), reason="tensorrt-rtx is not installed"
)
@pytest.mark.skipif(
    TRT_PLUGIN.path() is None,
    reason="the TensorRT plugin was not built (no CUDA toolkit or headers)",
)
@pytest.mark.parametrize("name", ["VMamba", "Vim", "EfficientVMamba"])
def test_engine_of_any_image_size(
    name: str, third_party: Callable[[str], Exported], tmp_path: Path
) -> None:
    style = third_party(name).style
    folder = Path(shutil.copytree(third_party(name).folder, tmp_path / name))
    _, height, width = style.traced
    rows, columns = AXES.get(name, ("height", "width"))
    sizes = {rows: (8, height, 4 * height), columns: (8, width, 4 * width)}
    build(folder, BuildOptions(runtime=TENSORRT_RTX.option, batch=(1, 2, 4), sizes=sizes))
    description = read_description(folder)
    assert description.plugins == style.nodes
    assert description.inputs[0]["shape"] == [-1, 3, -1, -1]
    assert description.profiles[0].sizes == sizes
