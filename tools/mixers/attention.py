"""A small causal Transformer with rotary positions, whose keys and values are states that grow.

What Mamba is compared with: RMSNorm before attention and before a gated MLP (SwiGLU, arXiv:2002.05202),
rotary positions (arXiv:2104.09864), heads that may share keys and values (arXiv:2305.13245).
``mamba_export.export`` takes its ``attention_program``: token ids and the cache in, logits and the grown cache
out, for any split of a sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export import contract
from mamba_export.adapters.attention import RotaryEmbedding
from mamba_export.adapters.transformers_program import STEPS
from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.contract.program import Program, State, Tokens, Value
from mamba_export.errors import MambaExportError
from mamba_export.fields import Boolean, Integer, Number, OrNone, Rule
from mamba_export.models import RMSNorm
from mamba_export.operators.dtypes import DTYPE_NAMES

MIXER = "attention"
"""What files call it, where they say "mamba" or "mamba2" of others."""
_EPSILON = 1e-5
_STATES = ("key", "value")
FURTHEST = 1 << 24
"""Positions beyond it are no longer whole numbers in fp32, in which their angles are computed."""


@dataclass(frozen=True)
class AttentionConfig:
    """Shape of a Transformer.

    Args:
        d_model: width of the residual stream.
        n_layer: blocks, each of them attention and an MLP.
        vocab_size: tokens.
        n_heads: of queries; divides d_model into heads of an even width.
        n_kv_heads: of keys and values; divides n_heads. None for as many.
        mlp_width: inner width of the gated MLP; None for 8/3 d_model, rounded up to a multiple of 64.
        tie_embeddings: the output projection is the embedding.
        rotary_base: of the angles.
        longest: the longest sequence that it reads, cache included.

    Raises:
        MambaExportError: a value is out of range, or sizes do not divide each other.
    """

    d_model: int
    n_layer: int
    vocab_size: int
    n_heads: int
    n_kv_heads: int | None = None
    mlp_width: int | None = None
    tie_embeddings: bool = True
    rotary_base: float = 10000.0
    longest: int = FURTHEST

    RULES: ClassVar[dict[str, Rule[Any]]] = {
        "d_model": Integer(1),
        "n_layer": Integer(1),
        "vocab_size": Integer(1),
        "n_heads": Integer(1),
        "n_kv_heads": OrNone(Integer(1)),
        "mlp_width": OrNone(Integer(1)),
        "tie_embeddings": Boolean(),
        "rotary_base": Number(above=0),
        "longest": Integer(1, FURTHEST),
    }

    def __post_init__(self) -> None:
        for name, rule in self.RULES.items():
            if not rule.holds(getattr(self, name)):
                raise MambaExportError(
                    f"attention: {name} is {getattr(self, name)!r}, expected {rule}"
                )
        if self.d_model % (2 * self.n_heads):
            raise MambaExportError(
                f"attention: d_model is {self.d_model}, expected a multiple of 2 n_heads, {2 * self.n_heads}"
            )
        if self.n_heads % self.key_heads:
            raise MambaExportError(
                f"attention: n_kv_heads is {self.key_heads}, expected a divisor of n_heads, {self.n_heads}"
            )

    @property
    def key_heads(self) -> int:
        """Heads of keys and values, resolved."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_heads

    @property
    def inner(self) -> int:
        """Inner width of the MLP, resolved."""
        return self.mlp_width or -(-8 * self.d_model // (3 * 64)) * 64

    def to_fields(self) -> dict[str, Any]:
        """Its fields, and "mixer", as ``ModelConfig.to_fields`` has it."""
        return {"mixer": MIXER, **dataclasses.asdict(self)}


class Attention(nn.Module):
    """Causal attention of some heads over the steps of a cache and of a part behind it."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.heads = (config.n_heads, config.key_heads, config.key_heads)
        self.in_proj = nn.Linear(config.d_model, config.head_dim * sum(self.heads), bias=False)
        self.rotary = RotaryEmbedding(config.head_dim, config.rotary_base, interleaved=False)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, visible: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (batch, length, d_model) -> the same shape, and keys and values of all steps so far.

        Args:
            x: the part to read.
            past: keys and values (batch, key_heads, steps, head_dim) of the steps before; None for none.
            visible: (length, steps + length) bool, what each step may read; None without a past.
        """
        before = 0 if past is None else past[0].shape[STEPS]
        q, k, v = self.in_proj(x).unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=2)
        q, k = self.rotary(q, before), self.rotary(k, before)
        q, k, v = (tensor.transpose(1, STEPS) for tensor in (q, k, v))
        if past is not None:
            k, v = torch.cat([past[0], k], STEPS), torch.cat([past[1], v], STEPS)
        present = (k, v)
        shared = self.heads[0] // self.heads[1]
        if shared > 1:
            k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
        return self.out_proj(y.transpose(1, STEPS).flatten(2)), present


class GatedMLP(nn.Module):
    """out_proj(SiLU(gate) * value), gate and value of one projection."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate) * value)


class AttentionLayer(nn.Module):
    """Pre-norm residual layer: attention, then an MLP."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, _EPSILON)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, _EPSILON)
        self.mlp = GatedMLP(config.d_model, config.inner)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, visible: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, present = self.attention(self.norm(x), past, visible)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), present


class AttentionLM(nn.Module):
    """Language model: embedding, layers, norm, output projection (tied to the embedding by default)."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(AttentionLayer(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, _EPSILON)
        self.lm_head: nn.Linear | None = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(
                "out_proj.weight"
            ):  # GPT-2's rule for what adds to the residual stream
                with torch.no_grad():
                    parameter.div_((2 * config.n_layer) ** 0.5)

    def initial_state(self, batch: int) -> list[Tensor]:
        """What a sequence that is read in parts starts from: each layer's keys and values, of no steps."""
        shape = (batch, self.config.key_heads, 0, self.config.head_dim)
        count = len(_STATES) * self.config.n_layer
        return [self.embeddings.weight.new_zeros(shape) for _ in range(count)]

    def forward(
        self,
        tokens: Tensor,
        state: Sequence[Tensor] | None = None,
        *,
        last_logits_only: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the keys and values of all steps so far.

        Args:
            tokens: (batch, length) integers below vocab_size.
            state: what the part before returned, at the start ``initial_state``; None for a whole sequence.
            last_logits_only: of the last step alone.

        Returns:
            logits (batch, length, vocab_size), or (batch, 1, vocab_size), and the state after the last step.

        Raises:
            MambaExportError: the sequence is longer than ``longest``.
        """
        length, before = tokens.shape[1], 0 if state is None else state[0].shape[STEPS]
        if not torch.compiler.is_exporting():
            check_longest(self.config.longest, before + length)
        visible = None
        if state is not None:
            steps = torch.arange(before + length, device=tokens.device)
            visible = steps <= steps[before:, None]
        x, after = self.embeddings(tokens), []
        for index, layer in enumerate(self.layers):
            past = None if state is None else (state[2 * index], state[2 * index + 1])
            x, present = layer(x, past, visible)
            after += present
        x = self.norm_f(x[:, -1:] if last_logits_only else x)
        weight = self.embeddings.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(x, weight), after


def check_longest(longest: int, length: int) -> None:
    """Raise MambaExportError where a sequence is longer than a model's positions reach."""
    if length > longest:
        raise MambaExportError(
            f"the sequence has {length:,} tokens, and this model's positions end at {longest:,}: give a "
            "shorter one, or a model with a larger longest"
        )


class _Positional(nn.Module):
    """The model with its state as positional arguments and results, as a program's module has it."""

    def __init__(self, model: AttentionLM, last_logits_only: bool) -> None:
        super().__init__()
        self.model = model
        self.last_logits_only = last_logits_only

    def forward(self, tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        logits, after = self.model(tokens, past, last_logits_only=self.last_logits_only)
        return (logits, *after)


def attention_program(model: AttentionLM, *, last_logits_only: bool = False) -> Program:
    """The program of a Transformer, with the names that hybrids' caches have.

    Args:
        model: in the dtype that the graph is to have (``model.half()`` for fp16).
        last_logits_only: return the last step's logits alone, (batch, 1, vocab_size).

    Returns:
        input_ids (batch, length) int64 -> logits (batch, length, vocab_size), and of each layer a key and a
        value (batch, key_heads, past_length, head_dim) that grow.
    """
    config = model.config
    dtype = DTYPE_NAMES[model.embeddings.weight.dtype]
    shape = (BATCH, config.key_heads, "past_length", config.head_dim)
    states = []
    for layer in range(config.n_layer):
        for name in _STATES:
            past, present = contract.layer_state_names(layer, name)
            reach = config.longest
            states.append(State.of(past, past, present, dtype, shape, grows=STEPS, longest=reach))
    steps: int | str = 1 if last_logits_only else LENGTH
    return Program(
        _Positional(model, last_logits_only),
        (Value(contract.INPUT_IDS, "int64", (BATCH, LENGTH)),),
        (Value(contract.LOGITS, dtype, (BATCH, steps, config.vocab_size)),),
        tuple(states),
        Tokens(config.vocab_size, last_logits_only=last_logits_only),
    )
