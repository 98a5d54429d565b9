"""The selective scan in standard ONNX operators: the bodies of its functions.

A runtime that has no kernel for a node inlines its function. It computes in fp32 whatever the node's dtype T
is, loops over time with ``Scan``, so that its size does not depend on the length, and reads all sizes from
its inputs, so that one body serves every shape. The axes within ``Scan`` have no names: h is (batch, groups,
channels of a group, d_state). ONNX Runtime takes axes of one name for one size in the whole file, also where
two inlined bodies have it, and then reuses memory of a wrong size.
"""

from mamba_export.operators.onnx_walk import WALK

_STEP_SIZE = """
    u32 = Cast <to = 1> (u)
    delta32 = Cast <to = 1> (delta)
    B32 = Cast <to = 1> (B)
    C32 = Cast <to = 1> (C)
    raw_dt = Add (delta32, delta_bias)
    positive_dt = Softplus (raw_dt)
    softplus_flag = Constant <value_int: int = @delta_softplus> ()
    softplus_bool = Cast <to = 9> (softplus_flag)
    dt = Where (softplus_bool, positive_dt, raw_dt)
"""

_EULER = """
    dt_u = Mul (dt, u32)
"""


def _walks(entering: str) -> str:
    """Inputs as ``Scan`` walks them; ``entering`` is what a step multiplies with B: dt u, or u."""
    return f"""
    batch_length_groups = Shape <start = 0, end = 3> (B)
    batch_1d = Shape <start = 0, end = 1> (B)
    groups_1d = Shape <start = 2, end = 3> (B)
    d_state_1d = Shape <start = 1, end = 2> (A)
    group_columns = Concat <axis = 0> (batch_length_groups, minus_one, one)
    group_matrix = Concat <axis = 0> (groups_1d, minus_one, d_state_1d)
    group_state = Concat <axis = 0> (batch_1d, groups_1d, minus_one, d_state_1d)
    dt_columns = Reshape (dt, group_columns)
    {entering}_columns = Reshape ({entering}, group_columns)
    A_groups = Reshape (A, group_matrix)
    h_first = Reshape (initial_state, group_state)
    B_rows = Unsqueeze (B32, three)
    four = Add (two, two)
    C_columns = Unsqueeze (C32, four)

    dt_steps = Transpose <perm = [1, 0, 2, 3, 4]> (dt_columns)
    {entering}_steps = Transpose <perm = [1, 0, 2, 3, 4]> ({entering}_columns)
    B_steps = Transpose <perm = [1, 0, 2, 3, 4]> (B_rows)
    C_steps = Transpose <perm = [1, 0, 2, 3, 4]> (C_columns)
    dt_walk = Slice (dt_steps, walk_start, walk_end, zero, walk_step)
    {entering}_walk = Slice ({entering}_steps, walk_start, walk_end, zero, walk_step)
    B_walk = Slice (B_steps, walk_start, walk_end, zero, walk_step)
    C_walk = Slice (C_steps, walk_start, walk_end, zero, walk_step)
"""


_STEP = """
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
"""

# (exp(x) - 1) / A as (exp(x) + 1) tanh(x / 2) / A with x = dt A, which loses no digit of a small x. An A next
# to 0 is replaced by a number that can be divided by: the quotient is dt to the last digit.
_STEP_EXACT_ZOH = """
    half = Constant <value_float = 0.5> ()
    one_f = Constant <value_float = 1.0> ()
    least_A = Constant <value_float = -1e-20> ()
    A_size = Abs (A_groups)
    least_size = Abs (least_A)
    is_next_to_0 = Less (A_size, least_size)
    A_held = Where (is_next_to_0, least_A, A_groups)
    h_final, y_walk = Scan <
        num_scan_inputs = 4,
        body = step (float[?, ?, ?, ?] h, float[?, ?, ?, ?] dt_t, float[?, ?, ?, ?] u_t,
                     float[?, ?, ?, ?] B_t, float[?, ?, ?, ?] C_t)
            => (float[?, ?, ?, ?] h_next, float[?, ?, ?, ?] y_t) {
            dt_A = Mul (dt_t, A_held)
            decay = Exp (dt_A)
            kept = Mul (decay, h)
            half_dt_A = Mul (dt_A, half)
            rise = Tanh (half_dt_A)
            decay_and_one = Add (decay, one_f)
            change = Mul (rise, decay_and_one)
            hold = Div (change, A_held)
            u_B = Mul (u_t, B_t)
            added = Mul (hold, u_B)
            h_next = Add (kept, added)
            y_t = MatMul (h_next, C_t)
        }
    > (h_first, dt_walk, u32_walk, B_walk, C_walk)
"""

_OUTPUTS = """
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

_EULER_SCAN = WALK + _STEP_SIZE + _EULER + _walks("dt_u") + _STEP + _OUTPUTS
_EXACT_ZOH_SCAN = WALK + _STEP_SIZE + _walks("u32") + _STEP_EXACT_ZOH + _OUTPUTS

BODIES = {
    "SelectiveScan": _EULER_SCAN + _GATE,
    "SelectiveScanUngated": _EULER_SCAN + _NO_GATE,
    "SelectiveScanExactZoh": _EXACT_ZOH_SCAN + _GATE,
    "SelectiveScanUngatedExactZoh": _EXACT_ZOH_SCAN + _NO_GATE,
}
"""The function of each form, by its name."""
