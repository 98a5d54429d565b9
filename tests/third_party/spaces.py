"""Three dimensions: volumes (SegMamba, U-Mamba) and points (PointMamba)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mamba_export import adapters

with adapters.installed():
    from mamba_ssm import Mamba
    from mamba_ssm.modules.mamba_simple import Mamba as MambaOfModule
    from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn


class MambaLayer(nn.Module):
    """A volume's voxels as one sequence.

    Args:
        options: of the mixer.
    """

    def __init__(self, dim: int, **options: object) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(d_model=dim, d_state=4, d_conv=4, expand=2, **options)

    @torch.amp.autocast(device_type="cuda", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            x = x.type(torch.float32)
        B, C = x.shape[:2]
        assert self.dim == C
        n_tokens = x.shape[2:].numel()
        img_dims = x.shape[2:]
        x_flat = x.reshape(B, C, n_tokens).transpose(-1, -2)
        out = self.mamba(self.norm(x_flat)).transpose(-1, -2).reshape(B, C, *img_dims)
        return out + x


class SegMambaLike(nn.Module):
    """Three directions (v3), the third over slices: a volume of two channels to scores of each voxel."""

    def __init__(self, width: int = 8, nslices: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv3d(2, width, 3, stride=2, padding=1)
        self.norm = nn.InstanceNorm3d(width)
        self.stage = MambaLayer(width, bimamba_type="v3", nslices=nslices)
        self.decoder = nn.ConvTranspose3d(width, width, 2, stride=2)
        self.out = nn.Conv3d(width, 3, 1)

    def forward(self, x_in: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x_in)))
        return self.out(self.decoder(self.stage(x)))


class UMambaLike(nn.Module):
    """An encoder with a scan at its bottom, a decoder that reads the encoder too, deep supervision off."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(1, width, 3, padding=1),
            nn.InstanceNorm3d(width, affine=True),
            nn.LeakyReLU(),
        )
        self.down = nn.Conv3d(width, width, 3, stride=2, padding=1)
        self.mamba_layer = MambaLayer(width)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.out = nn.Conv3d(2 * width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.out(torch.cat((self.up(self.mamba_layer(self.down(skip))), skip), dim=1))


class PointBlock(nn.Module):
    """PointMamba's: the residual is added in the norm's own function, at its old path."""

    def __init__(self, width: int, mixer: partial) -> None:
        super().__init__()
        self.mixer, self.norm = mixer(width), RMSNorm(width)

    def forward(self, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        fused_add_norm_fn = rms_norm_fn if isinstance(self.norm, RMSNorm) else layer_norm_fn
        hidden_states, residual = fused_add_norm_fn(
            hidden_states,
            self.norm.weight,
            self.norm.bias,
            residual=residual,
            prenorm=True,
            residual_in_fp32=False,
            eps=self.norm.eps,
        )
        return self.mixer(hidden_states), residual


class PointMambaLike(nn.Module):
    """Points (batch, points, 3) with their order along two curves (batch, 2 * points) int64 to classes."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU())
        self.pos_embed = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(
            PointBlock(width, partial(MambaOfModule, d_state=4, layer_idx=i)) for i in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.cls_head = nn.Linear(width, 4)

    def forward(self, pts: Tensor, order: Tensor) -> Tensor:
        batch, count, _ = pts.shape
        tokens = self.encoder(pts.transpose(1, 2)).transpose(1, 2)
        x = tokens + self.pos_embed(pts)
        starts = torch.arange(batch, device=pts.device).unsqueeze(1) * count
        flat = (order + starts).reshape(-1)
        x = x.flatten(0, 1).index_select(0, flat).reshape(batch, 2 * count, -1)
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        x = self.norm(x + residual)
        return self.cls_head(x.max(1)[0] + x.mean(1))
