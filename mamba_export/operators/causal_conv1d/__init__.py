"""The depthwise causal convolution with state."""
