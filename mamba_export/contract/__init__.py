"""The contract: what operators take, what programs are, and what a file and its folder are called. As values.

Everything that reads or writes an exported file (exporter, runtimes, kernels, plugins, verify, benchmarks)
takes its names, shapes and dtypes from here. This package imports no other, so that anything may import it.

Glossary of shapes: ``batch`` sequences of ``length`` steps; ``d_inner`` channels; ``d_state`` (N) states
a channel; ``n_groups`` groups of channels that share B and C; ``d_conv`` taps of the causal convolution.
Tensors of class T are fp32, fp16 or bf16, one dtype a node; arithmetic and recurrent state are fp32
whatever T is.
"""

from mamba_export.contract.names import (
    ATTR_PLUGIN_NAMESPACE,
    ATTR_PLUGIN_VERSION,
    CONTRACT_VERSION,
    DEFAULT_OPSET,
    DOMAIN,
    DTYPES,
    OPSETS,
    PLUGIN_ATTRIBUTES,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
)
from mamba_export.contract.operators import (
    CAUSAL_CONV1D,
    LINEAR,
    MAMBA2_LAYER,
    MAMBA_LAYER,
    OPERATORS,
    SELECTIVE_SCAN,
    STATE_SPACE_DUAL,
)

__all__ = [
    "ATTR_PLUGIN_NAMESPACE",
    "ATTR_PLUGIN_VERSION",
    "CAUSAL_CONV1D",
    "CONTRACT_VERSION",
    "DEFAULT_OPSET",
    "DOMAIN",
    "DTYPES",
    "LINEAR",
    "MAMBA2_LAYER",
    "MAMBA_LAYER",
    "OPERATORS",
    "OPSETS",
    "PLUGIN_ATTRIBUTES",
    "PLUGIN_NAMESPACE",
    "PLUGIN_VERSION",
    "SELECTIVE_SCAN",
    "STATE_SPACE_DUAL",
]

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
METADATA_FORMAT = 2
"""Version of the metadata file's layout."""


def layer_state_names(layer: int, state: str) -> tuple[str, str]:
    """Graph input and output name of a layer's state: "conv_state", "recurrent_state", "key" or "value"."""
    return f"past_key_values.{layer}.{state}", f"present.{layer}.{state}"


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
