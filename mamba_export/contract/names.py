"""Names and versions of what a file holds, and of the files of an exported folder. Imports nothing."""

DOMAIN = "mamba_export"
"""ONNX domain of our nodes, and the namespace of the torch operators."""

CONTRACT_VERSION = 1
"""Version of the domain (``opset_import``). It rises when the meaning of a node changes."""

PLUGIN_NAMESPACE = "mamba_export"
PLUGIN_VERSION = "1"
ATTR_PLUGIN_VERSION = "plugin_version"
ATTR_PLUGIN_NAMESPACE = "plugin_namespace"
PLUGIN_ATTRIBUTES = {
    ATTR_PLUGIN_VERSION: PLUGIN_VERSION,
    ATTR_PLUGIN_NAMESPACE: PLUGIN_NAMESPACE,
}
"""What TensorRT's parser looks a plugin up by; written on every node, declared by every function."""

OPSETS = range(18, 24)
"""Versions of standard ONNX that the exporter and the function bodies were tried with."""

DEFAULT_OPSET = 20
"""The newest that ONNX Runtime 1.20 and TensorRT 10 both take without a warning."""

BATCH = "batch"
LENGTH = "length"
"""Names of the axes that every runtime and check knows: sequences, and their steps."""


DTYPES = ("fp32", "fp16", "bf16")
"""Values of T that an exported file may hold; the index is the kernels' ``mamba_dtype``."""
