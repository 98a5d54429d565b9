"""The VMamba family: four directions over an image in one call of a compiled module.

VMamba itself, EfficientVMamba's every second pixel, LocalMamba's windows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export import adapters

with adapters.installed():
    import selective_scan_cuda_core
    import selective_scan_cuda_oflex

DIRECTIONS = 4


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of (batch, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ScanOflex(torch.autograd.Function):
    """The compiled scan behind a function of its own, for its backward pass."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx: Any, u, delta, A, B, C, D, delta_bias, delta_softplus, oflex):
        ctx.delta_softplus = delta_softplus
        out, x, *_ = selective_scan_cuda_oflex.fwd(
            u, delta, A, B, C, D, delta_bias, delta_softplus, 1, oflex
        )
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, x)
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, dout: Tensor):
        *tensors, x = ctx.saved_tensors
        dout = dout.contiguous() if dout.stride(-1) != 1 else dout
        found = selective_scan_cuda_oflex.bwd(*tensors, dout, x, ctx.delta_softplus, 1)
        return (*found[:7], None, None)


class CrossScan(torch.autograd.Function):
    """(batch, channels, height, width) as rows, as columns, and both from their ends."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        ctx.shape = x.shape
        xs = x.new_empty((batch, DIRECTIONS, channels, height * width))
        xs[:, 0] = x.flatten(2, 3)
        xs[:, 1] = x.transpose(dim0=2, dim1=3).flatten(2, 3)
        xs[:, 2:4] = torch.flip(xs[:, 0:2], dims=[-1])
        return xs

    @staticmethod
    def backward(ctx: Any, ys: Tensor) -> Tensor:
        batch, channels, height, width = ctx.shape
        merged = CrossMerge.forward(ctx, ys.view(batch, DIRECTIONS, channels, height, width))
        return merged.view(batch, channels, height, width)


class CrossMerge(torch.autograd.Function):
    """The sum of four directions' (batch, 4, channels, height, width) in the image's own order."""

    @staticmethod
    def forward(ctx: Any, ys: Tensor) -> Tensor:
        batch, count, channels, height, width = ys.shape
        ctx.shape = (height, width)
        ys = ys.view(batch, count, channels, -1)
        ys = ys[:, 0:2] + ys[:, 2:4].flip(dims=[-1]).view(batch, 2, channels, -1)
        columns = ys[:, 1].view(batch, -1, width, height).transpose(dim0=2, dim1=3)
        return ys[:, 0] + columns.contiguous().view(batch, channels, -1)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> Tensor:
        height, width = ctx.shape
        xs = CrossScan.forward(ctx, y.view(*y.shape[:2], height, width))
        return xs.view(*xs.shape[:3], height, width)


class SS2D(nn.Module):
    """VMamba's mixer without a gate and without einsum: projections are grouped convolutions."""

    def __init__(self, d_model: int, d_state: int = 1, ratio: int = 2) -> None:
        super().__init__()
        inner, self.rank, self.d_state = ratio * d_model, max(1, d_model // 16), d_state
        self.in_proj = nn.Conv2d(d_model, inner, 1, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        rows = self.rank + 2 * d_state
        self.x_proj_weight = nn.Parameter(torch.randn(DIRECTIONS, rows, inner) / math.sqrt(inner))
        self.dt_projs_weight = nn.Parameter(torch.randn(DIRECTIONS, inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.rand(DIRECTIONS, inner) - 3)
        states = torch.log(torch.arange(1.0, d_state + 1))
        self.A_logs = nn.Parameter(states.repeat(DIRECTIONS * inner, 1))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.out_norm = LayerNorm2d(inner)
        self.out_proj = nn.Conv2d(inner, d_model, 1, bias=False)

    def scanned(self, xs: Tensor) -> Tensor:
        """(batch, 4, channels, length) in four orders -> the same shape."""
        batch, count, channels, length = xs.shape
        rank, states = self.rank, self.d_state
        weight = self.x_proj_weight.view(-1, channels, 1)
        projected = F.conv1d(xs.reshape(batch, -1, length), weight, groups=count)
        dts, Bs, Cs = torch.split(
            projected.view(batch, count, -1, length), [rank, states, states], dim=2
        )
        weight = self.dt_projs_weight.view(count * channels, -1, 1)
        dts = F.conv1d(dts.contiguous().view(batch, -1, length), weight, groups=count)
        ys = ScanOflex.apply(
            xs.reshape(batch, -1, length),
            dts.contiguous().view(batch, -1, length),
            -self.A_logs.to(torch.float).exp(),
            Bs.contiguous().view(batch, count, states, length),
            Cs.contiguous().view(batch, count, states, length),
            self.Ds.to(torch.float),
            self.dt_projs_bias.view(-1).to(torch.float),
            True,
            True,
        )
        return ys.view(batch, count, -1, length)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv2d(self.in_proj(x)))
        batch, _, height, width = x.shape
        ys = self.scanned(CrossScan.apply(x)).view(batch, DIRECTIONS, -1, height, width)
        y = CrossMerge.apply(ys).view(batch, -1, height, width)
        return self.out_proj(self.out_norm(y).to(x.dtype))


class EfficientScan(torch.autograd.Function):
    """Four images of every second pixel, a direction each, written into one tensor with strides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: int = 2) -> Tensor:
        batch, channels, height, width = x.shape
        if width % step != 0:
            x = F.pad(x, (0, step - width % step, 0, 0))
        if height % step != 0:
            x = F.pad(x, (0, 0, 0, step - height % step))
        length = (x.shape[2] // step) * (x.shape[3] // step)
        xs = x.new_empty((batch, DIRECTIONS, channels, length))
        columns = x.transpose(2, 3)
        xs[:, 0] = x[:, :, ::step, ::step].contiguous().view(batch, channels, -1)
        xs[:, 1] = columns[:, :, ::step, 1::step].contiguous().view(batch, channels, -1)
        xs[:, 2] = x[:, :, ::step, 1::step].contiguous().view(batch, channels, -1)
        xs[:, 3] = columns[:, :, 1::step, 1::step].contiguous().view(batch, channels, -1)
        return xs.view(batch, DIRECTIONS, channels, -1)


def efficient_merge(ys: Tensor, height: int, width: int, step: int = 2) -> Tensor:
    """The inverse of ``EfficientScan``: (batch, 4, channels, length) to (batch, channels, height, width)."""
    batch, _, channels, _ = ys.shape
    rows, columns = (height + step - 1) // step, (width + step - 1) // step
    y = ys.new_empty((batch, channels, rows * step, columns * step))
    y[:, :, ::step, ::step] = ys[:, 0].reshape(batch, channels, rows, columns)
    y[:, :, 1::step, ::step] = ys[:, 1].reshape(batch, channels, columns, rows).transpose(2, 3)
    y[:, :, ::step, 1::step] = ys[:, 2].reshape(batch, channels, rows, columns)
    y[:, :, 1::step, 1::step] = ys[:, 3].reshape(batch, channels, columns, rows).transpose(2, 3)
    if height != rows * step or width != columns * step:
        y = y[:, :, :height, :width].contiguous()
    return y


class AtrousSS2D(SS2D):
    """EfficientVMamba's: a quarter of the steps a direction."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv2d(self.in_proj(x)))
        y = efficient_merge(self.scanned(EfficientScan.apply(x)), x.shape[2], x.shape[3])
        return self.out_proj(self.out_norm(y).to(x.dtype))


class WindowSS2D(SS2D):
    """LocalMamba's: padded windows of 4 x 4, by rows and by columns, and both from their ends."""

    window = 4

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv2d(self.in_proj(x)))
        batch, channels, height, width = x.shape
        w = self.window
        rows, columns = (height + w - 1) // w, (width + w - 1) // w
        padded = F.pad(x, (0, columns * w - width, 0, rows * w - height))
        windows = padded.view(batch, channels, rows, w, columns, w)
        by_rows = windows.permute(0, 1, 2, 4, 3, 5).reshape(batch, channels, -1)
        by_columns = windows.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels, -1)
        xs = torch.stack([by_rows, by_columns, by_rows.flip([-1]), by_columns.flip([-1])], dim=1)
        ys = self.scanned(xs)
        ys = ys[:, :2] + ys[:, 2:].flip([-1])
        of_rows = ys[:, 0].view(batch, -1, rows, columns, w, w).permute(0, 1, 2, 4, 3, 5)
        of_columns = ys[:, 1].view(batch, -1, columns, rows, w, w).permute(0, 1, 3, 5, 2, 4)
        y = (of_rows + of_columns).reshape(batch, -1, rows * w, columns * w)
        y = y[:, :, :height, :width].contiguous()
        return self.out_proj(self.out_norm(y).to(x.dtype))


class CoreScan(nn.Module):
    """One direction through the module without a choice of dtype, on rows: GroupMamba's way."""

    def __init__(self, channels: int, d_state: int = 2) -> None:
        super().__init__()
        self.delta = nn.Conv1d(channels, channels, 1)
        self.B_C = nn.Conv1d(channels, 2 * d_state, 1)
        self.A_log = nn.Parameter(torch.rand(channels, d_state))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)
        B, C = self.B_C(rows).unsqueeze(1).chunk(2, dim=2)
        A = -self.A_log.float().exp()
        y = selective_scan_cuda_core.fwd(rows, self.delta(rows), A, B, C, None, None, True, 1)[0]
        return x + y.view_as(x)


class VMambaLike(nn.Module):
    """A patch embedding with BatchNorm, a block, a reduction, a block with another mixer, a head.

    Args:
        mixers: one a block.
    """

    def __init__(self, *mixers: type[nn.Module], width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.GELU()
        )
        blocks: list[nn.Module] = []
        for mixer in mixers:
            mlp = nn.Sequential(
                LayerNorm2d(width),
                nn.Conv2d(width, 2 * width, 1),
                nn.GELU(),
                nn.Conv2d(2 * width, width, 1),
            )
            blocks.append(
                nn.ModuleDict({"norm": LayerNorm2d(width), "op": mixer(width), "mlp": mlp})
            )
        self.blocks = nn.ModuleList(blocks)
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.classifier = nn.Sequential(
            LayerNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(width, classes)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        for index, block in enumerate(self.blocks):
            x = x if index == 0 else self.downsample(x)
            x = x + block["op"](block["norm"](x))
            x = x + block["mlp"](x)
        return self.classifier(x)
