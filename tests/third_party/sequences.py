"""Sequences: speech, forecasting, genomics, recommendation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export import adapters

with adapters.installed():
    from mamba_ssm import Mamba
    from mamba_ssm.models.mixer_seq_simple import _init_weights
    from mamba_ssm.modules.mamba_simple import Block
    from mamba_ssm.ops.triton.layernorm import RMSNorm
    from mamba_ssm.ops.triton.layernorm_gated import RMSNorm as RMSNormGated
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined


def residual_block(width: int) -> Block:
    """mamba_ssm's own block, as SEMamba and SPMamba make it."""
    mixer = partial(Mamba, layer_idx=0, d_state=4, d_conv=4, expand=2)
    norm = partial(RMSNorm, eps=1e-5)
    return Block(width, mixer, norm_cls=norm, fused_add_norm=False, residual_in_fp32=False)


class SpeechMamba(nn.Module):
    """SEMamba's: a block forwards, one on the flipped sequence, both beside each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.forward_block, self.backward_block = residual_block(width), residual_block(width)
        self.apply(partial(_init_weights, n_layer=1))
        self.tlinear = nn.ConvTranspose1d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden, residual = self.forward_block(x, None)
        forwards = hidden + residual
        hidden, residual = self.backward_block(torch.flip(x, [1]), None)
        backwards = torch.flip(hidden + residual, [1])
        y = torch.cat([forwards, backwards], -1)
        return self.tlinear(y.permute(0, 2, 1)).permute(0, 2, 1) + x


class SEMambaLike(nn.Module):
    """Magnitude and phase (batch, frequencies, frames) in, both out: along frames, then along frequencies."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(2, width, (1, 3), padding=(0, 1)),
            nn.InstanceNorm2d(width, affine=True),
            nn.PReLU(width),
        )
        self.time_mamba, self.freq_mamba = SpeechMamba(width), SpeechMamba(width)
        self.mask, self.phase = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 2, 1)

    def forward(self, noisy_mag: Tensor, noisy_pha: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.stack([noisy_mag, noisy_pha], dim=1).permute(0, 1, 3, 2)
        x = self.encoder(x)
        b, c, t, f = x.size()
        x = x.permute(0, 3, 2, 1).contiguous().view(b * f, t, c)
        x = self.time_mamba(x)
        x = x.view(b, f, t, c).permute(0, 2, 1, 3).contiguous().view(b * t, f, c)
        x = self.freq_mamba(x).view(b, t, f, c).permute(0, 3, 1, 2)
        real, imaginary = self.phase(x).permute(0, 3, 2, 1).unbind(-1)
        mag = noisy_mag * torch.sigmoid(self.mask(x)).squeeze(1).permute(0, 2, 1)
        return mag, torch.atan2(imaginary, real + 3)  # away from the cut of atan2


class SDMambaLike(nn.Module):
    """S-D-Mamba: each variate of (batch, length, variates) is one token; d_state 2, d_conv 2, no expansion."""

    def __init__(self, seq_len: int = 12, pred_len: int = 6, width: int = 16) -> None:
        super().__init__()
        self.enc_embedding = nn.Linear(seq_len, width)
        make = partial(Mamba, d_model=width, d_state=2, d_conv=2, expand=1)
        self.mamba, self.mamba_r = make(), make()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.conv1, self.conv2 = nn.Conv1d(width, 24, 1), nn.Conv1d(24, width, 1)
        self.projector = nn.Linear(width, pred_len)

    def forward(self, x_enc: Tensor, x_mark_enc: Tensor) -> Tensor:
        means = x_enc.mean(1, keepdim=True).detach()
        x_enc = x_enc - means
        stdev = torch.sqrt(torch.var(x_enc, dim=1, keepdim=True, unbiased=False) + 1e-5)
        x_enc = x_enc / stdev
        N = x_enc.shape[2]
        x = self.enc_embedding(torch.cat([x_enc.permute(0, 2, 1), x_mark_enc.permute(0, 2, 1)], 1))
        x = x + self.mamba(x) + self.mamba_r(x.flip(dims=[1])).flip(dims=[1])
        x = y = self.norm1(x)
        y = F.gelu(self.conv1(y.transpose(-1, 1)))
        x = self.norm2(x + self.conv2(y).transpose(-1, 1))
        out = self.projector(x).permute(0, 2, 1)[:, :, :N]
        return out * stdev[:, 0].unsqueeze(1) + means[:, 0].unsqueeze(1)


class BiMambaWrapper(nn.Module):
    """Caduceus': two directions that share their projections in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mamba_fwd, self.mamba_rev = Mamba(width, d_state=4), Mamba(width, d_state=4)
        self.mamba_rev.in_proj.weight = self.mamba_fwd.in_proj.weight
        self.mamba_rev.out_proj.weight = self.mamba_fwd.out_proj.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        out = self.mamba_fwd(hidden_states)
        back = self.mamba_rev(hidden_states.flip(dims=(1,)))
        return out + back.flip(dims=(1,))


class CaduceusLike(nn.Module):
    """Bases (batch, length) int64 to logits that turn with the reverse complement of the strand."""

    def __init__(self, width: int = 8, vocabulary: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.register_buffer("complement_map", torch.tensor([0, 1, 5, 4, 3, 2]))
        self.norm, self.mixer = RMSNorm(width), BiMambaWrapper(width)

    def reverse_complement(self, ids: Tensor) -> Tensor:
        of_each = self.complement_map.unsqueeze(0).expand(ids.shape[0], -1)
        return torch.gather(of_each, dim=1, index=torch.flip(ids, dims=[-1]))

    def forward(self, input_ids: Tensor) -> Tensor:
        one = self.embedding(input_ids)
        other = self.embedding(self.reverse_complement(input_ids))
        one = one + self.mixer(self.norm(one))
        other = other + self.mixer(self.norm(other))
        table = self.embedding.weight
        of_complement = F.linear(other.flip(dims=[1]), table[self.complement_map])
        return F.linear(one, table) + of_complement


class Mamba4RecLike(nn.Module):
    """Items (batch, length) int64 and their number to scores of every item as the next one."""

    def __init__(self, items: int = 20, width: int = 8) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(items, width, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.mamba = Mamba(d_model=width, d_state=4, d_conv=4, expand=2)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.dropout = nn.Dropout(0.2)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        x = self.LayerNorm(self.dropout(self.item_embedding(item_seq)))
        x = self.norms[0](self.dropout(self.mamba(x)) + x)
        x = self.norms[1](self.ffn(x) + x)
        index = (item_seq_len - 1).view(-1, 1, 1).expand(-1, -1, x.shape[-1])
        last = x.gather(dim=1, index=index).squeeze(1)
        return last @ self.item_embedding.weight.transpose(0, 1)


class HydraLike(nn.Module):
    """Hydra: both directions as one batch of Mamba-2 scans, each shifted by a step, and a skip of its own."""

    def __init__(self, width: int = 16, headdim: int = 8, d_state: int = 8) -> None:
        super().__init__()
        self.width, self.headdim, self.heads = width, headdim, width // headdim
        self.in_proj = nn.Linear(width, 2 * width + 4 * d_state + 2 * self.heads)
        self.conv1d = nn.Conv1d(width + 4 * d_state, width + 4 * d_state, 7, padding=3)
        self.dt_bias = nn.Parameter(torch.randn(self.heads))
        self.A_log = nn.Parameter(torch.randn(self.heads))
        self.fc_D = nn.Linear(width, self.heads)
        self.norm = RMSNormGated(width, eps=1e-5, norm_before_gate=True)
        self.out_proj = nn.Linear(width, width)

    def forward(self, u: Tensor) -> Tensor:
        batch = u.shape[0]
        convolved = self.conv1d.in_channels
        z, xBC, dt = self.in_proj(u).split([self.width, convolved, 2 * self.heads], dim=-1)
        dt = torch.cat((dt[:, :, : self.heads], dt[:, :, self.heads :].flip((1,))), dim=0)
        dt = F.softplus(dt + self.dt_bias)
        xBC = F.silu(self.conv1d(xBC.transpose(1, 2)).transpose(1, 2))
        x, first, second = xBC.split([self.width] + [(convolved - self.width) // 2] * 2, dim=-1)
        B, C = torch.cat((first, second.flip((1,))), dim=0).chunk(2, dim=-1)
        both = torch.cat((x, x.flip((1,))), dim=0).unflatten(-1, (self.heads, self.headdim))
        y = mamba_chunk_scan_combined(
            both, dt, -torch.exp(self.A_log.float()), B.unsqueeze(2), C.unsqueeze(2), chunk_size=64, D=None
        ).flatten(-2)  # fmt: skip
        y = torch.roll(y, shifts=1, dims=1)
        y[:, 0, :] = 0.0
        skip = self.fc_D(x).repeat_interleave(self.headdim, dim=-1)
        y = y[:batch] + y[batch:].flip((1,)) + x * skip
        return self.out_proj(self.norm(y, z))
