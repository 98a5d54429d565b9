"""Flips around a scan become its attribute, and only where the result stays the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.numpy_helper import to_array
from torch import Tensor, nn

import mamba_export
from mamba_export.adapters.inner import mamba_inner_fn_no_out_proj
from mamba_export.adapters.mamba import Mamba
from mamba_export.adapters.mamba2 import Mamba2

WIDTH = 8


class Normed(nn.Module):
    """A layer each way, each behind its norm and before its residual: flips outside of the mixers."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards, self.backwards = Mamba(WIDTH, d_state=4), Mamba(WIDTH, d_state=4)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        back = x.flip(1)
        back = back + self.backwards(self.norm(back))
        return self.forwards(self.norm(x)) + back.flip(1)


class ChannelsFirst(nn.Module):
    """The mixer of Vim's family: flips of (batch, channels, length) and rows of sequences joined."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mamba(WIDTH, d_state=4)

    def forward(self, x: Tensor) -> Tensor:
        mixer = self.mixer
        batch, length, _ = x.shape
        rows = mixer.in_proj.weight @ x.permute(2, 0, 1).reshape(WIDTH, batch * length)
        xz = rows.reshape(-1, batch, length).permute(1, 0, 2)
        y = mamba_inner_fn_no_out_proj(
            xz.flip([-1]),
            mixer.conv1d.weight,
            mixer.conv1d.bias,
            mixer.x_proj.weight,
            mixer.dt_proj.weight,
            -torch.exp(mixer.A_log),
            D=mixer.D,
            delta_bias=mixer.dt_proj.bias,
        )
        return mixer.out_proj(y.flip([-1]).transpose(1, 2))


class Heads(nn.Module):
    """Mamba-2 each way: heads are split off the width, and a gated norm stands before the second flip."""

    def __init__(self) -> None:
        super().__init__()
        make = partial(Mamba2, WIDTH, d_state=4, headdim=4)
        self.forwards, self.backwards = make(), make(ngroups=2, dt_limit=(0.01, 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.forwards(x) + self.backwards(x.flip(1)).flip(1)


class ReadTwice(nn.Module):
    """The flipped sequence's result is read as it is, too."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mamba(WIDTH, d_state=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.mixer(x.flip(1))
        return y.flip(1), y.cumsum(1)


class AcrossSteps(nn.Module):
    """A sum over steps stands between: a flip cannot pass it."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mamba(WIDTH, d_state=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.flip(1)).cumsum(1).flip(1)


class OtherAxis(nn.Module):
    """The second flip is of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mamba(WIDTH, d_state=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.flip(1)).flip(2)


class OnePartFlipped(nn.Module):
    """The gate is not flipped with the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.A = nn.Parameter(-torch.rand(WIDTH, 4))

    def forward(self, x: Tensor) -> Tensor:
        back = x.flip(1)
        y, _ = mamba_export.operators.selective_scan(
            back, back, self.A, back[..., :4], back[..., 4:], z=self.gate(x)
        )
        return y.flip(1)


class Positions(nn.Module):
    """What is added differs from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mamba(WIDTH, d_state=4)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        return self.mixer(x.flip(1) + steps).flip(1)


def flips(model: onnx.ModelProto) -> int:
    constants = {one.name: to_array(one) for one in model.graph.initializer}
    return sum(
        node.op_type == "Slice"
        and len(node.input) > 4
        and constants[node.input[4]].tolist() == [-1]
        for node in model.graph.node
    )


def reversals(model: onnx.ModelProto) -> list[int]:
    return [
        attribute.i
        for node in model.graph.node
        if node.domain == "mamba_export"
        for attribute in node.attribute
        if attribute.name == "reverse"
    ]


@pytest.mark.parametrize(
    ("module", "flips_left", "reversed_"),
    [
        (Normed, 0, [0, 0, 1, 1]),
        (ChannelsFirst, 0, [1, 1]),
        (Heads, 0, [0, 0, 1, 1]),
        (ReadTwice, 1, [1, 1]),
        (AcrossSteps, 2, [0, 0]),
        (OtherAxis, 2, [0, 0]),
        (OnePartFlipped, 2, [0]),
        (Positions, 2, [0, 0]),
    ],
)
def test_flips(
    module: type[nn.Module], flips_left: int, reversed_: list[int], tmp_path: Path
) -> None:
    made = module().eval()
    out = mamba_export.export(
        made,
        (torch.randn(2, 5, WIDTH),),
        output=tmp_path / "out",
        dynamic_shapes=({0: "batch", 1: "length"},),
    )
    model = onnx.load(out / "model.onnx")
    assert flips(model) == flips_left
    assert sorted(reversals(model)) == reversed_
    session = ort.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    for batch, length in ((1, 1), (3, 33)):
        x = torch.randn(batch, length, WIDTH)
        with torch.no_grad():
            expected = made(x)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = session.run(None, {"x": x.numpy()})
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)
