"""Images as one sequence of patches: Vision Mamba (Vim), and MambaVision's scan beside attention in windows."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export import adapters

with adapters.installed():
    from mamba_ssm.modules.mamba_simple import Mamba
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn


class VimBlock(nn.Module):
    """Add, norm and mixer, the first two in one function."""

    def __init__(self, width: int, mixer: partial) -> None:
        super().__init__()
        self.mixer, self.norm = mixer(width), RMSNorm(width, eps=1e-5)

    def forward(self, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        fused_add_norm_fn = rms_norm_fn if isinstance(self.norm, RMSNorm) else layer_norm_fn
        hidden_states, residual = fused_add_norm_fn(
            hidden_states,
            self.norm.weight,
            self.norm.bias,
            residual=residual,
            prenorm=True,
            residual_in_fp32=True,
            eps=self.norm.eps,
        )
        return self.mixer(hidden_states), residual


class VimLike(nn.Module):
    """Bidirectional mixers (v2), a class token in the middle, positions resized to the image."""

    def __init__(self, width: int = 16, depth: int = 2, grid: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embed = nn.Conv2d(3, width, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, grid * grid + 1, width))
        mixer = partial(
            Mamba, d_state=4, bimamba_type="v2", if_divide_out=True, init_layer_scale=0.5
        )
        self.layers = nn.ModuleList(VimBlock(width, mixer) for _ in range(depth))
        self.norm_f = RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, classes)

    def positions(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Of the class token, and of height x width patches."""
        grid = self.pos_embed[:, 1:].reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
        return self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embed(image)
        of_token, of_patches = self.positions(patches.shape[2], patches.shape[3])
        x = patches.flatten(2).transpose(1, 2) + of_patches
        middle = x.shape[1] // 2
        token = (self.cls_token + of_token).expand(x.shape[0], -1, -1)
        hidden_states = torch.cat((x[:, :middle], token, x[:, middle:]), dim=1)
        residual = None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual)
        hidden_states = rms_norm_fn(
            hidden_states,
            self.norm_f.weight,
            self.norm_f.bias,
            eps=self.norm_f.eps,
            residual=residual,
            prenorm=False,
            residual_in_fp32=True,
        )
        return self.head(hidden_states[:, middle])


class MambaVisionMixer(nn.Module):
    """A scan of d_state 8 over one half of the channels; the other half is a convolution alone."""

    def __init__(self, width: int, d_state: int = 8) -> None:
        super().__init__()
        half, self.d_state, self.rank = width // 2, d_state, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, width, bias=False)
        self.conv1d_x = nn.Conv1d(half, half, 3, groups=half, bias=False)
        self.conv1d_z = nn.Conv1d(half, half, 3, groups=half, bias=False)
        self.x_proj = nn.Linear(half, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, half)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(half, 1))
        self.D = nn.Parameter(torch.ones(half))
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch, length, _ = hidden_states.shape
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        half = x.shape[1]
        x = F.silu(F.conv1d(x, self.conv1d_x.weight, padding="same", groups=half))
        z = F.silu(F.conv1d(z, self.conv1d_z.weight, padding="same", groups=half))
        rows = self.x_proj(x.transpose(1, 2).reshape(batch * length, half))
        dt, B, C = torch.split(rows, [self.rank, self.d_state, self.d_state], dim=-1)
        dt = self.dt_proj(dt).reshape(batch, length, half).transpose(1, 2)
        y = selective_scan_fn(
            x,
            dt,
            -torch.exp(self.A_log.float()),
            B.reshape(batch, length, -1).transpose(1, 2).contiguous(),
            C.reshape(batch, length, -1).transpose(1, 2).contiguous(),
            self.D.float(),
            z=None,
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
            return_last_state=None,
        )
        return self.out_proj(torch.cat([y, z], dim=1).transpose(1, 2))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = (
            heads,
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class MambaVisionLike(nn.Module):
    """A scan, then attention, both in windows of 7 x 7 (a length of 49)."""

    window = 7

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.blocks = nn.ModuleList([MambaVisionMixer(width), Attention(width, 2)])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.blocks)
        self.gammas = nn.Parameter(torch.rand(len(self.blocks), width))
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        w = self.window
        x = F.pad(x, (0, (-x.shape[3]) % w, 0, (-x.shape[2]) % w))
        batch, width, rows, columns = x.shape
        windows = x.view(batch, width, rows // w, w, columns // w, w)
        windows = windows.permute(0, 2, 4, 3, 5, 1).reshape(-1, w * w, width)
        for block, norm, gamma in zip(self.blocks, self.norms, self.gammas, strict=True):
            windows = windows + gamma * block(norm(windows))
        x = windows.reshape(-1, rows // w, columns // w, w, w, width)
        x = x.permute(0, 5, 1, 3, 2, 4).reshape(batch, width, rows, columns)
        return self.head(self.norm(x).mean((2, 3)))
