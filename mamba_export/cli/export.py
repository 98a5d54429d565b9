"""``mamba-export export``: a model to a folder; with ``--engine`` and ``--verify`` all that follows too."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from mamba_export import contract
from mamba_export.cli.bars import progress_bars
from mamba_export.cli.notes import noted
from mamba_export.cli.options import (
    AUTO,
    DEFAULT_BATCH,
    DEFAULT_DTYPE,
    DEFAULT_LENGTH,
    BatchRangeOption,
    EngineRuntimeOption,
    LengthRangeOption,
    PluginOption,
    QuickOption,
    one_of,
)
from mamba_export.cli.streams import print_lines, results
from mamba_export.cli.streams import say as say_line
from mamba_export.contract.weights import (
    BLOCKS,
    PACKED_OPSET,
    WEIGHT_KINDS,
    Weights,
    default_opset,
)
from mamba_export.errors import MambaExportError
from mamba_export.printing import printable
from mamba_export.untrusted import read_text

if TYPE_CHECKING:
    from mamba_export.backends.tensorrt.description import EngineDescription
    from mamba_export.backends.tensorrt.options import BuildOptions
    from mamba_export.verify import Report


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder of a checkpoint (transformers' Mamba, FalconMamba or Mamba2, or state-spaces), or a "
            "Hugging Face id such as state-spaces/mamba2-130m.",
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.")],
    dtype: Annotated[
        str,
        one_of(
            contract.DTYPES,
            help="Matrices, activations and logits; states of the scan stay fp32 (see --state-dtype).",
        ),
    ] = DEFAULT_DTYPE,
    state_dtype: Annotated[
        str | None,
        one_of(
            contract.DTYPES,
            help="States of Mamba-2's scan: fp32 (the default), or the DTYPE of --dtype, which halves "
            "what every step reads and writes of them.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        one_of(
            WEIGHT_KINDS,
            help="Store the matrices of products as codes of so many bits; what is computed with stays DTYPE.",
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            help=f"Of --weights: how many weights share a scale, {', '.join(map(str, BLOCKS))}; "
            f"default: {BLOCKS[0]}."
        ),
    ] = None,
    asymmetric: Annotated[
        bool,
        typer.Option(
            "--asymmetric",
            help="Of --weights int4 and int8: with zero points, which TensorRT lacks.",
        ),
    ] = False,
    keep_head: Annotated[
        bool,
        typer.Option("--keep-head", help="Of --weights: leave the output projection in DTYPE."),
    ] = False,
    pack_embeddings: Annotated[
        bool,
        typer.Option("--pack-embeddings", help="Of --weights: store the embedding in 8 bits too."),
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of --weights: a text that codes are chosen for (GPTQ); default: each weight's nearest.",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            help=f"Version of standard ONNX, {contract.OPSETS[0]} to {contract.OPSETS[-1]}; default: "
            f"{contract.DEFAULT_OPSET}, with --weights {PACKED_OPSET}."
        ),
    ] = None,
    last_logits_only: Annotated[
        bool, typer.Option("--last-logits-only", help="Return the last step's logits alone.")
    ] = False,
    fuse_layers: Annotated[
        bool,
        typer.Option(
            "--fuse-layers/--no-fuse-layers",
            help="One node a layer, which our CUDA kernels run in a few launches. Switched off, a layer's "
            "matrix products are nodes of the graph itself, where tools that edit or quantize it find them.",
        ),
    ] = True,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Take the tokenizer from this folder or Hugging Face id."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing OUT.")] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Then compare OUT with PyTorch; exit with 1 if it fails."),
    ] = False,
    quick: QuickOption = False,
    engine: Annotated[
        bool,
        typer.Option("--engine", help="Build a TensorRT engine too, our scan in it as a plugin."),
    ] = False,
    batch: BatchRangeOption = DEFAULT_BATCH,
    length: LengthRangeOption = DEFAULT_LENGTH,
    plugin: PluginOption = True,
    runtime: EngineRuntimeOption = AUTO,
) -> None:
    """Write OUT/model.onnx, its weights, the tokenizer, metadata and genai_config.json.

    With --engine also what `build` writes, with --verify also what `verify` prints. Where the engine is
    refused after the export, the export stays.
    """
    if quick and not verify:
        raise MambaExportError("--quick is for --verify: give both, or leave it out")
    packed = _weights(weights, block, asymmetric, keep_head, pack_embeddings)
    text = None if calibrate is None else read_text(calibrate)
    options = _engine_options(batch, length, plugin, runtime)
    if engine:
        from mamba_export.backends.tensorrt import check_installed

        check_installed(options)  # before minutes are spent on the export

    plain = not (engine or verify)  # the result of an export alone is one line
    description: EngineDescription | None = None
    report: Report | None = None
    with (
        noted() as notes,
        progress_bars(Console(stderr=True), transient=plain, in_logs=not plain) as progress,
    ):
        from mamba_export.export import export

        say = _stage(progress, "export", None)
        out = export(
            model,
            out,
            dtype=dtype,
            opset=opset,
            state_dtype=state_dtype,
            weights=packed,
            calibrate=text,
            last_logits_only=last_logits_only,
            fuse_layers=fuse_layers,
            tokenizer=tokenizer,
            force=force,
            progress=say,
        )
        say("done", 1.0)
        if engine:
            description = _build(out, options, _stage(progress, "engine", 1.0))
        if verify:
            report = _verify(out, quick, _stage(progress, "verify", None))
    for note in notes:
        say_line(f"note: {note}")
    if description is not None:
        from mamba_export.cli.build import summary

        print_lines(summary(out, description))
    if report is None:
        size = sum(file.stat().st_size for file in out.iterdir())
        stored = "" if packed is None else f", weights {packed}"
        version = default_opset(packed) if opset is None else opset
        say_line(f"wrote {out} ({size / 1e6:.1f} MB, {dtype}{stored}, opset {version})")
        return
    from mamba_export.verify.table import print_report

    with results():
        print_report(report)
    if not report.passed:
        raise typer.Exit(1)
    say_line(f"{out} is ready: mamba-export run {shlex.quote(str(out))} --prompt '...'")


def _weights(
    kind: str | None, block: int | None, asymmetric: bool, keep_head: bool, embeddings: bool
) -> Weights | None:
    given = {
        "--block": block is not None,
        "--asymmetric": asymmetric,
        "--keep-head": keep_head,
        "--pack-embeddings": embeddings,
    }
    if kind is None:
        for option in [option for option, is_given in given.items() if is_given]:
            raise MambaExportError(f"{option} is for --weights: give both, or leave it out")
        return None
    return Weights(
        kind,
        BLOCKS[0] if block is None else block,
        symmetric=not asymmetric,
        head=not keep_head,
        embeddings=embeddings,
    )


def _engine_options(batch: str, length: str, plugin: bool, runtime: str) -> BuildOptions:
    from mamba_export.backends.tensorrt.options import BuildOptions
    from mamba_export.backends.tensorrt.profiles import parse_range

    return BuildOptions(
        batch=parse_range(batch, "--batch"),
        length=parse_range(length, "--length"),
        plugin=plugin,
        runtime=runtime,
    )


Say = Callable[..., None]
"""Called with what is done now, and how much of the stage is done, from 0 to 1, where that is known."""


def _stage(progress: Progress, name: str, total: float | None) -> Say:
    """A line of the display."""
    task = progress.add_task(name, total=total)

    def say(what: str, share: float | None = None) -> None:
        done = share == 1.0
        progress.update(
            task,
            description=printable(f"{name}: {what}"),
            completed=share,
            total=1.0 if done else total,
        )

    return say


def _build(out: Path, options: BuildOptions, say: Say) -> EngineDescription:
    from mamba_export.backends.tensorrt import build

    description = build(
        out, options, progress=lambda phase, share: say(phase.lower(), min(share, 0.999))
    )
    say("done", 1.0)
    return description


def _verify(out: Path, quick: bool, say: Say) -> Report:
    from mamba_export.verify import verify

    report = verify(out, quick=quick, on_check=lambda check: say(f"{check.backend}, {check.check}"))
    say("done", 1.0)
    return report
