"""mamba_ssm.modules.mha.MHA: the attention layers of its hybrid language models, with its parameter names."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export.adapters.convolution import convolve_steps
from mamba_export.adapters.layer_cache import states_of
from mamba_export.adapters.unsupported import refuse
from mamba_export.operators.dtypes import accumulation_dtype


class RotaryEmbedding(nn.Module):
    """Rotary positions (arXiv:2104.09864) of the first ``width`` numbers of a head; it has no parameters."""

    def __init__(self, width: int, base: float, interleaved: bool) -> None:
        super().__init__()
        self.width, self.base, self.interleaved = width, base, interleaved

    def forward(self, x: Tensor, offset: int) -> Tensor:
        """x (batch, length, heads, head_dim), its first step at position ``offset`` -> the same shape."""
        wide = accumulation_dtype(x.dtype)
        pairs = torch.arange(0, self.width, 2, device=x.device, dtype=wide)
        positions = offset + torch.arange(x.shape[1], device=x.device)
        angles = positions.to(wide)[:, None] * self.base ** (-pairs / self.width)
        cos, sin = (of(angles)[:, None].to(x.dtype) for of in (torch.cos, torch.sin))
        turned, rest = x[..., : self.width], x[..., self.width :]
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = turned.chunk(2, dim=-1)
        parts = (first * cos - second * sin, first * sin + second * cos)
        turned = torch.stack(parts, -1).flatten(-2) if self.interleaved else torch.cat(parts, -1)
        return torch.cat([turned, rest], dim=-1)


class MHA(nn.Module):
    """Attention of many heads, some of which may share keys and values; optionally behind a convolution.

    Args:
        embed_dim, num_heads, num_heads_kv, head_dim, qkv_proj_bias, out_proj_bias: sizes and biases.
        mlp_dim: width of a gated MLP beside the heads, rounded up to a multiple of 256; 0 for none.
        softmax_scale: of the scores; None for 1 / sqrt(head_dim).
        causal: a step reads itself and what is before it.
        layer_idx: key of this layer's states in ``inference_params``.
        d_conv: taps of a convolution over queries, keys and values; 0 for none.
        rotary_emb_dim, rotary_emb_base, rotary_emb_interleaved: rotary positions; 0 for none.

    Raises:
        ValueError: sizes that do not divide each other; the message names them.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        mlp_dim: int = 0,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        softmax_scale: float | None = None,
        causal: bool = False,
        layer_idx: int | None = None,
        d_conv: int = 0,
        rotary_emb_dim: int = 0,
        rotary_emb_base: float = 10000.0,
        rotary_emb_interleaved: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.num_heads_kv = num_heads if num_heads_kv is None else num_heads_kv
        if num_heads % self.num_heads_kv:
            raise ValueError(f"MHA: num_heads_kv {num_heads_kv} does not divide {num_heads} heads")
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(f"MHA: num_heads {num_heads} does not divide embed_dim {embed_dim}")
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.mlp_dim = math.ceil(mlp_dim / 256) * 256
        self.softmax_scale, self.causal, self.layer_idx = softmax_scale, causal, layer_idx
        self.d_conv, self.rotary_emb_dim = d_conv, rotary_emb_dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        qkv_dim = self.head_dim * (num_heads + 2 * self.num_heads_kv)
        self.in_proj = nn.Linear(embed_dim, qkv_dim + self.mlp_dim, bias=qkv_proj_bias, **factory)
        if d_conv > 0:
            self.conv1d = nn.Conv1d(
                qkv_dim, qkv_dim, d_conv, groups=qkv_dim, padding=d_conv - 1, **factory
            )
        if rotary_emb_dim > 0:
            self.rotary_emb = RotaryEmbedding(
                rotary_emb_dim, rotary_emb_base, rotary_emb_interleaved
            )
        width = self.head_dim * num_heads + self.mlp_dim // 2
        self.out_proj = nn.Linear(width, embed_dim, bias=out_proj_bias, **factory)

    def forward(self, x: Tensor, inference_params: Any = None) -> Tensor:
        """x (batch, length, embed_dim) -> the same shape; with ``inference_params`` its next part.

        Raises:
            NotImplementedError: ``inference_params`` has lengths_per_sample.
        """
        cache: tuple[Tensor | None, Tensor | None] = (None, None)
        offset = 0
        if inference_params is not None:
            if inference_params.lengths_per_sample is not None:
                refuse("MHA with lengths_per_sample", "give prompts of one length")
            cache = states_of(self, inference_params, x.shape[0])
            offset = inference_params.seqlen_offset
        kv_cache, conv_state = cache
        qkv, mlp = self.in_proj(x).split(
            [self.in_proj.out_features - self.mlp_dim, self.mlp_dim], -1
        )
        if self.d_conv > 0:
            qkv = self._convolved(qkv, conv_state, offset)
        q, k, v = qkv.unflatten(-1, (-1, self.head_dim)).split(
            [self.num_heads, self.num_heads_kv, self.num_heads_kv], dim=2
        )
        if self.rotary_emb_dim > 0:
            q, k = self.rotary_emb(q, offset), self.rotary_emb(k, offset)
        if kv_cache is not None:
            end = offset + x.shape[1]
            kv_cache[:, offset:end, 0], kv_cache[:, offset:end, 1] = k, v
            k, v = kv_cache[:, :end].to(q.dtype).unbind(2)
        y = self._attended(q, k, v).flatten(-2)
        if self.mlp_dim > 0:
            value, gate = mlp.chunk(2, dim=-1)
            y = torch.cat([y, value * F.silu(gate)], dim=-1)
        return self.out_proj(y)

    def _convolved(self, qkv: Tensor, conv_state: Tensor | None, offset: int) -> Tensor:
        """Convolution of queries, keys and values, whose last inputs ``conv_state`` keeps."""
        weight = self.conv1d.weight.squeeze(1)
        past = None if conv_state is None or offset == 0 else conv_state[..., 1:]
        y, _ = convolve_steps(qkv, weight, self.conv1d.bias, past, silu=False)
        if conv_state is not None:
            before = conv_state if offset else torch.zeros_like(conv_state)
            inputs = torch.cat([before, qkv.transpose(1, 2).to(conv_state.dtype)], dim=-1)
            conv_state.copy_(inputs[..., -self.d_conv :])
        return y

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (batch, length, heads, head_dim), k, v (batch, steps, ...), the last steps of which are q's."""
        times = self.num_heads // self.num_heads_kv
        if times > 1:
            k, v = (tensor.repeat_interleave(times, dim=2) for tensor in (k, v))
        mask = None
        if self.causal:
            steps = torch.arange(k.shape[1], device=q.device)
            rows = steps[k.shape[1] - q.shape[1] :]
            mask = rows[:, None] >= steps
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.softmax_scale)
        return y.transpose(1, 2)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Keys and values (batch, max_seqlen, 2, num_heads_kv, head_dim), and the convolution's inputs."""
        weight = self.out_proj.weight
        dtype = weight.dtype if dtype is None else dtype
        shape = (batch_size, max_seqlen, 2, self.num_heads_kv, self.head_dim)
        conv_state = None
        if self.d_conv > 0:
            channels = self.conv1d.weight.shape[0]
            conv_state = weight.new_zeros((batch_size, channels, self.d_conv), dtype=dtype)
        return weight.new_zeros(shape, dtype=dtype), conv_state
