"""What mamba_ssm's and causal_conv1d's functions are defined to compute, in numpy's float64, a step at a time.

Written from their documentation alone; nothing here calls PyTorch or this package.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def selective_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
) -> tuple[Array, Array]:
    """u, delta, z (batch, d_inner, length); A (d_inner, d_state); B, C in any of their three shapes."""
    batch, channels, length = u.shape

    def at(matrix: Array, sequence: int, channel: int, t: int) -> Array:
        if matrix.ndim == 2:
            return matrix[channel]
        if matrix.ndim == 3:
            return matrix[sequence, :, t]
        return matrix[sequence, channel // (channels // matrix.shape[1]), :, t]

    y, h = np.zeros(u.shape), np.zeros((batch, *A.shape))
    for b in range(batch):
        for d in range(channels):
            for t in range(length):
                dt = delta[b, d, t] + (0 if delta_bias is None else delta_bias[d])
                dt = softplus(dt) if delta_softplus else dt
                h[b, d] = np.exp(dt * A[d]) * h[b, d] + dt * at(B, b, d, t) * u[b, d, t]
                y[b, d, t] = h[b, d] @ at(C, b, d, t)
                y[b, d, t] += 0 if D is None else D[d] * u[b, d, t]
    return (y if z is None else y * silu(z)), h


def causal_conv(
    x: Array, weight: Array, bias: Array | None, state: Array | None = None, activate: bool = True
) -> Array:
    """x (batch, channels, length), weight (channels, taps), state (batch, channels, taps - 1)."""
    batch, channels, length = x.shape
    taps = weight.shape[1]
    before = np.zeros((batch, channels, taps - 1)) if state is None else state
    padded = np.concatenate([before, x], axis=2)
    y = np.zeros(x.shape)
    for t in range(length):
        y[:, :, t] = (padded[:, :, t : t + taps] * weight).sum(-1)
    y += 0 if bias is None else bias[:, None]
    return silu(y) if activate else y


def rms(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight + bias


def mamba_inner(
    xz: Array,
    conv_weight: Array,
    conv_bias: Array,
    x_proj: Array,
    dt_proj: Array,
    A: Array,
    D: Array,
    delta_bias: Array,
    B: Array | None = None,
    C: Array | None = None,
    norms: tuple[Array, Array, Array] | None = None,
    epsilon: float = 1e-6,
) -> Array:
    """The mixer between its outer projections, (batch, 2 * d_inner, length) -> (batch, d_inner, length)."""
    x, z = np.split(xz, 2, axis=1)
    x = causal_conv(x, conv_weight[:, 0], conv_bias)
    rank, states = dt_proj.shape[1], A.shape[1]
    projected = np.einsum("bdl,rd->blr", x, x_proj)
    delta = projected[..., :rank] @ dt_proj.T
    own_B, own_C = projected[..., rank : rank + states], projected[..., -states:]
    if norms is not None:
        own_B, own_C = rms(own_B, norms[0], epsilon), rms(own_C, norms[1], epsilon)
        delta = rms(delta, norms[2], epsilon)
    B = own_B.transpose(0, 2, 1) if B is None else B
    C = own_C.transpose(0, 2, 1) if C is None else C
    return selective_scan(x, delta.transpose(0, 2, 1), A, B, C, D, z, delta_bias, True)[0]
