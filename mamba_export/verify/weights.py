"""Weights of an exported file against the checkpoint, value by value.

An error bound on outputs would let a small change of one weight pass; this does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from mamba_export import contract
from mamba_export.contract.weights import EMBEDDING_KIND, Weights
from mamba_export.errors import SessionError, first_line
from mamba_export.folder.graph import check_weights, open_graph
from mamba_export.models import MambaBackbone, MambaLM
from mamba_export.packing import unpack
from mamba_export.verify.bounds import PACKED_ERROR, Check, compare
from mamba_export.verify.packed import packed_of, packed_rows_of

_EXP_ROUNDING = 1e-6
"""Relative bound for A = -exp(A_log), which the exporter and this check may round differently."""

_HEAD = "lm_head.weight"
_MOST_AXES = 5
"""Of a parameter whose axes are tried in every order: that of a three-dimensional convolution."""


def open_initializers(model_file: Path) -> Mapping[str, ir.Value]:
    """The tensors of an exported file; their content is read when it is asked for.

    Raises:
        SessionError: the file is no valid ONNX file, or a tensor is not whole.
    """
    graph = open_graph(model_file, error=SessionError)
    check_weights(model_file, graph, error=SessionError)
    opened = ir.from_proto(graph)
    ir.external_data.set_base_dir(opened.graph, model_file.parent)
    return opened.graph.initializers


def weight_checks(model_file: Path, model: nn.Module, weights: Weights | None = None) -> Check:
    """Compare every parameter of ``model`` with the initializer of its name.

    Of a user's module, parameters that the file does not hold under their names are left out: the exporter
    may have computed something of them.

    Args:
        model_file: an exported model.onnx with its weights beside it.
        model: the source, cast to the file's dtype, or in float64 for a file of fp32.
        weights: how the file says that its products' matrices are stored; None for as they are.

    Returns:
        One check: the first parameter that differs, or success. Parameters are stored exactly, but for A, and
        for packed matrices, whose relative error has a bound of its own.

    Raises:
        SessionError: the file is no valid ONNX file.
    """
    open_graph(model_file, error=SessionError)
    try:
        return _compare(open_initializers(model_file), model, weights)
    except Exception as error:  # truncated or missing: what a verifier must report
        reason = first_line(error)
        return Check("file", "weights", math.inf, 0.0, contract.WEIGHTS_FILE, reason)


def _compare(
    initializers: Mapping[str, ir.Value], model: nn.Module, weights: Weights | None
) -> Check:
    largest, compared, packed = 0.0, 0, 0
    is_ours = isinstance(model, MambaLM | MambaBackbone)
    for name, parameter in model.named_parameters():
        stored_name = name.removesuffix("_log") if _is_logarithm(name) else name
        codes = packed_of(initializers, name, parameter)
        rows = packed_rows_of(initializers, name)
        for one in (codes, rows) if weights is not None else ():
            if one is not None and weights is not None:
                kind = weights.kind if one is codes else EMBEDDING_KIND
                found, matrix = unpack(one), parameter.detach().float().numpy().T
                check = compare("file", "weights", found, matrix, PACKED_ERROR[kind], name=name)
                if not check.passed:
                    return check
                packed += 1
        if stored_name not in initializers:
            if not is_ours or (weights is not None and (codes or rows)):
                continue
            failure = f"{stored_name} is not in the file"
            return Check("file", "weights", math.inf, 0.0, stored_name, failure)
        tensor = initializers[stored_name].const_value
        assert tensor is not None
        stored = np.asarray(tensor.numpy()).astype(np.float32)
        expected, allowed = _expected(name, parameter.detach())
        if name == _HEAD:  # as its product takes it, or as it is
            expected = _as_stored(expected, stored)
        elif is_ours and expected.ndim == 1 and expected.size == stored.size:
            expected = expected.reshape(stored.shape)  # cut into heads or groups
        elif not is_ours:
            expected = _as_stored(_plain(name, parameter.detach()), stored)
        check = compare("file", "weights", stored, expected, allowed, name=stored_name)
        if not check.passed:
            return check
        largest, compared = max(largest, check.error), compared + 1
    if weights is not None and not packed:
        failure = f"the metadata says {weights}, and no matrix is stored so"
        return Check("file", "weights", math.inf, 0.0, contract.METADATA_FILE, failure)
    where = f"{compared} tensors" + (f"; {packed} matrices as {weights}" if packed else "")
    return Check("file", "weights", largest, _EXP_ROUNDING, where)


def _is_logarithm(name: str) -> bool:
    return name.split(".")[-1] == "A_log"


def _plain(name: str, parameter: Tensor) -> np.ndarray:
    """The parameter, or A of A_log, as the module has it."""
    return (-torch.exp(parameter.double()) if _is_logarithm(name) else parameter.float()).numpy()


def _as_stored(array: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """A user's parameter as the file lays it out: its axes in any order, or joined and cut otherwise."""
    orders = itertools.permutations(range(array.ndim)) if array.ndim <= _MOST_AXES else ()
    layouts = [array, *(array.transpose(order) for order in orders), array.squeeze()]
    if array.size == stored.size:
        layouts.append(array.reshape(stored.shape))
    fitting = [layout for layout in layouts if layout.shape == stored.shape]
    equal = [layout for layout in fitting if np.array_equal(layout.astype(np.float32), stored)]
    return next(iter(equal or fitting), array)


def _expected(name: str, parameter: Tensor) -> tuple[np.ndarray, float]:
    """The parameter as the file stores it, and its bound."""
    if _is_logarithm(name):
        return -torch.exp(parameter.double()).numpy(), _EXP_ROUNDING
    array = parameter.float().numpy()
    if name.endswith("conv1d.weight"):
        return array.squeeze(1), 0.0
    if array.ndim == 2 and not name.startswith("embeddings"):
        return array.T, 0.0  # a projection is stored as its product takes it
    return array, 0.0
