"""A Transformer with a cache in ONNX Runtime, as ONNX Runtime's own tools would write it.

The layers are Llama's, which the Mamba paper calls Transformer++ (arXiv:2312.00752, section 4.2): RMSNorm,
rotary positions, SwiGLU, no biases. Attention is ``GroupQueryAttention`` of ONNX Runtime's own domain, with
FlashAttention on a GPU, and the cache is a buffer that keys and values are written into in place: the fastest
form that this runtime has, and so the fair one to compare with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from cost.transformer_session import PAST, PRESENT
from mamba_export.files import new_file, write_bytes
from mamba_export.models import ModelConfig
from mixers.attention import AttentionConfig, AttentionLM

FILE = "transformer.onnx"
_MICROSOFT = "com.microsoft"
_EPSILON = 1e-5
_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
_NUMPY = {"fp32": np.float32, "fp16": np.float16}
_HEAD_DIM = 64
_EMBEDDING = "embeddings.weight"
_MATRIX = "proj.weight"


def like_mamba(config: ModelConfig, longest: int) -> AttentionConfig:
    """A Transformer with about as many parameters as a Mamba of this shape.

    A layer of attention and SwiGLU has 12 d_model^2 parameters, one of Mamba 6: so half as many layers.

    Args:
        config: of the Mamba.
        longest: text that it is to read.
    """
    width = config.d_model
    heads = max(2, width // _HEAD_DIM)
    return AttentionConfig(width, config.n_layer // 2, config.vocab_size, heads, longest=longest)


def parameters(config: AttentionConfig) -> int:
    """How many numbers are learned."""
    with torch.device("meta"):
        return sum(one.numel() for one in AttentionLM(config).parameters())


def rotary_tables(config: AttentionConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin (longest, head_dim / 2) in fp32 (arXiv:2104.09864, section 3.4.2)."""
    half = config.head_dim // 2
    frequencies = config.rotary_base ** (-np.arange(half, dtype=np.float64) / half)
    angles = np.arange(config.longest, dtype=np.float64)[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def write_transformer(model: AttentionLM, folder: Path, dtype: str) -> Path:
    """Write the graph of a model with as many heads of keys as of queries.

    Inputs: ``input_ids`` (batch, length); ``seqlens_k`` (batch), tokens in the cache after this call less
    one, and ``total_sequence_length``, their largest number, int32; ``past.{layer}.key`` and ``.value``
    (batch, heads, room, head_dim). Outputs: ``next`` (batch, 1), the likeliest token after the last one;
    ``logits`` of that place (batch, vocab_size); ``present.*``, to be bound to the memory of ``past.*``.

    Args:
        model: in fp32.
        folder: that gets the file.
        dtype: "fp32" or "fp16", of weights and cache.

    Returns:
        The file.
    """
    path = folder / FILE
    with new_file(path) as temporary:
        write_bytes(temporary, _Graph(model, dtype).model().SerializeToString())
    return path


class _Graph:
    """The graph under construction."""

    def __init__(self, model: AttentionLM, dtype: str) -> None:
        self._config = config = model.config
        self._type, self._nodes = _TYPES[dtype], list[onnx.NodeProto]()
        cos, sin = rotary_tables(config)
        kept = {"cos": cos, "sin": sin}
        for name, tensor in model.state_dict().items():
            value = tensor.numpy()
            kept[name] = value.T if name.endswith(_MATRIX) else value  # (inputs, outputs)
        self._initializers = [
            numpy_helper.from_array(np.ascontiguousarray(value, _NUMPY[dtype]), name)
            for name, value in kept.items()
        ]
        self._initializers += [
            numpy_helper.from_array(np.array(-1), "last"),
            numpy_helper.from_array(np.array([config.inner] * 2), "halves"),
        ]

    def _node(
        self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **more: Any
    ) -> str:
        node = helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **more)
        self._nodes.append(node)
        return outputs[0]

    def _norm_of_sum(self, branch: str, residual: str, weight: str) -> tuple[str, str]:
        """(norm of the sum, sum)."""
        outputs = [f"{weight}.y", "", "", f"{weight}.sum"]
        self._node(
            "SkipSimplifiedLayerNormalization", [branch, residual, weight], outputs, _MICROSOFT,
            epsilon=_EPSILON,
        )  # fmt: skip
        return outputs[0], outputs[3]

    def _attention(self, layer: int, x: str) -> str:
        config = self._config
        qkv = self._node(
            "MatMul", [x, f"layers.{layer}.attention.in_proj.weight"], [f"{layer}.qkv"]
        )
        past = [f"{PAST}{layer}.{part}" for part in ("key", "value")]
        present = [f"{PRESENT}{layer}.{part}" for part in ("key", "value")]
        y = self._node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_sequence_length", "cos", "sin"],
            [f"{layer}.attention.y", *present],
            _MICROSOFT,
            num_heads=config.n_heads,
            kv_num_heads=config.n_heads,
            do_rotary=1,
        )
        return self._node(
            "MatMul", [y, f"layers.{layer}.attention.out_proj.weight"], [f"{layer}.out"]
        )

    def _mlp(self, layer: int, x: str) -> str:
        name = f"{layer}.mlp"
        both = self._node("MatMul", [x, f"layers.{layer}.mlp.in_proj.weight"], [f"{name}.both"])
        gate, up = f"{name}.gate", f"{name}.up"
        self._node("Split", [both, "halves"], [gate, up], axis=-1)
        weight = self._node("Sigmoid", [gate], [f"{name}.sigmoid"])
        silu = self._node("Mul", [gate, weight], [f"{name}.silu"])
        inner = self._node("Mul", [silu, up], [f"{name}.inner"])
        return self._node("MatMul", [inner, f"layers.{layer}.mlp.out_proj.weight"], [f"{name}.y"])

    def model(self) -> onnx.ModelProto:
        """All of it."""
        config = self._config
        residual = self._node("Gather", [_EMBEDDING, "input_ids"], ["embedded"])
        x = self._node(
            "SimplifiedLayerNormalization", [residual, "layers.0.norm.weight"], ["0.norm.y"],
            epsilon=_EPSILON, axis=-1,
        )  # fmt: skip
        for layer in range(config.n_layer):
            branch = self._attention(layer, x)
            x, residual = self._norm_of_sum(branch, residual, f"layers.{layer}.mlp_norm.weight")
            following = (
                f"layers.{layer + 1}.norm.weight" if layer + 1 < config.n_layer else "norm_f.weight"
            )
            x, residual = self._norm_of_sum(self._mlp(layer, x), residual, following)
        of_last = self._node("Gather", [x, "last"], ["hidden"], axis=1)
        logits = self._node("Gemm", [of_last, _EMBEDDING], ["logits"], transB=1)
        self._node("ArgMax", [logits], ["next"], axis=-1, keepdims=1)
        states = ("batch", config.n_heads, "room", config.head_dim)
        names = [f"{n}.{part}" for n in range(config.n_layer) for part in ("key", "value")]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "transformer",
            [
                value("input_ids", TensorProto.INT64, ("batch", "length")),
                value("seqlens_k", TensorProto.INT32, ("batch",)),
                value("total_sequence_length", TensorProto.INT32, ()),
                *(value(f"{PAST}{name}", self._type, states) for name in names),
            ],
            [
                value("next", TensorProto.INT64, ("batch", 1)),
                value("logits", self._type, ("batch", config.vocab_size)),
                *(value(f"{PRESENT}{name}", self._type, states) for name in names),
            ],
            self._initializers,
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(_MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)
