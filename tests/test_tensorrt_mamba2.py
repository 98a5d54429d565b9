"""Mamba-2 as TensorRT engines, built where there is no GPU: its operators are plugins, its states inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mamba_export.backends.tensorrt import BuildOptions, build, read_description
from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.export import export
from mamba_export.libraries import TRT_PLUGIN
from mamba_export.models import Mamba2Config, MambaLM

SHIPPED = Path(__file__).parent.parent / "models" / "kjv-bytes-mamba2"

pytestmark = [
    pytest.mark.skipif(
        not libraries.is_installed(TENSORRT_RTX), reason="tensorrt-rtx is not installed"
    ),
    pytest.mark.skipif(
        TRT_PLUGIN.path() is None,
        reason="the TensorRT plugin was not built (no CUDA toolkit or headers)",
    ),
]


@pytest.mark.parametrize(
    ("dtype", "state_dtype"), [("fp32", None), ("fp16", "fp16"), ("bf16", None)], ids=str
)
def test_a_language_model_builds(tmp_path: Path, dtype: str, state_dtype: str | None) -> None:
    config = Mamba2Config(
        d_model=32, n_layer=2, vocab_size=256, d_state=16, head_dim=16, n_groups=2
    )
    out = export(MambaLM(config).eval(), tmp_path / "out", dtype=dtype, state_dtype=state_dtype)
    built = build(out, BuildOptions(runtime="tensorrt-rtx"))
    assert built.plugins == {"CausalConv1d": 2, "StateSpaceDual": 2, "GatedRmsNorm": 2}
    states = {one["name"]: (one["dtype"], one["shape"]) for one in built.inputs[1:]}
    assert states["past_key_values.1.conv_state"] == (dtype, [-1, 64 + 2 * 2 * 16, 3])
    recurrent = (state_dtype or "fp32", [-1, 4, 16, 16])
    assert states["past_key_values.1.recurrent_state"] == recurrent


def test_the_shipped_model_builds(tmp_path: Path) -> None:
    out = export(SHIPPED, tmp_path / "out", dtype="fp16")
    build(out, BuildOptions(runtime="tensorrt-rtx"))
    plugins = read_description(out).plugins
    assert plugins == {"CausalConv1d": 8, "StateSpaceDual": 8, "GatedRmsNorm": 8}
