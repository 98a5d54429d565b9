"""A layer's decomposition in ONNX: the body of its function, which calls the two operators."""

from mamba_export.operators.onnx_layer import NORM, RESIDUAL

BODY = f"""{NORM.rstrip()}
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
    {RESIDUAL.strip()}
"""
