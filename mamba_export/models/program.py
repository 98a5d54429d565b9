"""Our models as programs: what export takes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mamba_export import contract
from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.contract.program import Program, State, Tokens, Value
from mamba_export.contract.spec import R
from mamba_export.models.config import ModelConfig
from mamba_export.models.language_model import MambaBackbone, MambaLM
from mamba_export.models.mixer import LayerState
from mamba_export.operators.dtypes import DTYPE_NAMES


class SharedParameters(nn.Module):
    """A module around another whose parameters and buffers have the names that they have in the other.

    Args:
        model: what is wrapped; it stays as it is.
    """

    wrapped: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Not as a child, which would put a prefix before every name.
        object.__setattr__(self, "wrapped", model)
        self._parameters = model._parameters
        self._buffers = model._buffers
        self._modules = model._modules


class _Positional(SharedParameters):
    """A language model or backbone: the sequence, then the states' tensors in graph order."""

    def __init__(self, model: MambaLM | MambaBackbone, last_logits_only: bool) -> None:
        super().__init__(model)
        self.last_logits_only = last_logits_only

    def forward(self, sequence: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        model = self.wrapped
        state = [LayerState(*past[i : i + 2]) for i in range(0, len(past), 2)]
        if isinstance(model, MambaLM):
            y, state = model(sequence, state, last_logits_only=self.last_logits_only)
        else:
            y, state = model(sequence, state)
        return (y, *(tensor for layer in state for tensor in layer))


def state_dtypes(config: ModelConfig, dtype: str) -> tuple[str, ...]:
    """Dtypes that a model's recurrent states may have, by its operator's row; the first is the usual one.

    Args:
        config: of the model.
        dtype: of its matrices.
    """
    [row] = [tensor for tensor in config.operator.inputs if tensor.name == "initial_state"]
    return ("fp32", dtype) if row.dtype == R and dtype != "fp32" else ("fp32",)


def recurrent_dtype(states: Sequence[State]) -> str | None:
    """Dtype of the recurrent states among those of a language model or backbone; None where there are none."""
    (_, recurrent), _ = contract.state_names(1)
    return next((one.past.dtype for one in states if one.past.name == recurrent), None)


def make_program(
    model: MambaLM | MambaBackbone,
    *,
    last_logits_only: bool = False,
    state_dtype: str | None = None,
) -> Program:
    """The program of a language model or a backbone, with the names that the contract gives.

    Args:
        model: in the dtype that the graph is to have.
        last_logits_only: of a language model: return the last step's logits alone, (batch, 1, vocab_size).
        state_dtype: of the recurrent states, one of ``state_dtypes``; None for fp32.

    Returns:
        input_ids (batch, length) int64 -> logits (batch, length, vocab_size); of a backbone inputs_embeds
        (batch, length, d_model) -> last_hidden_state of that shape; and two states a layer.
    """
    config = model.config
    dtype = DTYPE_NAMES[model.backbone_dtype]
    past, present = contract.state_names(config.n_layer)
    tensors = [
        one
        for conv, recurrent in model.initial_state(1)
        for one in ((DTYPE_NAMES[conv.dtype], conv), (state_dtype or "fp32", recurrent))
    ]
    states = tuple(
        State.of(name, name, after, kind, (BATCH, *tensor.shape[1:]))
        for name, after, (kind, tensor) in zip(past, present, tensors, strict=True)
    )
    module = _Positional(model, last_logits_only)
    if isinstance(model, MambaBackbone):
        hidden = (BATCH, LENGTH, config.d_model)
        inputs = (Value(contract.INPUTS_EMBEDS, dtype, hidden),)
        outputs = (Value(contract.OUTPUT_EMBEDS, dtype, hidden),)
        return Program(module, inputs, outputs, states)
    steps: int | str = 1 if last_logits_only else LENGTH
    return Program(
        module,
        (Value(contract.INPUT_IDS, "int64", (BATCH, LENGTH)),),
        (Value(contract.LOGITS, dtype, (BATCH, steps, config.vocab_size)),),
        states,
        Tokens(config.vocab_size, config.eos_token_id, last_logits_only),
    )
