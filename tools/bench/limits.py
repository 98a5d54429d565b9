"""The least time that the hardware needs: what every measurement on a GPU is compared with.

Bytes count every input once and every output once, over the best bandwidth of several copies; exponentials run
on the special function units; matrix products at the best rate of several. ``ceilings`` measures these rates.
A limit is the largest of the times, not their sum.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from mamba_export.contract.operators import CAUSAL_CONV1D, SELECTIVE_SCAN, STATE_SPACE_DUAL
from mamba_export.contract.spec import FP32, Operator, R, T
from mamba_export.contract.weights import Weights
from mamba_export.models import MambaLM, ModelConfig

_SPECIAL_FUNCTIONS = 16
"""Special functions (exponential, reciprocal, logarithm) that a multiprocessor starts each clock
(CUDA programming guide, arithmetic instructions: compute capability 5.0 to 12.x)."""
_SOFTPLUS = 2  # exponential, logarithm
_SILU = 2  # exponential, reciprocal
"""Special functions of an element; the scan has one exponential a state beside them."""
ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Ceilings:
    """Rates of a device.

    Args:
        bandwidth: bytes a second of a copy, read and written bytes counted.
        special_rate: special functions a second.
        product_rate: floating-point operations a second of a matrix product, by dtype.
    """

    bandwidth: float
    special_rate: float
    product_rate: dict[str, float]


@dataclass(frozen=True)
class Limit:
    """A least time in milliseconds, and what sets it."""

    milliseconds: float
    bound: str


def special_function_rate(multiprocessors: int, clock_hertz: float) -> float:
    """Special functions a second of a whole device."""
    return _SPECIAL_FUNCTIONS * multiprocessors * clock_hertz


def _largest(**seconds: float) -> Limit:
    bound = max(seconds, key=lambda name: seconds[name])
    return Limit(1e3 * seconds[bound], bound)


def _moved(operator: Operator, dtype: str, absent: Collection[str] = (), **sizes: int) -> int:
    """Bytes of an operator's inputs and outputs, each once, from the contract."""
    items = {T: ITEM_BYTES[dtype], FP32: ITEM_BYTES["fp32"]}
    return operator.bytes_moved(sizes, items, absent)


def scan_bytes(
    batch: int,
    d_inner: int,
    length: int,
    d_state: int,
    dtype: str,
    *,
    n_groups: int = 1,
    gated: bool = True,
) -> int:
    """Bytes that a selective scan must move."""
    return _moved(
        SELECTIVE_SCAN, dtype, () if gated else ("z",),
        batch=batch, length=length, d_inner=d_inner, d_state=d_state, n_groups=n_groups,
    )  # fmt: skip


def scan(
    ceilings: Ceilings,
    batch: int,
    d_inner: int,
    length: int,
    d_state: int,
    dtype: str,
    *,
    n_groups: int = 1,
    gated: bool = True,
) -> Limit:
    """Limit of a selective scan; of a step, where the length is 1."""
    extra = _SOFTPLUS + (_SILU if gated else 0)
    moved = scan_bytes(batch, d_inner, length, d_state, dtype, n_groups=n_groups, gated=gated)
    return _largest(
        memory=moved / ceilings.bandwidth,
        exponentials=batch * length * d_inner * (d_state + extra) / ceilings.special_rate,
    )


def dual_bytes(
    batch: int,
    heads: int,
    length: int,
    head_dim: int,
    d_state: int,
    dtype: str,
    state: str = "fp32",
) -> int:
    """Bytes that state space duality must move: one group, no gate, states in ``state``, and an initial one
    for a step alone."""
    sizes = {
        "batch": batch, "heads": heads, "length": length, "head_dim": head_dim,
        "d_state": d_state, "n_groups": 1, "d_skip": 1,
    }  # fmt: skip
    items = {T: ITEM_BYTES[dtype], FP32: ITEM_BYTES["fp32"], R: ITEM_BYTES[state]}
    absent = [
        tensor.name
        for tensor in STATE_SPACE_DUAL.inputs
        if tensor.without is not None or (tensor.null_is_zeros and length > 1)
    ]
    return STATE_SPACE_DUAL.bytes_moved(sizes, items, absent)


def dual(
    ceilings: Ceilings,
    batch: int,
    heads: int,
    length: int,
    head_dim: int,
    d_state: int,
    dtype: str,
    state: str = "fp32",
) -> Limit:
    """Limit of state space duality; of a step, where the length is 1.

    The least number of operations, those of the recurrence itself, are 4 of a step and an element of the
    state; a form in chunks has more. A step runs on no tensor core, so only its bytes count.
    """
    moved = dual_bytes(batch, heads, length, head_dim, d_state, dtype, state)
    operations = 4 * batch * heads * length * head_dim * d_state if length > 1 else 0
    return _largest(
        memory=moved / ceilings.bandwidth,
        products=operations / ceilings.product_rate[dtype],
    )


def conv_bytes(batch: int, channels: int, length: int, d_conv: int, dtype: str) -> int:
    """Bytes that a causal convolution must move."""
    return _moved(
        CAUSAL_CONV1D, dtype, batch=batch, length=length, channels=channels, d_conv=d_conv
    )


def conv(
    ceilings: Ceilings, batch: int, channels: int, length: int, d_conv: int, dtype: str
) -> Limit:
    """Limit of a causal convolution with SiLU."""
    return _largest(
        memory=conv_bytes(batch, channels, length, d_conv, dtype) / ceilings.bandwidth,
        exponentials=batch * channels * length * _SILU / ceilings.special_rate,
    )


def layer_weights(config: ModelConfig) -> int:
    """Elements of a layer's matrices, the projections."""
    return _layer(config)[0]


@functools.cache
def _layer(config: ModelConfig) -> tuple[int, int]:
    """Elements of a layer's matrices, and of its other parameters."""
    with torch.device("meta"):
        layer = MambaLM(config.replace(n_layer=1, vocab_size=1)).backbone.layers[0]
    matrices = sum(one.weight.numel() for one in layer.modules() if isinstance(one, nn.Linear))
    return matrices, sum(one.numel() for one in layer.parameters()) - matrices


def weight_bytes(config: ModelConfig, dtype: str, weights: Weights | None = None) -> int:
    """Bytes of weights that a forward pass reads: matrices and output projection in ``dtype``, the rest fp32.

    With ``weights`` every one of these matrices counts as codes and scales, whether the file packs it or not:
    the least that it could be. The embedding is not counted beside the output projection: a token reads one row
    of it.
    """
    matrices, others = _layer(config)
    products = config.n_layer * matrices + config.vocab_size * config.d_model
    item: float = ITEM_BYTES[dtype]
    if weights is not None:
        item = weights.bits / 8 + item / weights.block
    return round(products * item) + 4 * config.n_layer * others


def state_bytes(config: ModelConfig, batch: int, dtype: str, state: str = "fp32") -> int:
    """Bytes of the states of a batch; state: dtype of the recurrent ones."""
    conv_state = (config.d_conv - 1) * config.conv_channels * ITEM_BYTES[dtype]
    return (
        batch
        * config.n_layer
        * (ITEM_BYTES[state] * math.prod(config.recurrent_shape) + conv_state)
    )


def prefill(
    ceilings: Ceilings,
    config: ModelConfig,
    batch: int,
    length: int,
    dtype: str,
    weights: Weights | None = None,
) -> Limit:
    """Limit of reading a prompt and giving the logits of its last step.

    The operations are those of the matrix products; weights are read once.
    """
    tokens = batch * length
    operations = 2 * tokens * config.n_layer * layer_weights(config)
    operations += 2 * batch * config.vocab_size * config.d_model
    return _largest(
        products=operations / ceilings.product_rate[dtype],
        weights=weight_bytes(config, dtype, weights) / ceilings.bandwidth,
    )


def decode(
    ceilings: Ceilings,
    config: ModelConfig,
    batch: int,
    dtype: str,
    weights: Weights | None = None,
    state: str = "fp32",
) -> Limit:
    """Limit of a decoded token: weights read once, states read and written once.

    state: dtype of the recurrent ones.
    """
    matrices = weight_bytes(config, dtype, weights)
    states = 2 * state_bytes(config, batch, dtype, state)
    bound = "weights" if matrices >= states else "states"
    return Limit(1e3 * (matrices + states) / ceilings.bandwidth, bound)
