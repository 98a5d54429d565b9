"""The command line: ``mamba-export export | build | verify | run | doctor | library-path``.

Results go to standard output, progress and errors to standard error. Exit codes: 0 success, 1 a
verification that failed, 2 bad input (one line, no traceback), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mamba_export import __version__, requirements
from mamba_export.errors import MambaExportError
from mamba_export.libraries import CUSTOM_OPS

app = typer.Typer(
    name="mamba-export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Take a Mamba model out of PyTorch: one ONNX file that runs in ONNX Runtime.\n\n"
        "A first session: `mamba-export export models/kjv-bytes -o out`, "
        "`mamba-export verify out`, `mamba-export run out --prompt 'Ge1:1 '`."
    ),
)
_console = Console(stderr=True)


class Dtype(str, Enum):
    """What an exported file may hold."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class TrtRuntime(str, Enum):
    """What builds and runs an engine."""

    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class RunBackend(str, Enum):
    """What runs a model: ONNX Runtime, or TensorRT with the engine that `build` wrote."""

    ort = "ort"
    trt = "trt"


class Provider(str, Enum):
    """Where ONNX Runtime runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Backend(str, Enum):
    """What verify checks: ONNX Runtime with the file's own function bodies, or with our kernels."""

    auto = "auto"
    cpu = "cpu"
    native = "native"
    cuda = "cuda"
    cuda_native = "cuda-native"
    trt = "trt"


def _show_version(value: bool) -> None:
    if value:
        print(f"mamba-export {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a checkpoint (transformers' Mamba or FalconMamba, or state-spaces), or a "
        "Hugging Face id such as state-spaces/mamba-130m-hf.",
    ),
]
OutOption = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.")]
DtypeOption = Annotated[
    Dtype, typer.Option(help="Matrices, activations and logits; states of the scan stay fp32.")
]
OpsetOption = Annotated[int, typer.Option(help="Version of standard ONNX, 18 to 23.")]
LastLogitsOption = Annotated[
    bool, typer.Option("--last-logits-only", help="Return the last step's logits alone.")
]
FuseLayersOption = Annotated[
    bool,
    typer.Option(
        "--fuse-layers/--no-fuse-layers",
        help="One node a layer, which our CUDA kernels run in a few launches. Switched off, a layer's matrix "
        "products are nodes of the graph itself, where tools that edit or quantize it find them.",
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Take the tokenizer from this folder or Hugging Face id."),
]
QuickOption = Annotated[bool, typer.Option("--quick", help="Verify fewer lengths, batch 1 alone.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing OUT.")]
PluginOption = Annotated[
    bool,
    typer.Option(
        "--plugin/--no-plugin",
        help="Our operators as TensorRT plugins, or as standard operators, which are slow.",
    ),
]
BatchRangeOption = Annotated[
    str, typer.Option(metavar="MIN,OPT,MAX", help="Sequences a run, or one number for all three.")
]
LengthRangeOption = Annotated[
    str,
    typer.Option(metavar="MIN,OPT,MAX", help="Steps of a prompt a run; single steps always work."),
]
TrtRuntimeOption = Annotated[
    TrtRuntime,
    typer.Option("--runtime", help="tensorrt needs a GPU to build, tensorrt-rtx none."),
]


@app.command("export")
def export_command(
    model: ModelArgument,
    out: OutOption,
    dtype: DtypeOption = Dtype.fp32,
    opset: OpsetOption = 20,
    last_logits_only: LastLogitsOption = False,
    fuse_layers: FuseLayersOption = True,
    tokenizer: TokenizerOption = None,
    force: ForceOption = False,
) -> None:
    """Write OUT/model.onnx, its weights, the tokenizer, metadata and genai_config.json."""
    from mamba_export.export import export

    with _console.status("starting") as status:
        export(
            model,
            out,
            dtype=dtype.value,
            opset=opset,
            last_logits_only=last_logits_only,
            fuse_layers=fuse_layers,
            tokenizer=tokenizer,
            force=force,
            progress=status.update,
        )
    size = sum(file.stat().st_size for file in out.iterdir())
    _console.print(f"wrote {out} ({size / 1e6:.1f} MB, {dtype.value}, opset {opset})")


@app.command("build")
def build_command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="An exported folder.")],
    precision: Annotated[
        Dtype | None, typer.Option(help="Must be the file's own dtype, which is the default.")
    ] = None,
    batch: BatchRangeOption = "1,4,16",
    length: LengthRangeOption = "1,128,4096",
    workspace: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most scratch memory of a layer, as in 512M or 4G."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Kernel timings, read and written: later builds are quick."
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Runs on later TensorRT versions too."),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option("--hardware-compatible", help="Runs on every GPU from Ampere on."),
    ] = False,
    plugin: PluginOption = True,
    runtime: TrtRuntimeOption = TrtRuntime.auto,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Build nothing; write what a target needs to build it itself."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing engine, or FOLDER.")
    ] = False,
) -> None:
    """Write OUT/model.engine for TensorRT or TensorRT-RTX, engine.json and DEPLOY.md."""
    from mamba_export.backends.tensorrt.options import BuildOptions, parse_workspace
    from mamba_export.backends.tensorrt.profiles import parse_range
    from mamba_export.cli import build

    options = BuildOptions(
        precision=None if precision is None else precision.value,
        batch=parse_range(batch, "--batch"),
        length=parse_range(length, "--length"),
        workspace_mib=None if workspace is None else parse_workspace(workspace),
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        plugin=plugin,
        runtime=runtime.value,
    )
    if bundle is None:
        build.build_command(folder, options, force=force)
    else:
        build.bundle_command(folder, bundle, options, force=force)


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="An exported folder.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The source, where it is not where the export found it."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text for next-token agreement; a short one ships with us."
        ),
    ] = None,
    backend: Annotated[
        list[Backend] | None,
        typer.Option(
            help="Backend to check; may be repeated. cpu and cuda run the file's function bodies, native "
            "the compiled kernels on the CPU, cuda-native those on the GPU, trt the engine that build wrote. "
            "Default: every one that is present."
        ),
    ] = None,
    quick: QuickOption = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare every backend that is present with the PyTorch model; exit with 1 if anything fails."""
    from mamba_export.verify import verify
    from mamba_export.verify.table import print_report

    names = [item.value for item in backend or ()]
    with _console.status("loading") as status:
        report = verify(
            folder,
            model=model,
            text=_read_text(text),
            backends=None if Backend.auto.value in names else names,
            quick=quick,
            on_check=lambda check: status.update(f"{check.backend}: {check.check}"),
        )
    if json_output:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _read_text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MambaExportError(f"{path}: cannot be read as UTF-8 text ({error})") from error


@app.command("run")
def run_model_command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="An exported folder.")],
    prompt: Annotated[
        list[str],
        typer.Option(help="Text to continue; may be repeated for a batch."),
    ],
    max_new_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Sample among the likeliest tokens that hold this share; 1: all.")
    ] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens that occurred less likely; 1: off.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    backend: Annotated[
        RunBackend, typer.Option(help="trt runs the engine that `build` wrote, on an NVIDIA GPU.")
    ] = RunBackend.ort,
    provider: Annotated[Provider, typer.Option(help="Where ONNX Runtime runs.")] = Provider.auto,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")] = None,
    ignore_end: Annotated[
        bool, typer.Option("--ignore-end", help="Go on after the end-of-text token.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """Generate text, as it comes; tokens per second at the end."""
    from mamba_export.cli.run import run_command
    from mamba_export.generation.sampling import Sampling

    code = run_command(
        folder,
        prompt,
        sampling=Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        ),
        max_new_tokens=max_new_tokens,
        backend=backend.value,
        provider=None if provider is Provider.auto else provider.value,
        threads=threads,
        json_output=json_output,
        stream=not json_output,
        ignore_end=ignore_end,
    )
    raise typer.Exit(code)


@app.command("doctor")
def doctor_command(
    json_output: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print what was built and found on this machine, and why the rest was not."""
    from mamba_export.cli import doctor

    doctor.print_report(json_output)


@app.command("library-path")
def library_path_command() -> None:
    """Print the custom-op library's file, for ONNX Runtime's register_custom_ops_library."""
    path = CUSTOM_OPS.path()
    if path is None:
        raise MambaExportError(CUSTOM_OPS.why_absent())
    print(path)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: runs a command, turns errors that a user can act on into one line and an exit code."""
    return run_app(app, arguments)


def run_app(application: typer.Typer, arguments: list[str] | None = None) -> Any:
    """Run a typer application with our error and exit-code rules; the scripts in tools/ share it.

    Typer itself ends on Ctrl-C (130) and on a reader that left (``| head``) without a traceback.
    """
    try:
        with requirements.named():
            code = application(args=arguments, standalone_mode=True)
    except MambaExportError as error:
        # Not through rich: it would wrap the line and read brackets in a path as markup.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
