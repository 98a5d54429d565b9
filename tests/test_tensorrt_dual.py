"""A torch module that calls Mamba-2's operators: one file, run in ONNX Runtime and built as engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_tensorrt_build import needs_plugin, needs_rtx
from torch import Tensor, nn

from mamba_export import State, export
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.tensorrt.building import build
from mamba_export.backends.tensorrt.engine_checks import check_engine_file
from mamba_export.backends.tensorrt.options import BuildOptions
from mamba_export.operators import gated_rms_norm, state_space_dual

HEADS, HEAD_DIM, D_STATE, GROUPS = 4, 16, 16, 2
INNER = HEADS * HEAD_DIM


class Mixer(nn.Module):
    """Projections around the scan and the norm, as Mamba-2's block has them."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(8, 2 * INNER + 2 * GROUPS * D_STATE + HEADS, bias=False)
        self.A_log = nn.Parameter(torch.rand(HEADS))
        self.D = nn.Parameter(torch.rand(HEADS))
        self.dt_bias = nn.Parameter(torch.rand(HEADS))
        self.weight = nn.Parameter(torch.rand(INNER))
        self.out = nn.Linear(INNER, 8, bias=False)

    def forward(self, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        widths = [INNER, INNER, GROUPS * D_STATE, GROUPS * D_STATE, HEADS]
        z, x, B, C, dt = self.into(hidden).split(widths, -1)
        y, state = state_space_dual(
            x.unflatten(-1, (HEADS, HEAD_DIM)),
            dt,
            -torch.exp(self.A_log),
            B.unflatten(-1, (GROUPS, D_STATE)),
            C.unflatten(-1, (GROUPS, D_STATE)),
            self.D,
            dt_bias=self.dt_bias,
            initial_state=state,
        )
        return self.out(gated_rms_norm(y.flatten(2), z, self.weight, groups=2)), state


def exported(output: Path, opset: int | None = None) -> tuple[Mixer, Path]:
    torch.manual_seed(0)
    model = Mixer().eval()
    options = {} if opset is None else {"opset": opset}
    args = (torch.randn(2, 5, 8), torch.zeros(2, HEADS, HEAD_DIM, D_STATE))
    folder = export(
        model,
        args,
        output=output,
        dynamic_shapes={"hidden": {0: "batch", 1: "length"}, "state": {0: "batch"}},
        states=[State("state", "state_out", name="recurrent state")],
        output_names=["y", "state_out"],
        **options,
    )
    return model, folder


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_the_file_is_right_in_onnxruntime(tmp_path: Path, opset: int) -> None:
    model, folder = exported(tmp_path / "out", opset)
    nodes = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert {"StateSpaceDual", "GatedRmsNorm"} <= set(nodes)
    session = OrtSession(folder, threads=1)
    for batch, length in ((1, 1), (3, 65), (2, 130)):
        hidden = torch.randn(batch, length, 8)
        state, found_state = torch.zeros(batch, HEADS, HEAD_DIM, D_STATE), None
        for part in hidden.split(40, 1):
            with torch.no_grad():
                expected, state = model(part, state)
            found, found_state = session.run(part.numpy(), found_state)
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found_state.numpy()[0], state.numpy(), rtol=1e-4, atol=1e-5)


@needs_rtx
@pytest.mark.parametrize(
    "plugin",
    [pytest.param(True, marks=needs_plugin, id="plugin"), pytest.param(False, id="bodies")],
)
def test_engines_build(plugin: bool, tmp_path: Path) -> None:
    _, folder = exported(tmp_path / "out")
    description = build(folder, BuildOptions(plugin=plugin, runtime="tensorrt-rtx"))
    assert description.plugins == ({"StateSpaceDual": 1, "GatedRmsNorm": 1} if plugin else {})
    content = check_engine_file(folder, description).read_bytes()
    for operator in ("StateSpaceDual", "GatedRmsNorm"):
        assert (f"[ONNX Layer: {operator}_0]".encode() in content) == plugin
