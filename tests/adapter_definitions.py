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


def heads_scan(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    start: Array | None = None,
    softplus_dt: bool = False,
    limit: tuple[float, float] = (0.0, np.inf),
) -> tuple[Array, Array]:
    """x (batch, length, heads, width), dt (batch, length, heads), B, C (batch, length, groups, states)."""
    batch, length, heads, width = x.shape
    a_group = heads // B.shape[2]
    h = np.zeros((batch, heads, width, B.shape[3])) if start is None else start.copy()
    y = np.zeros(x.shape)
    for b in range(batch):
        for k in range(heads):
            for t in range(length):
                step = dt[b, t, k] + (0 if dt_bias is None else dt_bias[k])
                step = softplus(step) if softplus_dt else step
                step = min(max(step, limit[0]), limit[1])
                outer = np.outer(x[b, t, k], B[b, t, k // a_group])
                h[b, k] = np.exp(step * A[k]) * h[b, k] + step * outer
                y[b, t, k] = h[b, k] @ C[b, t, k // a_group]
                y[b, t, k] += 0 if D is None else D[k] * x[b, t, k]
    return (y if z is None else y * silu(z)), h


def gated_rms(
    x: Array, z: Array, weight: Array, epsilon: float, groups: int, before_gate: bool
) -> Array:
    """Each group's channels have a mean square of their own."""
    value = x if before_gate else x * silu(z)
    parts = np.split(value, groups, axis=-1)
    normed = np.concatenate([rms(part, np.ones(1), epsilon) for part in parts], -1) * weight
    return normed * silu(z) if before_gate else normed


def split_mixer(
    projected: Array,
    conv_weight: Array,
    conv_bias: Array | None,
    dt_bias: Array,
    A: Array,
    D: Array,
    width: int,
    groups: int,
    norm: tuple[Array, float, int, bool] | None,
    activate: bool = True,
    limit: tuple[float, float] = (0.0, np.inf),
    start: Array | None = None,
) -> tuple[Array, Array]:
    """Mamba-2's mixer between its projections (arXiv:2405.21060, section 7.1).

    projected (batch, length, ...) holds an MLP's gate and value, z, x, B, C and dt; norm is (weight, epsilon,
    groups, norm before gate).
    """
    heads = A.shape[0]
    inner, channels = heads * width, conv_weight.shape[0]
    mlp = (projected.shape[-1] - inner - channels - heads) // 2
    ends = np.cumsum([mlp, mlp, inner, channels])
    gate, value, z, xBC, dt = np.split(projected, ends, axis=-1)
    xBC = causal_conv(xBC.transpose(0, 2, 1), conv_weight, conv_bias, activate=activate)
    xBC = xBC.transpose(0, 2, 1)
    states = (channels - inner) // 2
    x, B, C = np.split(xBC, [inner, inner + states], axis=-1)
    rows = x.shape[:2]
    y, h = heads_scan(
        x.reshape(*rows, heads, width), dt, A, B.reshape(*rows, groups, -1), C.reshape(*rows, groups, -1), D,
        z.reshape(*rows, heads, width) if norm is None else None, dt_bias, start, True, limit,
    )  # fmt: skip
    y = y.reshape(*rows, inner)
    if norm is not None:
        y = gated_rms(y, z, *norm)
    return np.concatenate([silu(gate) * value, y], -1), h


def rotate(x: Array, width: int, base: float, interleaved: bool) -> Array:
    """x (length, width of a head): pairs of its first ``width`` numbers turned by their position's angle."""
    turned = x.copy()
    for t in range(x.shape[0]):
        for pair in range(width // 2):
            i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + width // 2)
            angle = t * base ** (-2 * pair / width)
            turned[t, i] = x[t, i] * np.cos(angle) - x[t, j] * np.sin(angle)
            turned[t, j] = x[t, i] * np.sin(angle) + x[t, j] * np.cos(angle)
    return turned


def attention(q: Array, k: Array, v: Array, causal: bool, scale: float) -> Array:
    """Of one head: q, k, v (length, width)."""
    scores = q @ k.T * scale
    if causal:
        scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v
