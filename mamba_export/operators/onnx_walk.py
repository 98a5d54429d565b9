"""ONNX text that sequence operators share: a walk over the steps from either end.

A walk from the end is a slice with step -1. With reverse = 0 all of this is constant and the slice takes
everything, so runtimes fold it away. It names ``walk_start``, ``walk_end`` and ``walk_step`` for Slice, and the
constants ``zero``, ``one``, ``two``, ``three``, ``minus_one`` and ``huge`` (one-dimensional).
"""

WALK = """
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
