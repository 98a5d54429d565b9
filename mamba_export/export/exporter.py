"""``export``: a model to a folder with one ONNX file, tokenizer, metadata and GenAI configuration."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from mamba_export import contract
from mamba_export.errors import ExportError, first_line
from mamba_export.export.describe import describe, genai_config
from mamba_export.export.graph import DEFAULT_OPSET, build, check_opset
from mamba_export.files import new_folder
from mamba_export.models import TORCH_DTYPES, MambaBackbone, MambaLM, cast, checkpoints

_EXTERNAL_ABOVE = 256  # bytes: smaller tensors stay in the graph's own file

Progress = Callable[[str], None]


def export(
    model: str | Path | MambaLM | MambaBackbone,
    out: str | Path,
    *,
    dtype: str = "fp32",
    opset: int = DEFAULT_OPSET,
    last_logits_only: bool = False,
    fuse_layers: bool = True,
    force: bool = False,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write an exported folder: model.onnx (weights beside it), tokenizer, metadata, genai_config.json.

    Args:
        model: a checkpoint's folder or Hugging Face id, or a model. A model is left as it is.
        out: folder to write; it appears whole or not at all.
        dtype: "fp32", "fp16" or "bf16": the matrices, activations and logits. Arithmetic of the scan,
            recurrent states and the residual stream are fp32 whatever is chosen.
        opset: version of standard ONNX.
        last_logits_only: return the last step's logits alone, (batch, 1, vocab_size).
        fuse_layers: put each layer of the common form into one ``MambaLayer`` node, which kernels run in a few
            launches and every other runtime inlines. False leaves the single nodes.
        force: replace an existing folder.
        tokenizer: folder or Hugging Face id whose tokenizer is copied beside the graph; None for the
            checkpoint's own, where it has one (those in state-spaces' format do not).
        progress: called with a line at each stage.

    Returns:
        The folder.

    Raises:
        MambaExportError: bad input, one clear line; nothing is written.
    """
    say: Progress = progress or (lambda _: None)
    if dtype not in TORCH_DTYPES:
        raise ExportError(f"dtype {dtype!r} is unknown: use one of {', '.join(TORCH_DTYPES)}")
    check_opset(opset)  # before minutes are spent on loading
    out = Path(out)
    with new_folder(out, force=force) as folder:
        if isinstance(model, (str, Path)):
            say(f"loading {model}")
            checkpoint = checkpoints.load(model, dtype=TORCH_DTYPES[dtype], progress=say)
            module: MambaLM | MambaBackbone = checkpoint.model
            tokenizer_files = checkpoint.tokenizer_files
            source: dict[str, Any] = {
                "kind": checkpoint.format,
                "name": checkpoint.source,
                "path": str(checkpoint.folder.resolve()),
            }
        else:
            module = _in_dtype(model, TORCH_DTYPES[dtype])
            tokenizer_files = []
            source = {"kind": "module", "name": type(model).__name__, "path": None}
        if tokenizer is not None:
            tokenizer_files = checkpoints.locate_tokenizer(tokenizer, say)
        if last_logits_only and not isinstance(module, MambaLM):
            raise ExportError("--last-logits-only needs a language model; a backbone has no logits")
        _check_space(module, out)

        say("tracing")
        graph_model = build(
            module, opset=opset, last_logits_only=last_logits_only, fuse_layers=fuse_layers
        )
        say("writing")
        ir.save(
            graph_model,
            folder / contract.MODEL_FILE,
            external_data=contract.WEIGHTS_FILE,
            size_threshold_bytes=_EXTERNAL_ABOVE,
        )
        description = describe(
            graph_model,
            module.config,
            dtype=dtype,
            opset=opset,
            last_logits_only=last_logits_only,
            source=source,
        )
        _write_json(folder / contract.METADATA_FILE, description)
        if isinstance(module, MambaLM):
            _write_json(folder / contract.GENAI_CONFIG_FILE, genai_config(module.config))
        for file in tokenizer_files:
            shutil.copyfile(file, folder / file.name)
        say("checking")
        check(folder / contract.MODEL_FILE)
    return out


def check(path: Path) -> None:
    """Run ONNX's full check, shape inference included.

    Raises:
        ExportError: the file is not valid ONNX.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = first_line(error)
        raise ExportError(f"{path.name}: the exported graph is not valid ONNX: {reason}") from error


def _in_dtype(model: MambaLM | MambaBackbone, dtype: torch.dtype) -> MambaLM | MambaBackbone:
    if model.backbone_dtype == dtype:
        return model
    duplicate = copy.deepcopy(model)
    cast(duplicate, dtype)
    return duplicate


def _check_space(module: torch.nn.Module, out: Path) -> None:
    """Refuse early what cannot fit, rather than after minutes of work."""
    needed = sum(p.numel() * p.element_size() for p in module.parameters())
    parent = out.expanduser().absolute().parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ExportError(
            f"{parent}: the disk has {free / 1e9:.2f} GB free and the weights need "
            f"{needed / 1e9:.2f} GB; nothing was written"
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
