"""Exact zero-order hold beside Euler's rule: of a scan, and of models that are read with either."""
