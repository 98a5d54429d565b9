"""The operator contract: the one place for names, versions, input order and dtypes.

Everything that reads or writes an exported file (exporter, runtimes, native kernels, plugins) takes
its names from here. This module imports nothing, so that anything may import it.

Glossary of shapes: ``batch`` sequences of ``length`` steps; ``d_inner`` channels; ``d_state`` (N) states
a channel; ``n_groups`` groups of channels that share B and C; ``d_conv`` taps of the causal convolution.
Tensors marked T are fp32, fp16 or bf16, one dtype a node; arithmetic and recurrent state are fp32
whatever T is.
"""

DOMAIN = "mamba_export"
"""ONNX domain of our nodes, and the namespace of the torch operators."""

CONTRACT_VERSION = 1
"""Version of the domain (``opset_import``). It rises when the meaning of a node changes."""

PLUGIN_NAMESPACE = "mamba_export"
PLUGIN_VERSION = "1"
"""What TensorRT's parser looks a plugin up by; written on every node, declared by every function."""

SELECTIVE_SCAN = "SelectiveScan"
SELECTIVE_SCAN_UNGATED = "SelectiveScanUngated"
CAUSAL_CONV1D = "CausalConv1d"
MAMBA_LAYER = "MambaLayer"
"""A whole layer of a language model: norm, projections, convolution, scan and residual sum. Its function calls
the operators above, so a runtime without a kernel for it loses nothing."""

ATTR_REVERSE = "reverse"
"""int: 1 walks the sequence from its last step to its first; states then belong to that walk."""
ATTR_DELTA_SOFTPLUS = "delta_softplus"
"""int: 1 applies softplus to ``delta + delta_bias``."""
ATTR_SILU = "silu"
"""int: 1 applies SiLU to the convolution's output."""
ATTR_EPSILON = "epsilon"
"""float: added under the root of a layer's norm."""
ATTR_SPLIT = "split"
"""ints: dt_rank, d_state, d_state: how a layer splits the output of x_proj into dt, B and C."""
ATTR_PLUGIN_VERSION = "plugin_version"
ATTR_PLUGIN_NAMESPACE = "plugin_namespace"

SELECTIVE_SCAN_INPUTS = (
    "u",  # (batch, length, d_inner) T
    "delta",  # (batch, length, d_inner) T
    "A",  # (d_inner, d_state) fp32, negative
    "B",  # (batch, length, n_groups, d_state) T
    "C",  # (batch, length, n_groups, d_state) T
    "D",  # (d_inner,) fp32
    "z",  # (batch, length, d_inner) T; absent from the ungated form
    "delta_bias",  # (d_inner,) fp32
    "initial_state",  # (batch, d_inner, d_state) fp32
)
SELECTIVE_SCAN_UNGATED_INPUTS = tuple(name for name in SELECTIVE_SCAN_INPUTS if name != "z")
SELECTIVE_SCAN_OUTPUTS = (
    "y",  # (batch, length, d_inner) T
    "last_state",  # (batch, d_inner, d_state) fp32
)
CAUSAL_CONV1D_INPUTS = (
    "x",  # (batch, length, channels) T
    "weight",  # (channels, d_conv) fp32
    "bias",  # (channels,) fp32
    "initial_state",  # (batch, channels, d_conv - 1) T, oldest step first
)
CAUSAL_CONV1D_OUTPUTS = (
    "y",  # (batch, length, channels) T
    "last_state",  # (batch, channels, d_conv - 1) T
)
# Projection weights are (in, out). R is the residual stream's dtype: fp32, or T.
MAMBA_LAYER_INPUTS = (
    "hidden",  # (batch, length, d_model) R
    "norm_weight",  # (d_model,) fp32
    "in_proj_weight",  # (d_model, 2 d_inner) T: the convolution's columns, then the gate's
    "conv_weight",  # (d_inner, d_conv) fp32
    "conv_bias",  # (d_inner,) fp32
    "x_proj_weight",  # (d_inner, dt_rank + 2 d_state) T
    "dt_proj_weight",  # (dt_rank, d_inner) T
    "dt_bias",  # (d_inner,) fp32
    "A",  # (d_inner, d_state) fp32, negative
    "D",  # (d_inner,) fp32
    "out_proj_weight",  # (d_inner, d_model) T
    "conv_state",  # (batch, d_inner, d_conv - 1) T, oldest step first
    "recurrent_state",  # (batch, d_inner, d_state) fp32
)
MAMBA_LAYER_OUTPUTS = (
    "hidden_out",  # (batch, length, d_model) R
    "last_conv_state",  # (batch, d_inner, d_conv - 1) T
    "last_recurrent_state",  # (batch, d_inner, d_state) fp32
)

DTYPES = ("fp32", "fp16", "bf16")
"""Values of T that an exported file may hold."""

# Graph inputs and outputs: the names that ONNX Runtime GenAI's generator looks for.
INPUT_IDS = "input_ids"
INPUTS_EMBEDS = "inputs_embeds"
LOGITS = "logits"
OUTPUT_EMBEDS = "last_hidden_state"
PAST_CONV_STATE = "past_key_values.{layer}.conv_state"
PAST_RECURRENT_STATE = "past_key_values.{layer}.recurrent_state"
PRESENT_CONV_STATE = "present.{layer}.conv_state"
PRESENT_RECURRENT_STATE = "present.{layer}.recurrent_state"

# Files of an exported folder.
MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
METADATA_FILE = "mamba_export.json"
GENAI_CONFIG_FILE = "genai_config.json"
TOKENIZER_FILE = "tokenizer.json"
METADATA_FORMAT = 1
"""Version of the metadata file's layout."""


def state_names(n_layer: int) -> tuple[list[str], list[str]]:
    """Graph input and output names of the states, in graph order.

    Args:
        n_layer: number of layers.

    Returns:
        Past names and present names; each is conv, recurrent of layer 0, then layer 1, and so on.
    """
    past: list[str] = []
    present: list[str] = []
    for layer in range(n_layer):
        past += [PAST_CONV_STATE.format(layer=layer), PAST_RECURRENT_STATE.format(layer=layer)]
        present += [
            PRESENT_CONV_STATE.format(layer=layer),
            PRESENT_RECURRENT_STATE.format(layer=layer),
        ]
    return past, present
