"""State space duality in standard ONNX operators: the bodies of its functions.

A runtime that has no kernel for a node inlines its function. It computes in fp32 whatever the node's dtype T
is. The length is cut into chunks of at most 64 steps; ``Scan`` walks the chunks with the state, and within a
chunk everything is a product of matrices (arXiv:2405.21060, section 6, the block decomposition). Steps that
fill the last chunk have dt 0 and no decay, so they change nothing. Every exponent is a sum of terms of at most
0, and sums of parts of a chunk are made of their own terms, not as differences of longer sums: nothing
overflows or cancels, whatever the decay is. All sizes are read from the inputs, so
that one body serves every shape; the axes within ``Scan`` have no names (see the selective scan's body).
"""

from mamba_export.contract.operators import STATE_SPACE_DUAL
from mamba_export.operators.onnx_walk import WALK

_PREPARE = """
    x32 = Cast <to = 1> (x)
    dt32 = Cast <to = 1> (dt)
    B32 = Cast <to = 1> (B)
    C32 = Cast <to = 1> (C)
    raw_dt = Add (dt32, dt_bias)
    positive_dt = Softplus (raw_dt)
    softplus_flag = Constant <value_int: int = @dt_softplus> ()
    softplus_bool = Cast <to = 9> (softplus_flag)
    free_dt = Where (softplus_bool, positive_dt, raw_dt)
    dt_low = Constant <value_float: float = @dt_min> ()
    dt_high = Constant <value_float: float = @dt_max> ()
    dt_above = Max (free_dt, dt_low)
    dt_step = Min (dt_above, dt_high)
    dt_A = Mul (dt_step, A)
"""

_NO_DECAY = """
    exponent = Identity (dt_A)
"""

_DECAY = """
    exponent = Add (dt_A, log_decay)
"""

_SCAN = """
    batch_1d = Shape <start = 0, end = 1> (x)
    length_1d = Shape <start = 1, end = 2> (x)
    heads_1d = Shape <start = 2, end = 3> (x)
    head_dim_1d = Shape <start = 3, end = 4> (x)
    groups_1d = Shape <start = 2, end = 3> (B)
    d_state_1d = Shape <start = 3, end = 4> (B)
    heads_a_group = Div (heads_1d, groups_1d)
    most = Constant <value_ints = [64]> ()
    chunk = Min (length_1d, most)
    length_up = Add (length_1d, chunk)
    length_up_less = Sub (length_up, one)
    chunks = Div (length_up_less, chunk)
    full_length = Mul (chunks, chunk)
    missing = Sub (full_length, length_1d)
    pads = Concat <axis = 0> (zero, missing)

    x_walk = Slice (x32, walk_start, walk_end, one, walk_step)
    dt_walk = Slice (dt_step, walk_start, walk_end, one, walk_step)
    exponent_walk = Slice (exponent, walk_start, walk_end, one, walk_step)
    B_walk = Slice (B32, walk_start, walk_end, one, walk_step)
    C_walk = Slice (C32, walk_start, walk_end, one, walk_step)
    nothing = Constant <value_float = 0.0> ()
    x_full = Pad (x_walk, pads, nothing, one)
    dt_full = Pad (dt_walk, pads, nothing, one)
    exponent_full = Pad (exponent_walk, pads, nothing, one)
    B_full = Pad (B_walk, pads, nothing, one)
    C_full = Pad (C_walk, pads, nothing, one)

    x_shape = Concat <axis = 0> (batch_1d, chunks, chunk, groups_1d, heads_a_group, head_dim_1d)
    dt_shape = Concat <axis = 0> (batch_1d, chunks, chunk, groups_1d, heads_a_group, one)
    B_shape = Concat <axis = 0> (batch_1d, chunks, chunk, groups_1d, one, d_state_1d)
    x_chunks = Reshape (x_full, x_shape)
    dt_chunks = Reshape (dt_full, dt_shape)
    exponent_chunks = Reshape (exponent_full, dt_shape)
    B_chunks = Reshape (B_full, B_shape)
    C_chunks = Reshape (C_full, B_shape)
    dt_x = Mul (dt_chunks, x_chunks)
    dt_x_steps = Transpose <perm = [1, 0, 3, 4, 2, 5]> (dt_x)
    exponent_steps = Transpose <perm = [1, 0, 3, 4, 2, 5]> (exponent_chunks)
    B_steps = Transpose <perm = [1, 0, 3, 4, 2, 5]> (B_chunks)
    C_steps = Transpose <perm = [1, 0, 3, 4, 2, 5]> (C_chunks)

    chunk_number = Squeeze (chunk)
    zero_number = Constant <value_int = 0> ()
    one_number = Constant <value_int = 1> ()
    positions = Range (zero_number, chunk_number, one_number)
    rows = Unsqueeze (positions, one)
    columns = Unsqueeze (positions, zero)
    is_later = Greater (rows, columns)
    is_not_later = Less (rows, columns)
    minus_infinity = Constant <value_float = -inf> ()

    state_shape = Shape (initial_state)
    group_state = Concat <axis = 0> (batch_1d, groups_1d, heads_a_group, head_dim_1d, d_state_1d)
    initial32 = Cast <to = 1> (initial_state)
    h_first = Reshape (initial32, group_state)
    h_final, y_walk = Scan <
        num_scan_inputs = 4,
        body = chunk_of (float[?, ?, ?, ?, ?] h, float[?, ?, ?, ?, ?] dt_x_c,
                         float[?, ?, ?, ?, ?] exponent_c, float[?, ?, ?, ?, ?] B_c, float[?, ?, ?, ?, ?] C_c)
            => (float[?, ?, ?, ?, ?] h_next, float[?, ?, ?, ?, ?] y_c) {
            B_columns = Transpose <perm = [0, 1, 2, 4, 3]> (B_c)
            scores = MatMul (C_c, B_columns)
            later = Where (is_later, exponent_c, nothing)
            between = CumSum (later, step_axis)
            between_past = Where (is_not_later, minus_infinity, between)
            weights = Exp (between_past)
            mixing = Mul (scores, weights)
            y_inside = MatMul (mixing, dt_x_c)
            h_columns = Transpose <perm = [0, 1, 2, 4, 3]> (h)
            C_h = MatMul (C_c, h_columns)
            so_far = CumSum (exponent_c, step_axis)
            from_start = Exp (so_far)
            y_before = Mul (from_start, C_h)
            y_c = Add (y_inside, y_before)
            weights_at_end = Slice (weights, minus_one, huge, three)
            to_end_weight = Transpose <perm = [0, 1, 2, 4, 3]> (weights_at_end)
            dt_x_weighted = Mul (dt_x_c, to_end_weight)
            dt_x_columns = Transpose <perm = [0, 1, 2, 4, 3]> (dt_x_weighted)
            added = MatMul (dt_x_columns, B_c)
            whole_decay = Slice (from_start, minus_one, huge, three)
            kept = Mul (whole_decay, h)
            h_next = Add (kept, added)
        }
    > (h_first, dt_x_steps, exponent_steps, B_steps, C_steps)

    last_state32 = Reshape (h_final, state_shape)
    last_state = CastLike (last_state32, initial_state)
    y_columns = Transpose <perm = [1, 0, 4, 2, 3, 5]> (y_walk)
    full_shape = Concat <axis = 0> (batch_1d, full_length, heads_1d, head_dim_1d)
    y_full = Reshape (y_columns, full_shape)
    y_there = Slice (y_full, zero, length_1d, one)
    y_scan = Slice (y_there, walk_start, walk_end, one, walk_step)
    d_skip_1d = Shape <start = 1, end = 2> (D)
    channels_a_skip = Div (head_dim_1d, d_skip_1d)
    skip_shape = Concat <axis = 0> (batch_1d, length_1d, heads_1d, d_skip_1d, channels_a_skip)
    x_skips = Reshape (x32, skip_shape)
    D_skips = Unsqueeze (D, two)
    skip_skips = Mul (x_skips, D_skips)
    sequence_shape = Shape (x)
    skip = Reshape (skip_skips, sequence_shape)
    y_skip = Add (y_scan, skip)
"""

_CONSTANTS = """
    step_axis = Constant <value_int = 3> ()
"""

_NO_GATE = """
    y = CastLike (y_skip, x)
"""

_GATE = """
    z32 = Cast <to = 1> (z)
    gate_sigmoid = Sigmoid (z32)
    gate = Mul (z32, gate_sigmoid)
    y_gated = Mul (y_skip, gate)
    y = CastLike (y_gated, x)
"""


def _body(inputs: set[str]) -> str:
    decay = _DECAY if "log_decay" in inputs else _NO_DECAY
    gate = _GATE if "z" in inputs else _NO_GATE
    return WALK + _CONSTANTS + _PREPARE + decay + _SCAN + gate


BODIES = {
    form.name: _body({tensor.name for tensor in form.inputs}) for form in STATE_SPACE_DUAL.forms()
}
"""The text of each form's function."""
