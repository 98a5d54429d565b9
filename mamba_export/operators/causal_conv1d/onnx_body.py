"""The causal convolution in standard ONNX operators: the body of its function.

A runtime that has no kernel for a node inlines its function. It computes in fp32 whatever the node's dtype T
is, loops over the taps with ``Scan``, so that its size depends on neither length nor taps, and reads all
sizes from its inputs, so that one body serves every shape. The axes within ``Scan`` have no names, as in the
selective scan's body.
"""

from mamba_export.operators.onnx_walk import WALK

BODY = (
    WALK
    + """
    x_walk = Slice (x, walk_start, walk_end, one, walk_step)
    state_rows = Transpose <perm = [0, 2, 1]> (initial_state)
    joined = Concat <axis = 1> (state_rows, x_walk)
    joined32 = Cast <to = 1> (joined)
    taps = Transpose <perm = [1, 0]> (weight)
    sequence_shape = Shape (x)
    length = Shape <start = 1, end = 2> (x)
    sum_first = Expand (bias, sequence_shape)
    tap_last, sum_taps = Scan <
        num_scan_inputs = 1,
        body = tap (int64[1] k, float[?, ?, ?] sum_before, float[?] weight_k)
            => (int64[1] k_next, float[?, ?, ?] sum_after) {
            k_end = Add (k, length)
            x_k = Slice (joined32, k, k_end, one)
            product = Mul (x_k, weight_k)
            sum_after = Add (sum_before, product)
            k_next = Add (k, one)
        }
    > (zero, sum_first, taps)
    sum_sigmoid = Sigmoid (sum_taps)
    sum_silu = Mul (sum_taps, sum_sigmoid)
    silu_flag = Constant <value_int: int = @silu> ()
    silu_bool = Cast <to = 9> (silu_flag)
    activated = Where (silu_bool, sum_silu, sum_taps)
    y32 = Slice (activated, walk_start, walk_end, one, walk_step)
    y = CastLike (y32, x)
    last_rows = Slice (joined, length, huge, one)
    last_state = Transpose <perm = [0, 2, 1]> (last_rows)
"""
)
