"""What the bodies of the layers' functions begin and end with, of every mixer.

They are exactly the nodes that export writes for a layer that is no node of its own, so that a runtime
that inlines it loses nothing. The casts are those of a 16-bit file; with R or T fp32 they change nothing
and runtimes drop them.
"""

NORM = """
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
"""
"""The RMSNorm before the mixer: ``scaled``, in fp32."""

RESIDUAL = """
    mixed_R = CastLike (mixed, hidden)
    hidden_out = Add (hidden, mixed_R)
"""
"""What the mixer made, ``mixed``, added to the layer's input."""
