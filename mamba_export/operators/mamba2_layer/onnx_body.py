"""A layer's decomposition in ONNX: the body of its function, which calls the three operators."""

from mamba_export.operators.onnx_layer import NORM, RESIDUAL

BODY = f"""{NORM.rstrip()}
    n = CastLike (scaled, in_proj_weight)
    zxBCdt = MatMul (n, in_proj_weight)
    sizes = Constant <value_ints: ints = @split> ()
    z, xBC_raw, dt = Split <axis = 2> (zxBCdt, sizes)
    xBC, last_conv_state = mamba_export.CausalConv1d <
        silu = 1, reverse = 0, plugin_version: string = @plugin_version,
        plugin_namespace: string = @plugin_namespace
    > (xBC_raw, conv_weight, conv_bias, conv_state)
    conv_sizes = Constant <value_ints: ints = @conv_split> ()
    x_steps, B_steps, C_steps = Split <axis = 2> (xBC, conv_sizes)
    x_shape = Constant <value_ints: ints = @x_shape> ()
    x = Reshape (x_steps, x_shape)
    B_shape = Constant <value_ints: ints = @B_shape> ()
    B = Reshape (B_steps, B_shape)
    C = Reshape (C_steps, B_shape)
    y_heads, last_recurrent_state = mamba_export.StateSpaceDual <
        dt_softplus = 1, dt_min: float = @dt_min, dt_max: float = @dt_max, reverse = 0,
        plugin_version: string = @plugin_version, plugin_namespace: string = @plugin_namespace
    > (x, dt, A, B, C, D, dt_bias, recurrent_state)
    gate_weight = Flatten <axis = 1> (gate_norm_weight)
    norm_shape = Constant <value_ints: ints = @norm_shape> ()
    y_groups = Reshape (y_heads, norm_shape)
    z_groups = Reshape (z, norm_shape)
    gated_groups = mamba_export.GatedRmsNorm <
        epsilon: float = @gate_epsilon, norm_before_gate = 0,
        plugin_version: string = @plugin_version, plugin_namespace: string = @plugin_namespace
    > (y_groups, z_groups, gate_weight)
    flat_shape = Constant <value_ints = [0, 0, -1]> ()
    gated = Reshape (gated_groups, flat_shape)
    mixed = MatMul (gated, out_proj_weight)
    {RESIDUAL.strip()}
"""
