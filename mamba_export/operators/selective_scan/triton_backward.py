"""The scan's backward kernels in Triton. See ``triton_kernels`` for the formulas and the tiles."""

import triton.language as tl

from mamba_export.operators.selective_scan.triton_device import (
    DECAY_SHIFT,
    backward_jit,
    decay_of,
    hold_of,
    hold_slope_of,
    locate,
    mask_when,
    next_state,
    step_size,
)
from mamba_export.operators.triton_math import LOG2E, row_of, sigmoid


@backward_jit
def chunk_states_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, bias_ptr, initial_ptr, states_ptr,
    u_stride_b, u_stride_l, delta_stride_b, delta_stride_l, B_stride_b, B_stride_l, B_stride_g,
    length, d_inner, n_groups, channels_per_group, blocks_per_group, n_chunks,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, EXACT_ZOH: tl.constexpr, CHUNK: tl.constexpr,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Backward, pass 1: the state before each chunk, into states (batch, n_chunks, d_state, d_inner)."""
    b, group, _, d, in_d, n, in_n = locate(
        tl.program_id(0),
        n_groups,
        channels_per_group,
        blocks_per_group,
        D_STATE,
        WHOLE,
        NP,
        BLOCK_D,
    )
    mask = in_n[:, None] & in_d[None, :]
    tile = n[:, None] * d_inner + d[None, :]
    A = tl.load(A_ptr + tile, mask=mask, other=0.0) * LOG2E
    bias = tl.load(bias_ptr + d, mask=in_d, other=0.0)
    state_size = tl.cast(d_inner, tl.int64) * D_STATE
    h = tl.load(initial_ptr + b * state_size + tile, mask=mask, other=0.0)
    u_ptr += b * u_stride_b
    delta_ptr += b * delta_stride_b
    B_ptr += b * B_stride_b + group * B_stride_g
    states_ptr += b * n_chunks * state_size
    tl.store(states_ptr + tile, h, mask=mask)

    # All of these chunks are whole: nothing starts after the last one.
    for chunk in range(1, n_chunks):
        for i in tl.static_range(CHUNK):
            row = row_of((chunk - 1) * CHUNK + i, length, REVERSE)
            u = tl.load(u_ptr + row * u_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            x = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + row * B_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
            dt = step_size(x + bias, SOFTPLUS)
            h = next_state(h, DECAY_SHIFT, dt, u, A, B, EXACT_ZOH)
        tl.store(states_ptr + chunk * state_size + tile, h, mask=mask)


@backward_jit
def segment_adjoints_kernel(
    dy_ptr, delta_ptr, A_ptr, C_ptr, z_ptr, bias_ptr, dlast_ptr, adjoints_ptr,
    dy_stride_b, dy_stride_l, delta_stride_b, delta_stride_l, z_stride_b, z_stride_l,
    C_stride_b, C_stride_l, C_stride_g,
    length, d_inner, n_groups, channels_per_group, blocks_per_group, n_segments, segment_chunks,
    HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, CHUNK: tl.constexpr,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Backward, pass 2: ``p`` at the end of each segment: adjoints (batch, n_segments, d_state, d_inner)."""
    b, group, _, d, in_d, n, in_n = locate(
        tl.program_id(0),
        n_groups,
        channels_per_group,
        blocks_per_group,
        D_STATE,
        WHOLE,
        NP,
        BLOCK_D,
    )
    mask = in_n[:, None] & in_d[None, :]
    tile = n[:, None] * d_inner + d[None, :]
    A = tl.load(A_ptr + tile, mask=mask, other=0.0) * LOG2E
    bias = tl.load(bias_ptr + d, mask=in_d, other=0.0)
    state_size = tl.cast(d_inner, tl.int64) * D_STATE
    p = tl.load(dlast_ptr + b * state_size + tile, mask=mask, other=0.0)
    dy_ptr += b * dy_stride_b
    delta_ptr += b * delta_stride_b
    C_ptr += b * C_stride_b + group * C_stride_g
    if HAS_Z:
        z_ptr += b * z_stride_b
    adjoints_ptr += b * n_segments * state_size

    for k in range(n_segments):
        segment = n_segments - 1 - k
        tl.store(adjoints_ptr + segment * state_size + tile, p, mask=mask)
        # The first segment's start is the start of the walk, which the gradient kernel reaches itself.
        first_chunk = tl.where(
            segment == 0, (segment + 1) * segment_chunks, segment * segment_chunks
        )
        last_chunk = tl.minimum((segment + 1) * segment_chunks, tl.cdiv(length, CHUNK))
        for c in range(first_chunk, last_chunk):
            chunk = first_chunk + last_chunk - 1 - c
            for j in tl.static_range(CHUNK):
                t = chunk * CHUNK + CHUNK - 1 - j
                # Steps past the end read the last one, with no step size and no gradient: they do nothing.
                valid = t < length
                row = row_of(tl.minimum(t, length - 1), length, REVERSE)
                q = tl.load(dy_ptr + row * dy_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
                x = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0).to(
                    tl.float32
                )
                C = tl.load(C_ptr + row * C_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
                if HAS_Z:
                    z = tl.load(z_ptr + row * z_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
                    q = q * z * sigmoid(z)
                q = tl.where(valid, q, 0.0)
                dt = tl.where(valid, step_size(x + bias, SOFTPLUS), 0.0)
                p = decay_of(dt, A, DECAY_SHIFT) * (p + q[None, :] * C[:, None])


@backward_jit
def gradients_kernel(
    dy_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, adjoints_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dB_ptr, dC_ptr, dA_ptr, dD_ptr, dbias_ptr, dinitial_ptr,
    dy_stride_b, dy_stride_l, u_stride_b, u_stride_l, delta_stride_b, delta_stride_l, z_stride_b, z_stride_l,
    B_stride_b, B_stride_l, B_stride_g, C_stride_b, C_stride_l, C_stride_g,
    length, d_inner, batch, n_groups, channels_per_group, blocks_per_group,
    n_chunks, n_segments, segment_chunks,
    HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, EXACT_ZOH: tl.constexpr,
    CHUNK: tl.constexpr,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Backward, pass 3: every gradient, for one batch element, block of channels and segment.

    du, ddelta, dz and dinitial are final. dB and dC (blocks_per_group, batch, length, n_groups, d_state),
    dA (batch * n_segments, d_state, d_inner), dD and dbias (batch * n_segments, d_inner) are partial sums.
    dinitial is (batch, d_state, d_inner).
    """
    sequence, group, block, d, in_d, n, in_n = locate(
        tl.program_id(0),
        n_groups,
        channels_per_group,
        blocks_per_group,
        D_STATE,
        WHOLE,
        NP,
        BLOCK_D,
    )
    b = sequence // n_segments
    segment = (sequence % n_segments).to(tl.int32)
    mask = in_n[:, None] & in_d[None, :]
    tile = n[:, None] * d_inner + d[None, :]
    A = tl.load(A_ptr + tile, mask=mask, other=0.0) * LOG2E
    D = tl.load(D_ptr + d, mask=in_d, other=0.0)
    bias = tl.load(bias_ptr + d, mask=in_d, other=0.0)

    dy_ptr += b * dy_stride_b
    u_ptr += b * u_stride_b
    delta_ptr += b * delta_stride_b
    B_ptr += b * B_stride_b + group * B_stride_g
    C_ptr += b * C_stride_b + group * C_stride_g
    du_ptr += b * length * d_inner
    ddelta_ptr += b * length * d_inner
    if HAS_Z:
        z_ptr += b * z_stride_b
        dz_ptr += b * length * d_inner
    BC_stride_l = n_groups * D_STATE
    partial = (block * tl.cast(batch, tl.int64) + b) * length * BC_stride_l + group * D_STATE
    dB_ptr += partial
    dC_ptr += partial
    state_size = tl.cast(d_inner, tl.int64) * D_STATE
    states_ptr += b * n_chunks * state_size

    p = tl.load(adjoints_ptr + sequence * state_size + tile, mask=mask, other=0.0)
    dA = tl.zeros([NP, BLOCK_D], tl.float32)
    dD = tl.zeros([BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    first_chunk = segment * segment_chunks
    last_chunk = tl.minimum(first_chunk + segment_chunks, n_chunks)
    for c in range(first_chunk, last_chunk):
        chunk = first_chunk + last_chunk - 1 - c
        h = tl.load(states_ptr + chunk * state_size + tile, mask=mask, other=0.0)
        before = (h,)  # before[i]: the state that step i of the chunk starts from
        for i in tl.static_range(CHUNK - 1):
            # Steps past the end read the last one, and whatever they give is not used.
            row = row_of(tl.minimum(chunk * CHUNK + i, length - 1), length, REVERSE)
            u = tl.load(u_ptr + row * u_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            x = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + row * B_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
            dt = step_size(x + bias, SOFTPLUS)
            h = next_state(h, DECAY_SHIFT, dt, u, A, B, EXACT_ZOH)
            # Triton knows no starred expression.
            before = before + (h,)  # type: ignore[assignment]  # noqa: RUF005

        for j in tl.static_range(CHUNK):
            t = chunk * CHUNK + CHUNK - 1 - j
            # Steps past the end read the last one, with no step size and no gradient: they do nothing.
            valid = t < length
            store_d, store_n = mask_when(valid, in_d), mask_when(valid, in_n)
            row = row_of(tl.minimum(t, length - 1), length, REVERSE)
            dy = tl.load(dy_ptr + row * dy_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            u = tl.load(u_ptr + row * u_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            x = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + row * B_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
            C = tl.load(C_ptr + row * C_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
            x = x + bias
            dt = tl.where(valid, step_size(x, SOFTPLUS), 0.0)
            dy = tl.where(valid, dy, 0.0)
            a = decay_of(dt, A, DECAY_SHIFT)
            decayed = a * before[CHUNK - 1 - j]
            if EXACT_ZOH:
                hold = hold_of(dt, A, a)
                entering = hold * u[None, :]
            else:
                entering = (dt * u)[None, :]
            h = decayed + entering * B[:, None]
            q = dy
            if HAS_Z:
                z = tl.load(z_ptr + row * z_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
                gate = sigmoid(z)
                r = tl.sum(h * C[:, None], axis=0) + D * u
                q = dy * z * gate
                dz = dy * r * gate * (1.0 + z * (1.0 - gate))
                tl.store(dz_ptr + row * d_inner + d, dz, mask=store_d)

            g = p + q[None, :] * C[:, None]
            p = a * g
            ph = g * decayed  # p_t h_{t-1}
            dA += dt[None, :] * ph
            if EXACT_ZOH:
                guB = g * B[:, None] * u[None, :]
                dA += hold_slope_of(dt, A, a, hold) * guB
                du = tl.sum(hold * g * B[:, None], axis=0)
                ddelta = tl.sum(a * guB, axis=0)
            else:
                gB = tl.sum(g * B[:, None], axis=0)
                du = dt * gB
                ddelta = u * gB
            dD += q * u
            # A carries log2(e): divide the sum by it again.
            ddelta += tl.sum(A * ph, axis=0) * (1.0 / LOG2E)
            if SOFTPLUS:
                ddelta = ddelta * sigmoid(x)
            ddelta = tl.where(valid, ddelta, 0.0)
            dbias += ddelta
            dB = tl.sum(g * entering, axis=1)
            dC = tl.sum(h * q[None, :], axis=1)
            tl.store(du_ptr + row * d_inner + d, D * q + du, mask=store_d)
            tl.store(ddelta_ptr + row * d_inner + d, ddelta, mask=store_d)
            tl.store(dB_ptr + row * BC_stride_l + n, dB, mask=store_n)
            tl.store(dC_ptr + row * BC_stride_l + n, dC, mask=store_n)

    tl.store(dA_ptr + sequence * state_size + tile, dA, mask=mask)
    tl.store(dD_ptr + sequence * d_inner + d, dD, mask=in_d)
    tl.store(dbias_ptr + sequence * d_inner + d, dbias, mask=in_d)
    if segment == 0:
        tl.store(dinitial_ptr + b * state_size + tile, p, mask=mask)
