"""``verify``: every backend that is present, against the PyTorch model that the file came from."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mamba_export import contract, given
from mamba_export.adapters import transformers
from mamba_export.backends import registry
from mamba_export.backends.backend import Backend
from mamba_export.contract.program import Tokens
from mamba_export.errors import ExportError, MambaExportError, MissingKernelError, SessionError
from mamba_export.export.module_program import module_program
from mamba_export.folder.graph import interface, open_graph
from mamba_export.folder.interface import difference
from mamba_export.folder.metadata import Metadata, read_metadata
from mamba_export.folder.tokenizer import load_tokenizer
from mamba_export.models import MambaBackbone, MambaLM, ModelConfig, cast, checkpoints
from mamba_export.models.program import make_program, recurrent_dtype
from mamba_export.untrusted import is_folder, is_there
from mamba_export.verify.bounds import BATCHES, LENGTHS, Check, Report
from mamba_export.verify.loss import Loss
from mamba_export.verify.models import Comparison, program_cases
from mamba_export.verify.operators import RunGraph, operator_checks
from mamba_export.verify.packed import PackedMatrices
from mamba_export.verify.truth import MakeProgram, Question, cast_own, make_truth
from mamba_export.verify.weights import open_initializers, weight_checks

_QUICK_LENGTHS = (1, 2, 65)
_TEXT_TOKENS = 1024
"""Tokens of text that are compared: enough to see a drift, seconds on a CPU at 130M."""


def verify(
    folder: str | Path,
    *,
    model: str | Path | nn.Module | None = None,
    text: str | None = None,
    backends: Sequence[str] | None = None,
    quick: bool = False,
    on_check: Callable[[Check], None] | None = None,
) -> Report:
    """Compare an exported folder with its source.

    Checks, for each backend that is present: each operator alone over the parity grid, whole outputs and
    states over lengths, batches and other symbolic sizes, splits, extremes, and a language model's next tokens
    over a real text; and once for the file: every weight. The truth is the source on the operators'
    references, in float64 where that fits into memory (``truth``); no kernel takes part in it.

    Args:
        folder: what ``export`` wrote.
        model: the source: a checkpoint's folder, a model of this package, or the module that was exported; None
            for the folder that the metadata names.
        text: text of the next-token check; None for the one that ships with the package.
        backends: which to run, of ``backends.registry.variants()``; none for every one that is present.
        quick: fewer lengths and one batch size.
        on_check: called with each result as it comes.

    Returns:
        The report. It passes when at least one check ran and none failed.

    Raises:
        MambaExportError: the folder is not ours, the source cannot be loaded, or a backend that was asked
            for by name is not present.
    """
    quick = given.flag(quick, "quick", SessionError)
    given.function(on_check, "on_check", SessionError)
    if text is not None and not isinstance(text, str):
        raise SessionError(f"text is {given.shown(text)}, expected a text")
    wanted = [backends] if isinstance(backends, str) else backends
    if wanted is not None:
        expected = f"a list, of {', '.join(registry.variants())}"
        wanted = given.listed(wanted, "backends", expected, SessionError)
    metadata = read_metadata(folder)
    folder = metadata.folder
    found, missing = registry.present(wanted or None, folder)
    if wanted and missing:
        name, reason = next(iter(missing.items()))
        raise SessionError(f"{name} was asked for and is not here: {reason}")
    graph = open_graph(metadata.model_path, error=SessionError)
    source = _source(metadata, model)
    _check_source(metadata, source)
    differs = difference(metadata, interface(graph))
    if differs:  # then the metadata tells nothing of how to ask the graph
        check = Check("file", "interface", math.inf, 0.0, contract.METADATA_FILE, differs)
        reason = "the graph is not the one that the metadata describes"
        report = Report(
            str(folder), metadata.dtype, "its metadata", [check], {"all other checks": reason}
        )
        if on_check is not None:
            on_check(check)
        return report
    of_transformers = metadata.source.get("kind") == transformers.KIND
    truth = make_truth(
        source,
        metadata.dtype,
        _program_maker(metadata),
        owned=source is not model,
        cast_copy=transformers.cast if of_transformers else cast_own,
        packed=_packed(metadata, source),
    )
    stored = None if metadata.weights is None else str(metadata.weights)
    report = Report(
        str(folder),
        metadata.dtype,
        truth.words,
        not_run=missing,
        weights=stored,
        discretization=metadata.discretization,
    )

    def note(check: Check) -> None:
        report.checks.append(check)
        if on_check is not None:
            on_check(check)

    if not _ends_as_exported(metadata):
        failure = "tokens.eos_token_id is not that of the model that was exported"
        note(Check("file", "end of text", math.inf, 0.0, contract.METADATA_FILE, failure))
    same_dtype = truth.same_dtype or truth.exact  # float64 holds fp32's values exactly
    note(weight_checks(folder / contract.MODEL_FILE, same_dtype.model, metadata.weights))
    cases, refused = program_cases(
        metadata,
        truth,
        lengths=_QUICK_LENGTHS if quick else LENGTHS,
        batches=BATCHES[:1] if quick else BATCHES,
    )
    report.not_run.update(refused)
    report.truth = truth.words
    tokens, text_size = _tokens(folder, metadata, text) or (None, 0)
    if tokens is None and metadata.takes_tokens:
        report.not_run["next token over text"] = "needs tokenizer.json and logits of every step"
    for backend in found:
        missing_dtype = _missing_dtype(backend, metadata)
        for check in operator_checks(
            folder / contract.MODEL_FILE,
            metadata.dtype,
            backend.name,
            _graph_runner(backend),
            layers=missing_dtype is None,
            exact_products=backend.exact_products,
        ):
            note(check)
        if missing_dtype is not None:
            report.not_run[f"{backend.name}, whole model"] = backend.missing_dtypes[missing_dtype]
            continue
        try:
            session = _open(backend, folder, note)
        except MissingKernelError as error:
            report.not_run[f"{backend.name}, whole model"] = str(error)
            continue
        if session is None:
            continue
        comparison = Comparison(backend.name, session, truth, metadata)
        for case in cases:
            note(comparison.check(case))
        if tokens is not None:
            note(comparison.text(tokens))
            if metadata.weights is not None and text_size:
                note(Loss(comparison, tokens, text_size).check())
    return report


def _missing_dtype(backend: Backend, metadata: Metadata) -> str | None:
    """The dtype, of the file or of its packed weights, for which a backend cannot run the whole model."""
    kinds = () if metadata.weights is None else (metadata.weights.kind,)
    return next((one for one in (metadata.dtype, *kinds) if one in backend.missing_dtypes), None)


def _ends_as_exported(metadata: Metadata) -> bool:
    """Whether texts end at the tokens of the model's own configuration, where the folder tells it."""
    if metadata.tokens is None or metadata.model is None:
        return True
    config = ModelConfig.from_fields(metadata.model)
    return Tokens(config.vocab_size, config.eos_token_id).end_tokens == metadata.end_tokens


def _packed(metadata: Metadata, model: nn.Module) -> PackedMatrices | None:
    """The file's packed matrices; None where it has none, or none that can be read: its weights then fail."""
    if metadata.weights is not None:
        with contextlib.suppress(MambaExportError):
            initializers = open_initializers(metadata.model_path)
            return PackedMatrices.read(initializers, model, metadata.weights)
    return None


def _graph_runner(backend: Backend) -> RunGraph:
    """Runs one-node graphs. Cases of the same attributes share one: it is opened once and takes every shape."""
    opened = functools.cache(backend.open_graph)
    return lambda graph, inputs: opened(graph)(inputs)


def _open(backend: Backend, folder: Path, note: Callable[[Check], None]) -> object | None:
    try:
        return backend.open_model(folder)
    except MissingKernelError:
        raise
    except SessionError as error:
        note(Check(backend.name, "load", math.inf, 0.0, contract.MODEL_FILE, str(error)))
        return None


def _program_maker(metadata: Metadata) -> MakeProgram:
    """What makes the program of a model, as it was exported."""
    if metadata.model is not None:
        return functools.partial(
            make_program,
            last_logits_only=metadata.last_logits_only,
            state_dtype=recurrent_dtype(metadata.states),
        )
    if metadata.source.get("kind") == transformers.KIND:
        return transformers.make_program
    return lambda module: module_program(
        module,
        metadata.source,
        inputs=metadata.inputs,
        outputs=metadata.outputs,
        states=metadata.states,
    )


def _source(metadata: Metadata, model: str | Path | nn.Module | None) -> nn.Module:
    if isinstance(model, (MambaLM, MambaBackbone)):
        return _in_fp32(model)
    if metadata.model is not None and checkpoints.is_transformers(model):
        return checkpoints.load_module(model)[0]
    if isinstance(model, nn.Module):
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        return model if on_cpu else copy.deepcopy(model).cpu()
    of_transformers = metadata.source.get("kind") == transformers.KIND
    if metadata.model is None and not of_transformers:
        raise ExportError(
            f"{metadata.folder} was exported from a module of your own: pass it, as in "
            "mamba_export.verify(folder, model=module)"
        )
    if model is None:
        if metadata.source_path is None:
            raise ExportError(
                "the file was exported from a model in memory: pass the model (--model FOLDER) to compare with"
            )
        if not is_folder(metadata.source_path, error=ExportError):
            raise ExportError(
                f"{metadata.source_path}: the source of this export is not there any more: "
                "pass its folder with --model"
            )
        model = metadata.source_path
    if not given.is_path(model):
        raise SessionError(
            f"model is {given.shown(model)}: give a checkpoint's folder, or the module that was exported"
        )
    if not isinstance(model, str):
        model = given.path(model, "model", SessionError)
    if of_transformers:
        return transformers.load(checkpoints.locate(model), torch.float32)
    return checkpoints.load(model).model


def _in_fp32(model: MambaLM | MambaBackbone) -> MambaLM | MambaBackbone:
    """The caller's model where it can be the truth as it is, else a copy in fp32 on the CPU."""
    device = next(model.parameters()).device
    if model.backbone_dtype == torch.float32 and device.type == "cpu":
        return model
    duplicate = copy.deepcopy(model).cpu()
    cast(duplicate, torch.float32)
    return duplicate


def _check_source(metadata: Metadata, model: nn.Module) -> None:
    """A model of other sizes cannot be compared with at all, and is no doubt the wrong one."""
    if metadata.model is None:
        return
    if not isinstance(model, MambaLM | MambaBackbone):
        raise ExportError(
            f"{metadata.folder} was exported from a Mamba model, and the model to compare with is a "
            f"{type(model).__name__}: pass the model that it was exported from"
        )
    found = model.config.sizes
    try:
        expected = ModelConfig.from_fields(metadata.model).sizes
    except MambaExportError as error:
        path = metadata.folder / contract.METADATA_FILE
        raise SessionError(f"{path} is damaged (model: {error}): export the model again") from error
    for name, size in expected.items():
        if found[name] != size:
            raise ExportError(
                f"the model to compare with has {name} {found[name]} and {metadata.folder} "
                f"{size}: pass the model that it was exported from (--model)"
            )
    if isinstance(model, MambaLM) != metadata.takes_tokens:
        raise ExportError(
            f"the model to compare with and {metadata.folder} do not both take tokens: "
            "pass the model that it was exported from"
        )


def _tokens(folder: Path, metadata: Metadata, text: str | None) -> tuple[Question, int] | None:
    """The tokens of the text, and the bytes that all but the first stand for.

    None where there is no tokenizer, or no logits to compare.
    """
    if metadata.last_logits_only or not is_there(
        folder / contract.TOKENIZER_FILE, error=SessionError
    ):
        return None
    if text is None:
        text = resources.files("mamba_export.verify").joinpath("text.txt").read_text("utf-8")
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.encode(text)[:_TEXT_TOKENS]
    if not tokens:
        return None
    size = len(tokenizer.decode(tokens[1:], after=tokens[:1]).encode())
    return Question({metadata.inputs[0].name: np.array([tokens], dtype=np.int64)}), size
