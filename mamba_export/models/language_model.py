"""Backbone and language model, of Mamba-1 or Mamba-2 blocks as the configuration says."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mamba_export.models.config import ModelConfig
from mamba_export.models.inputs import check_sequence, check_states, check_tokens
from mamba_export.models.mamba2_block import Mamba2
from mamba_export.models.mamba2_config import Mamba2Config
from mamba_export.models.mamba_block import Mamba
from mamba_export.models.mamba_config import MambaConfig
from mamba_export.models.mixer import LayerState, Mixer
from mamba_export.models.norms import RMSNorm

State = list[LayerState]
"""One LayerState a layer."""


def make_mixer(config: ModelConfig) -> Mixer:
    """The block that a configuration is of."""
    if isinstance(config, Mamba2Config):
        return Mamba2(config)
    return Mamba(MambaConfig.of(config))


class Layer(nn.Module):
    """Pre-norm residual layer around a mixer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_epsilon)
        self.mixer = make_mixer(config)
        self.residual_in_fp32 = config.residual_in_fp32
        self.as_node = False
        """Whether forward is one operator; see ``layers_as_nodes``."""

    def forward(self, residual: Tensor, state: LayerState | None) -> tuple[Tensor, LayerState]:
        """residual (batch, length, d_model) -> the same with the mixer's output added, and the state."""
        if self.as_node:
            hidden = residual.float() if self.residual_in_fp32 else residual
            if state is None:
                state = self.mixer.initial_state(residual.shape[0])
            return self.mixer.run_layer(hidden, self.norm, state)
        y, new_state = self.mixer(self.norm(residual), state)
        if self.residual_in_fp32 and residual.dtype != torch.float64:
            residual, y = residual.float(), y.float()
        return residual + y, new_state


class Head(nn.Module):
    """The product with a language model's output projection, whose matrix may be the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.as_node = False
        """Whether forward is one operator; see ``layers_as_nodes``."""

    def forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """hidden (batch, length, d_model), weight (vocab_size, d_model) -> (batch, length, vocab_size)."""
        # Of fp32 the runtimes' own product is as quick, and of many rows quicker.
        if self.as_node and weight.itemsize == 2:
            return torch.ops.mamba_export.linear(hidden, weight)
        return nn.functional.linear(hidden, weight)


@contextlib.contextmanager
def layers_as_nodes(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Context in which each layer of MambaLayer's or Mamba2Layer's form is one operator: what export traces.

    A layer that is of neither form (projections with a bias, FalconMamba's norms, exact zero-order hold) keeps
    its single operators. The head of a language model of 16 bits is one operator too.

    Args:
        model: any module; its ``Layer`` and ``Head`` submodules are meant.
        wanted: False leaves all as they are.
    """
    parts = [
        one
        for one in model.modules()
        if isinstance(one, Head) or (isinstance(one, Layer) and one.mixer.has_layer_operator)
    ]
    for part in parts:
        part.as_node = wanted
    try:
        yield
    finally:
        for part in parts:
            part.as_node = False


class MambaBackbone(nn.Module):
    """Layers and a final norm over continuous inputs: no tokens, any length.

    ``forward(x, state)`` takes x (batch, length, d_model) and returns the last hidden state, of the same
    shape, with the states after the last step.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config = ModelConfig.of(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_epsilon)
        initialise(self)

    def forward(
        self, x: Tensor, state: Sequence[LayerState] | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, State]:
        """x (batch, length, d_model), state of ``n_layer`` LayerStates or None -> y, new state.

        With ``last_only``, y is that of the last step alone, (batch, 1, d_model).
        """
        check_sequence(x, self.config.d_model)
        check_states(state, len(self.layers))
        if self.config.residual_in_fp32 and x.dtype != torch.float64:
            x = x.float()
        new_state: State = []
        for index, layer in enumerate(self.layers):
            x, layer_state = layer(x, None if state is None else state[index])
            new_state.append(layer_state)
        return self.norm_f(x[:, -1:] if last_only else x), new_state

    @property
    def backbone_dtype(self) -> torch.dtype:
        """Dtype of the matrices and activations."""
        return self.mixers[0].in_proj.weight.dtype

    def initial_state(self, batch: int) -> State:
        """Zeros: what a sequence starts from."""
        return [mixer.initial_state(batch) for mixer in self.mixers]

    @property
    def mixers(self) -> list[Mixer]:
        """The block of each layer."""
        return [layer.mixer for layer in self.layers if isinstance(layer, Layer)]


class MambaLM(nn.Module):
    """Language model: embedding, backbone, output projection (tied to the embedding by default).

    Args:
        config: a MambaConfig or a Mamba2Config, which decides what the layers are.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        config = ModelConfig.of(config)
        if config.vocab_size < 1:
            raise ValueError(
                "a language model needs vocab_size >= 1; use MambaBackbone without tokens"
            )
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.backbone = MambaBackbone(config)
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.d_model, config.vocab_size, bias=False)
        )
        self.head = Head()

    def forward(
        self,
        input_ids: Tensor,
        state: Sequence[LayerState] | None = None,
        *,
        last_logits_only: bool = False,
    ) -> tuple[Tensor, State]:
        """Logits of every step, and the state after the last.

        Args:
            input_ids: (batch, length) integers in [0, vocab_size), length >= 1.
            state: what the previous part of the sequence returned; None at the start.
            last_logits_only: return the last step's logits alone, (batch, 1, vocab_size).

        Returns:
            logits (batch, length, vocab_size) in the weights' dtype, and the new state.

        Raises:
            InputError: input_ids is no tensor (batch, length) of int64 or int32 with length >= 1.
                Or state is no list of as many states as there are layers.
            ValueError: a state of the wrong shape.
        """
        check_tokens(input_ids)
        embedded = self.embeddings(input_ids)
        hidden, new_state = self.backbone(embedded, state, last_only=last_logits_only)
        weight = self.embeddings.weight if self.lm_head is None else self.lm_head.weight
        return self.head(hidden, weight), new_state

    @property
    def backbone_dtype(self) -> torch.dtype:
        """Dtype of the matrices and activations."""
        return self.backbone.backbone_dtype

    def initial_state(self, batch: int) -> State:
        """Zeros: what a sequence starts from."""
        return self.backbone.initial_state(batch)


@torch.no_grad()
def initialise(backbone: MambaBackbone) -> None:
    """Initialisation of the linear layers as in the released code.

    Biases are zero (the step size's keeps its own), and out_proj is scaled by 1 / sqrt(n_layer), GPT-2's
    rule for what adds to the residual stream.
    """
    for mixer in backbone.mixers:
        for linear in (mixer.in_proj, mixer.out_proj):
            if linear.bias is not None:
                linear.bias.zero_()
        nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
        mixer.out_proj.weight /= math.sqrt(backbone.config.n_layer)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a model's matrices, embeddings and norms to ``dtype``, in place.

    What the operators take in fp32 stays in fp32: A_log, D, the convolution's weight and bias, the step
    size's bias, and Mamba-2's gated norm. (For float64 everything is cast.)
    """
    if dtype == torch.float64:
        return model.double()
    keep = {
        id(parameter)
        for mixer in model.modules()
        if isinstance(mixer, Mixer)
        for parameter in mixer.channel_parameters()
    }
    for parameter in model.parameters():
        if id(parameter) not in keep:
            parameter.data = parameter.data.to(dtype)
    return model
