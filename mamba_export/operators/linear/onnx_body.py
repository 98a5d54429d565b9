"""The function's body. Runtimes turn a matrix that is a constant once, when they open the file."""

BODY = """
    matrix = Transpose <perm = [1, 0]> (weight)
    y = MatMul (x, matrix)
"""
