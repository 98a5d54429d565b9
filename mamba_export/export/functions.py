"""Model-local functions: each of our nodes again, in standard ONNX operators.

A runtime that has no kernel for a node inlines its function. The bodies compute in fp32 whatever the
node's dtype T is, loop over time with ``Scan``, so that their size does not depend on the length, and read
all sizes from their inputs, so that one body serves every shape.
"""

from __future__ import annotations

import onnx
import onnx.parser

from mamba_export import contract

# A walk from the end is a slice with step -1. With reverse = 0 all of this is constant and the slice takes
# everything, so runtimes fold it away.
_WALK = """
    reverse_flag = Constant <value_int: int = @reverse> ()
    one = Constant <value_ints = [1]> ()
    zero = Constant <value_ints = [0]> ()
    two = Constant <value_ints = [2]> ()
    three = Constant <value_ints = [3]> ()
    minus_one = Constant <value_ints = [-1]> ()
    huge = Constant <value_ints = [9223372036854775807]> ()
    reverse_1d = Reshape (reverse_flag, one)
    reverse_twice = Mul (reverse_1d, two)
    walk_step = Sub (one, reverse_twice)
    walk_start = Neg (reverse_1d)
    walk_end = Mul (walk_step, huge)
"""

_SCAN_BODY = """
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
        body = step (float[b, g, p, n] h, float[b, g, p, k] dt_t, float[b, g, p, k] dt_u_t,
                     float[b, g, k, n] B_t, float[b, g, n, k] C_t)
            => (float[b, g, p, n] h_next, float[b, g, p, k] y_t) {
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

_CONV_BODY = """
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
        body = tap (int64[1] k, float[b, l, c] sum_before, float[c] weight_k)
            => (int64[1] k_next, float[b, l, c] sum_after) {
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

# Exactly the nodes that export writes for a layer, so that a runtime that inlines it loses nothing. The casts
# are those of a 16-bit file; with R or T fp32 they change nothing and runtimes drop them.
_LAYER_BODY = """
    two_f = Constant <value_float = 2.0> ()
    last_axis = Constant <value_ints = [-1]> ()
    epsilon = Constant <value_float: float = @epsilon> ()
    hidden32 = Cast <to = 1> (hidden)
    squares = Pow (hidden32, two_f)
    mean = ReduceMean <keepdims = 1> (squares, last_axis)
    mean_epsilon = Add (mean, epsilon)
    rms = Sqrt (mean_epsilon)
    normed = Div (hidden32, rms)
    scaled = Mul (normed, norm_weight)
    x = CastLike (scaled, in_proj_weight)
    xz = MatMul (x, in_proj_weight)
    u_raw, z = Split <axis = 2, num_outputs = 2> (xz)
    u, last_conv_state = mamba_export.CausalConv1d <
        silu = 1, reverse = 0, plugin_version: string = @plugin_version,
        plugin_namespace: string = @plugin_namespace
    > (u_raw, conv_weight, conv_bias, conv_state)
    dt_B_C = MatMul (u, x_proj_weight)
    sizes = Constant <value_ints: ints = @split> ()
    dt, B_steps, C_steps = Split <axis = 2> (dt_B_C, sizes)
    delta = MatMul (dt, dt_proj_weight)
    group_axis = Constant <value_ints = [2]> ()
    B = Unsqueeze (B_steps, group_axis)
    C = Unsqueeze (C_steps, group_axis)
    y, last_recurrent_state = mamba_export.SelectiveScan <
        delta_softplus = 1, reverse = 0, plugin_version: string = @plugin_version,
        plugin_namespace: string = @plugin_namespace
    > (u, delta, A, B, C, D, z, dt_bias, recurrent_state)
    mixed = MatMul (y, out_proj_weight)
    mixed_R = CastLike (mixed, hidden)
    hidden_out = Add (hidden, mixed_R)
"""


def _layer_function(opset: int) -> onnx.FunctionProto:
    attributes = (
        contract.ATTR_EPSILON,
        contract.ATTR_SPLIT,
        contract.ATTR_PLUGIN_VERSION,
        contract.ATTR_PLUGIN_NAMESPACE,
    )
    return onnx.parser.parse_function(
        f'<opset_import: ["" : {opset}, "{contract.DOMAIN}" : {contract.CONTRACT_VERSION}],'
        f' domain: "{contract.DOMAIN}">'
        f"{contract.MAMBA_LAYER} <{', '.join(attributes)}>"
        f" ({', '.join(contract.MAMBA_LAYER_INPUTS)}) => ({', '.join(contract.MAMBA_LAYER_OUTPUTS)})"
        f"{{{_LAYER_BODY}}}"
    )


def _function(
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    flags: tuple[str, ...],
    body: str,
    opset: int,
) -> onnx.FunctionProto:
    # The plugin attributes are declared, and not used: TensorRT's parser prefers a plugin to a function
    # when the node carries them, and refuses attributes that the function does not declare.
    attributes = (*flags, contract.ATTR_PLUGIN_VERSION, contract.ATTR_PLUGIN_NAMESPACE)
    return onnx.parser.parse_function(
        f'<opset_import: ["" : {opset}], domain: "{contract.DOMAIN}">'
        f"{name} <{', '.join(attributes)}> ({', '.join(inputs)}) => ({', '.join(outputs)})"
        f"{{{_WALK}{body}}}"
    )


def function_protos(opset: int) -> list[onnx.FunctionProto]:
    """The functions of all operators of the contract, over standard ONNX of version ``opset``."""
    scan_flags = (contract.ATTR_DELTA_SOFTPLUS, contract.ATTR_REVERSE)
    return [
        _function(
            contract.SELECTIVE_SCAN,
            contract.SELECTIVE_SCAN_INPUTS,
            contract.SELECTIVE_SCAN_OUTPUTS,
            scan_flags,
            _SCAN_BODY + _GATE,
            opset,
        ),
        _function(
            contract.SELECTIVE_SCAN_UNGATED,
            contract.SELECTIVE_SCAN_UNGATED_INPUTS,
            contract.SELECTIVE_SCAN_OUTPUTS,
            scan_flags,
            _SCAN_BODY + _NO_GATE,
            opset,
        ),
        _function(
            contract.CAUSAL_CONV1D,
            contract.CAUSAL_CONV1D_INPUTS,
            contract.CAUSAL_CONV1D_OUTPUTS,
            (contract.ATTR_SILU, contract.ATTR_REVERSE),
            _CONV_BODY,
            opset,
        ),
        _layer_function(opset),
    ]
