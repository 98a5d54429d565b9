"""The gated RMSNorm in standard ONNX operators, in fp32 whatever the node's dtype T is: its function's body."""

BODY = """
    x32 = Cast <to = 1> (x)
    z32 = Cast <to = 1> (z)
    gate_sigmoid = Sigmoid (z32)
    gate = Mul (z32, gate_sigmoid)
    norm_first_flag = Constant <value_int: int = @norm_before_gate> ()
    norm_first = Cast <to = 9> (norm_first_flag)
    gated = Mul (x32, gate)
    value = Where (norm_first, x32, gated)
    squares = Mul (value, value)
    last_axis = Constant <value_ints = [-1]> ()
    mean = ReduceMean <keepdims = 1> (squares, last_axis)
    epsilon_number = Constant <value_float: float = @epsilon> ()
    mean_up = Add (mean, epsilon_number)
    root = Sqrt (mean_up)
    normed = Div (value, root)
    scaled = Mul (normed, weight)
    scaled_gated = Mul (scaled, gate)
    y32 = Where (norm_first, scaled_gated, scaled)
    y = CastLike (y32, x)
"""
