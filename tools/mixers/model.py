"""A language model of any block, and its export with states as inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import mamba_export
from mamba_export.models import RMSNorm
from mixers.blocks import Block
from mixers.parts_export import export_in_parts

_EPSILON = 1e-5


class Layer(nn.Module):
    """Pre-norm residual layer around a block."""

    def __init__(self, d_model: int, block: Block) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model, _EPSILON)
        self.block = block


class MixerBackbone(nn.Module):
    """Layers and a final norm over continuous inputs: ``MambaBackbone`` with another block.

    Args:
        d_model: width.
        n_layer: layers.
        make: a layer's block.
    """

    def __init__(self, d_model: int, n_layer: int, make: Callable[[], Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(d_model, make()) for _ in range(n_layer))
        self.norm_f = RMSNorm(d_model, _EPSILON)
        with torch.no_grad():
            for block in self.blocks:
                block.out_proj.weight /= n_layer**0.5

    @property
    def blocks(self) -> list[Block]:
        """The block of each layer."""
        return [layer.block for layer in self._layers]

    @property
    def is_time_invariant(self) -> bool:
        """Whether every mixer does the same at every step, and so is a convolution too."""
        return all(block.mixer.is_time_invariant for block in self.blocks)

    @property
    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def initial_state(self, batch: int) -> list[Tensor]:
        """What a sequence that is read in parts starts from: each layer's tensors, one layer after another."""
        return [tensor for block in self.blocks for tensor in block.initial_state(batch)]

    def growing(self) -> list[int | None]:
        """Of each tensor of the state the axis along which it grows, or None."""
        return [axis for block in self.blocks for axis in block.growing()]

    def forward(
        self, x: Tensor, state: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The last hidden state of every step.

        Args:
            x: (batch, length, d_model).
            state: what the part before returned, at the start ``initial_state``; None for a whole sequence, of
                which no state is asked.

        Returns:
            y of x's shape, and with a state the state after the last step.
        """
        after: list[Tensor] = []
        read = 0
        for layer in self._layers:
            size = len(layer.block.growing())
            part = None if state is None else list(state[read : read + size])
            read += size
            y, new = layer.block(layer.norm(x), part)
            x = x + y
            after += new
        return self.norm_f(x), after if state is not None else []


class MixerModel(MixerBackbone):
    """Embedding, layers, norm, output projection: ``MambaLM`` with another block.

    Args:
        vocab_size: tokens.
        d_model, n_layer, make: see ``MixerBackbone``.
    """

    def __init__(
        self, vocab_size: int, d_model: int, n_layer: int, make: Callable[[], Block]
    ) -> None:
        super().__init__(d_model, n_layer, make)
        self.vocab_size = vocab_size
        self.embeddings = nn.Embedding(vocab_size, d_model)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(
        self, tokens: Tensor, state: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, length, vocab_size) of tokens (batch, length), and the state, as a backbone has it."""
        y, after = super().forward(self.embeddings(tokens), state)
        return self.lm_head(y), after


class Streaming(nn.Module):
    """A model whose state is its arguments and results: what is exported."""

    def __init__(self, model: MixerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        logits, after = self.model(tokens, state)
        return (logits, *after)


class Whole(nn.Module):
    """A model that reads whole sequences: LTI mixers are convolutions in the file."""

    def __init__(self, model: MixerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[0]


def export_streaming(model: MixerModel, output: Path) -> Path:
    """Export a model that reads its sequence in parts of any length, with its states carried."""
    return export_in_parts(
        Streaming(model),
        torch.ones(2, 5, dtype=torch.long),
        model.initial_state(2),
        output,
        input_name="tokens",
        output_names=["logits"],
        growing=model.growing(),
    )


def export_whole(model: MixerModel, output: Path, length: int | None = None) -> Path:
    """Export a model that reads whole sequences, of ``length`` tokens, or of any length where that is None."""
    axes = {0: "batch"} if length is not None else {0: "batch", 1: "length"}
    return mamba_export.export(
        Whole(model),
        (torch.ones(2, length or 48, dtype=torch.long),),
        output=output,
        dynamic_shapes={"tokens": axes},
    )
