"""The selective scan in standard ONNX operators: the bodies of its functions.

A runtime that has no kernel for a node inlines its function. It computes in fp32 whatever the node's dtype T
is, loops over time with ``Scan``, so that its size does not depend on the length, and reads all sizes from
its inputs, so that one body serves every shape. The axes within ``Scan`` have no names: h is (batch, groups,
channels of a group, d_state). ONNX Runtime takes axes of one name for one size in the whole file, also where
two inlined bodies have it, and then reuses memory of a wrong size.
"""

from mamba_export.operators.onnx_walk import WALK

_SCAN = """
    u32 = Cast <to = 1> (u)
    delta32 = Cast <to = 1> (delta)
    B32 = Cast <to = 1> (B)
    C32 = Cast <to = 1> (C)
    raw_dt = Add (delta32, delta_bias)
    positive_dt = Softplus (raw_dt)
    softplus_flag = Constant <value_int: int = @delta_softplus> ()
    softplus_bool = Cast <to = 9> (softplus_flag)
    dt = Where (softplus_bool, positive_dt, raw_dt)
    dt_u = Mul (dt, u32)

    batch_length_groups = Shape <start = 0, end = 3> (B)
    batch_1d = Shape <start = 0, end = 1> (B)
    groups_1d = Shape <start = 2, end = 3> (B)
    d_state_1d = Shape <start = 1, end = 2> (A)
    group_columns = Concat <axis = 0> (batch_length_groups, minus_one, one)
    group_matrix = Concat <axis = 0> (groups_1d, minus_one, d_state_1d)
    group_state = Concat <axis = 0> (batch_1d, groups_1d, minus_one, d_state_1d)
    dt_columns = Reshape (dt, group_columns)
    dt_u_columns = Reshape (dt_u, group_columns)
    A_groups = Reshape (A, group_matrix)
    h_first = Reshape (initial_state, group_state)
    B_rows = Unsqueeze (B32, three)
    four = Add (two, two)
    C_columns = Unsqueeze (C32, four)

    dt_steps = Transpose <perm = [1, 0, 2, 3, 4]> (dt_columns)
    dt_u_steps = Transpose <perm = [1, 0, 2, 3, 4]> (dt_u_columns)
    B_steps = Transpose <perm = [1, 0, 2, 3, 4]> (B_rows)
    C_steps = Transpose <perm = [1, 0, 2, 3, 4]> (C_columns)
    dt_walk = Slice (dt_steps, walk_start, walk_end, zero, walk_step)
    dt_u_walk = Slice (dt_u_steps, walk_start, walk_end, zero, walk_step)
    B_walk = Slice (B_steps, walk_start, walk_end, zero, walk_step)
    C_walk = Slice (C_steps, walk_start, walk_end, zero, walk_step)
    h_final, y_walk = Scan <
        num_scan_inputs = 4,
        body = step (float[?, ?, ?, ?] h, float[?, ?, ?, ?] dt_t, float[?, ?, ?, ?] dt_u_t,
                     float[?, ?, ?, ?] B_t, float[?, ?, ?, ?] C_t)
            => (float[?, ?, ?, ?] h_next, float[?, ?, ?, ?] y_t) {
            dt_A = Mul (dt_t, A_groups)
            decay = Exp (dt_A)
            kept = Mul (decay, h)
            added = Mul (dt_u_t, B_t)
            h_next = Add (kept, added)
            y_t = MatMul (h_next, C_t)
        }
    > (h_first, dt_walk, dt_u_walk, B_walk, C_walk)
    y_steps = Slice (y_walk, walk_start, walk_end, zero, walk_step)
    y_columns = Transpose <perm = [1, 0, 2, 3, 4]> (y_steps)

    state_shape = Shape (initial_state)
    last_state = Reshape (h_final, state_shape)
    sequence_shape = Shape (u)
    y_scan = Reshape (y_columns, sequence_shape)
    skip = Mul (u32, D)
    y_skip = Add (y_scan, skip)
"""

_GATE = """
    z32 = Cast <to = 1> (z)
    gate_sigmoid = Sigmoid (z32)
    gate = Mul (z32, gate_sigmoid)
    y_gated = Mul (y_skip, gate)
    y = CastLike (y_gated, u)
"""

_NO_GATE = """
    y = CastLike (y_skip, u)
"""

GATED = WALK + _SCAN + _GATE
UNGATED = WALK + _SCAN + _NO_GATE
