"""A layer's decomposition in ONNX: the body of its function, which calls the three operators.

Exactly the nodes that export writes for a layer that is no node of its own, so that a runtime that inlines
it loses nothing. The casts are those of a 16-bit file; with R or T fp32 they change nothing and runtimes
drop them.
"""

BODY = """
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
    mixed_R = CastLike (mixed, hidden)
    hidden_out = Add (hidden, mixed_R)
"""
