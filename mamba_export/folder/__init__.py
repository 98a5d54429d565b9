"""The exported folder: what lies in it, written and read in one place. Needs no PyTorch and no runtime."""
