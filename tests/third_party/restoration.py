"""Image restoration: MambaIR's four directions, and MambaIRv2's order by meaning."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export import adapters

with adapters.installed():
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn


class SS2D(nn.Module):
    """MambaIR's (and VM-UNet's) mixer: projections are einsums, all in fp32, which it asserts."""

    def __init__(self, d_model: int, d_state: int = 4) -> None:
        super().__init__()
        inner, self.d_state, self.rank = 2 * d_model, d_state, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        rows = self.rank + 2 * d_state
        self.x_proj_weight = nn.Parameter(torch.randn(4, rows, inner) / math.sqrt(inner))
        self.dt_projs_weight = nn.Parameter(torch.randn(4, inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.rand(4, inner) - 3)
        states = torch.log(torch.arange(1.0, d_state + 1))
        self.A_logs = nn.Parameter(states.repeat(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.selective_scan = selective_scan_fn

    def forward_core(self, x: Tensor) -> tuple[Tensor, ...]:
        B, _, H, W = x.shape
        L, K = H * W, 4
        columns = torch.transpose(x, dim0=2, dim1=3).contiguous().view(B, -1, L)
        x_hwwh = torch.stack([x.view(B, -1, L), columns], dim=1).view(B, 2, -1, L)
        xs = torch.cat([x_hwwh, torch.flip(x_hwwh, dims=[-1])], dim=1)
        x_dbl = torch.einsum("b k d l, k c d -> b k c l", xs.view(B, K, -1, L), self.x_proj_weight)
        dts, Bs, Cs = torch.split(x_dbl, [self.rank, self.d_state, self.d_state], dim=2)
        dts = torch.einsum("b k r l, k d r -> b k d l", dts.view(B, K, -1, L), self.dt_projs_weight)
        out_y = self.selective_scan(
            xs.float().view(B, -1, L),
            dts.contiguous().float().view(B, -1, L),
            -torch.exp(self.A_logs.float()).view(-1, self.d_state),
            Bs.float().view(B, K, -1, L),
            Cs.float().view(B, K, -1, L),
            self.Ds.float().view(-1),
            z=None,
            delta_bias=self.dt_projs_bias.float().view(-1),
            delta_softplus=True,
            return_last_state=False,
        ).view(B, K, -1, L)
        assert out_y.dtype == torch.float
        inv_y = torch.flip(out_y[:, 2:4], dims=[-1]).view(B, 2, -1, L)
        wh_y = out_y[:, 1].view(B, -1, W, H).transpose(2, 3).contiguous().view(B, -1, L)
        invwh_y = inv_y[:, 1].view(B, -1, W, H).transpose(2, 3).contiguous().view(B, -1, L)
        return out_y[:, 0], inv_y[:, 0], wh_y, invwh_y

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2).contiguous()))
        y1, y2, y3, y4 = self.forward_core(x)
        y = (y1 + y2 + y3 + y4).transpose(1, 2).contiguous().view(B, H, W, -1)
        return self.out_proj(self.out_norm(y) * F.silu(z))


class MambaIRLike(nn.Module):
    """An image of any size in, twice the size out (PixelShuffle)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.mean = torch.Tensor((0.45, 0.44, 0.4)).view(
            1, 3, 1, 1
        )  # no buffer, and assigned in forward
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.norm, self.mixer = nn.LayerNorm(width), SS2D(width)
        self.skip_scale = nn.Parameter(torch.rand(width))
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean.type_as(x)
        x = self.conv_first(x - self.mean)
        x_size = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)
        image = tokens.view(tokens.shape[0], *x_size, -1).contiguous()
        image = image * self.skip_scale + self.mixer(self.norm(image))
        tokens = image.view(tokens.shape[0], -1, tokens.shape[2]).contiguous()
        body = tokens.transpose(1, 2).view(tokens.shape[0], -1, *x_size)
        return self.upsample(self.conv_after_body(body) + x) + self.mean.mean()


class SemanticScan(nn.Module):
    """MambaIRv2's: pixels of one class stand together while they are scanned, and the class adds to C.

    Args:
        gumbel: draw the class while in eval mode too, as published; else take the likeliest.
    """

    def __init__(self, width: int, *, gumbel: bool, classes: int = 6, d_state: int = 4) -> None:
        super().__init__()
        self.gumbel, self.d_state = gumbel, d_state
        self.route = nn.Sequential(nn.Linear(width, classes), nn.LogSoftmax(dim=-1))
        self.embedding = nn.Parameter(torch.randn(classes, d_state))
        self.x_proj = nn.Linear(width, width + 2 * d_state)
        self.A_log = nn.Parameter(torch.rand(width, d_state))
        self.D = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        routed = self.route(x)
        if self.gumbel or self.training:
            policy = F.gumbel_softmax(routed, hard=True, dim=-1)
        else:
            policy = F.one_hot(routed.argmax(-1), routed.shape[-1]).to(x.dtype)
        prompt = policy @ self.embedding
        order = torch.argsort(policy.detach().argmax(dim=-1), dim=-1, stable=True)
        back = torch.zeros_like(order)
        steps = torch.arange(order.shape[1], device=x.device)
        for row in range(order.shape[0]):
            back[row, order[row, :]] = steps
        x = torch.gather(x, 1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        width, states = x.shape[-1], self.d_state
        delta, B, C = torch.split(self.x_proj(x), [width, states, states], dim=-1)
        y = selective_scan_fn(
            x.transpose(1, 2),
            delta.transpose(1, 2),
            -torch.exp(self.A_log),
            B.transpose(1, 2).unsqueeze(1),
            (C + prompt).transpose(1, 2).unsqueeze(1),
            self.D,
            delta_softplus=True,
        ).transpose(1, 2)
        return torch.gather(y, 1, back.unsqueeze(-1).expand(-1, -1, width))


class MambaIRv2Like(nn.Module):
    """Convolution, the scan by meaning, convolution: an image of the same size."""

    def __init__(self, width: int = 8, *, gumbel: bool = False) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.norm, self.assm = nn.LayerNorm(width), SemanticScan(width, gumbel=gumbel)
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_first(x)
        _, width, height, columns = features.shape
        tokens = features.flatten(2).transpose(1, 2)
        tokens = tokens + self.assm(self.norm(tokens))
        return x + self.conv_last(tokens.transpose(1, 2).reshape(-1, width, height, columns))
