"""An exported folder of any shape with random weights, in seconds: what a benchmark runs.

Exporting a model of 2.8 billion parameters spends its time on initialising and copying weights whose values
do not matter here. So the graph is traced from a model without memory behind it, and written with references
to a weights file; that file is filled afterwards. The graph is small: it can be made on one machine and filled
on another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from mamba_export import contract, given
from mamba_export.contract.weights import (
    CODES,
    PARTS,
    SCALES,
    Weights,
    default_opset,
    packed_name,
)
from mamba_export.errors import ExportError
from mamba_export.export.graph import add_functions, build
from mamba_export.export.packed_weights import pack_products, takes_layers
from mamba_export.files import new_file, new_folder, opened, write_bytes
from mamba_export.folder.metadata import write_metadata
from mamba_export.models import TORCH_DTYPES, MambaLM, ModelConfig, cast
from mamba_export.models.program import make_program
from mamba_export.versions import installed_versions

_ALIGNMENT = 4096  # of a tensor in the weights file: a page
_INT4 = ir.DataType.INT4.numpy()
_BLOCK = 1 << 22  # random numbers that are drawn; larger tensors repeat them


def write_graph(
    config: ModelConfig,
    out: Path,
    *,
    dtype: str = "fp16",
    weights: Weights | None = None,
    state_dtype: str | None = None,
    last_logits_only: bool = True,
    name: str = "random",
) -> Path:
    """Write an exported folder without its weights file.

    Args:
        config: of a language model.
        out: folder to make.
        dtype: "fp32", "fp16" or "bf16".
        weights: how the matrices of products are stored; None for the dtype.
        state_dtype: of the recurrent states, one of ``state_dtypes``; None for fp32.
        last_logits_only: the graph returns the last step's logits alone.
        name: what the metadata calls the model.

    Returns:
        The folder; ``fill_weights`` makes it whole.

    Raises:
        MambaExportError: the folder exists or cannot be written, or the dtype is unknown.
    """
    if dtype not in TORCH_DTYPES:
        raise ExportError(f"dtype {dtype!r} is unknown: use one of {', '.join(TORCH_DTYPES)}")
    with torch.device("meta"):
        model = MambaLM(config).eval()
    cast(model, TORCH_DTYPES[dtype])
    model.to_empty(device="cpu")  # memory that nothing touches costs nothing
    program = make_program(model, last_logits_only=last_logits_only, state_dtype=state_dtype)
    opset = default_opset(weights)
    graph = build(program, opset=opset, fuse_layers=takes_layers(weights, dtype))
    packed = [] if weights is None else pack_products(graph, weights, has_head=True)
    add_functions(graph, opset)
    parameters = {key.replace(".A_log", ".A") for key, _ in model.named_parameters()}
    parameters |= {packed_name(key, part) for key in packed for part in PARTS}
    offset = 0
    for key, value in graph.graph.initializers.items():
        tensor = value.const_value
        if key not in parameters or tensor is None:
            continue
        value.const_value = ir.ExternalTensor(
            contract.WEIGHTS_FILE,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=key,
        )
        offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    out = given.path(out, "the output")
    with new_folder(out, marker=contract.METADATA_FILE) as folder:
        proto = ir.serde.serialize_model(graph)
        write_bytes(folder / contract.MODEL_FILE, proto.SerializeToString())
        write_metadata(
            folder,
            program,
            dtype=dtype,
            opset=opset,
            weights=weights,
            model=config.to_fields(),
            source={"kind": "random weights", "name": name, "path": None},
            versions=installed_versions("mamba_export", "torch", "onnx", "onnxscript"),
        )
    return out


def fill_weights(folder: Path, seed: int = 0) -> int:
    """Write the weights file of a folder from ``write_graph``.

    Matrices are uniform, small enough that activations stay in range over many layers; A, D, norms and the
    step size's bias are as at the start of training.

    Returns:
        Bytes of the file.
    """
    model = onnx.load(folder / contract.MODEL_FILE, load_external_data=False)
    unit = np.random.default_rng(seed).uniform(-1, 1, _BLOCK).astype(np.float32)
    blocks: dict[tuple[float, np.dtype], np.ndarray] = {}
    with new_file(folder / contract.WEIGHTS_FILE) as path, opened(path) as file:
        for initializer in model.graph.initializer:
            place = {entry.key: entry.value for entry in initializer.external_data}
            if "offset" not in place:
                continue
            dtype = ir.DataType(initializer.data_type).numpy()
            file.seek(int(place["offset"]))
            for part in _content(initializer.name, list(initializer.dims), dtype, unit, blocks):
                file.write(part.view(np.uint8).data)
        # The last tensor may end before the place that its alignment reserves.
        size = file.tell()
    return size


def _content(
    name: str,
    shape: list[int],
    dtype: np.dtype,
    unit: np.ndarray,
    blocks: dict[tuple[float, np.dtype], np.ndarray],
) -> Iterator[np.ndarray]:
    count = math.prod(shape)
    if name.endswith(".A") and len(shape) == 1:  # Mamba-2: a number of a head, from 1 to 16
        yield -np.linspace(1, 16, count, dtype=np.float32).astype(dtype)
        return
    if name.endswith(".A"):  # S4D-Real: -(1, 2, ..., d_state) for every channel
        yield np.tile(-np.arange(1, shape[1] + 1, dtype=np.float32), shape[0]).astype(dtype)
        return
    if name.endswith((".D", "norm.weight", "norm_f.weight")):
        yield np.ones(count, dtype)
        return
    if name.endswith(("dt_proj.bias", "dt_bias")):  # softplus of it is log-uniform in [1e-3, 1e-1]
        step = np.exp(np.linspace(math.log(1e-3), math.log(1e-1), count))
        yield np.log(np.expm1(step)).astype(dtype)
        return
    if name.endswith(f".{CODES}"):  # any bytes: of int4 two codes each
        size = -(-count * 4 // 8) if dtype == _INT4 else count
        codes = (127 * unit).astype(np.int8)
        for start in range(0, size, _BLOCK):
            yield codes[: min(_BLOCK, size - start)]
        return
    if name.endswith(
        f".{SCALES}"
    ):  # weights of about the size that matrices have below, of 8-bit codes too
        yield np.full(count, 1 / (128 * math.sqrt(max(shape))), dtype)
        return
    scale = 0.02 if name.startswith("embeddings") else 1 / math.sqrt(max(shape))
    key = (scale, dtype)
    if key not in blocks:
        blocks[key] = (scale * unit).astype(dtype)
    for start in range(0, count, _BLOCK):
        yield blocks[key][: min(_BLOCK, count - start)]
