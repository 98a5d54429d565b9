"""What this installation has: versions, the GPU, the compiled libraries, and for each absence the reason.

Nothing here raises: what is broken is a row of the report.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from mamba_export import __version__, cuda_queries, requirements
from mamba_export.backends.tensorrt.names import KINDS, Kind
from mamba_export.cli.options import JsonOption
from mamba_export.cli.streams import results
from mamba_export.contract.discretization import DISCRETIZATIONS
from mamba_export.errors import MambaExportError, named_first_line
from mamba_export.libraries import CUSTOM_OPS, MAMBA_RUN, TRT_PLUGIN, installed
from mamba_export.printing import as_text

State = Literal["ok", "absent", "broken"]


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, its state, and its version or path, or the reason of its absence."""

    what: str
    state: State
    detail: str


_PACKAGES = (
    "triton",
    "onnx",
    "onnxscript",
    "safetensors",
    "huggingface_hub",
    "onnx_graphsurgeon",
    "cuda-bindings",
)
"""Those whose version says enough; they are not imported."""


def _package(name: str) -> Finding:
    """An importable package with its version, without importing it."""
    try:
        return Finding(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "absent", requirements.how_to_install(name))


def _torch() -> Finding:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return Finding(
        "torch",
        "ok",
        f"{torch.__version__} (built with {built}), {torch.get_num_threads()} threads",
    )


def _onnxruntime() -> Finding:
    from mamba_export.backends.onnxruntime import providers

    return Finding("onnxruntime", "ok", providers.describe())


def _gpu() -> Finding:
    has_driver = Path("/dev/nvidiactl").exists() or Path("/dev/nvhost-gpu").exists()
    if not requirements.is_installed("torch"):
        if has_driver:
            return Finding(
                "NVIDIA GPU", "ok", "there is a driver; without torch, its GPUs are not named"
            )
        return Finding("NVIDIA GPU", "absent", "no NVIDIA driver on this machine")
    import torch

    if torch.cuda.is_available():
        names = []
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            names.append(f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
        return Finding("NVIDIA GPU", "ok", ", ".join(names))
    if not has_driver:
        return Finding("NVIDIA GPU", "absent", "no NVIDIA driver on this machine")
    if not torch.version.cuda:
        return Finding(
            "NVIDIA GPU",
            "absent",
            f"torch {torch.__version__} was built without CUDA: install a build with CUDA",
        )
    return Finding(
        "NVIDIA GPU",
        "absent",
        f"there is a driver, but torch {torch.__version__} sees no GPU: CUDA_VISIBLE_DEVICES="
        f"{os.environ.get('CUDA_VISIBLE_DEVICES', '(unset)')}, or a driver older than CUDA "
        f"{torch.version.cuda}",
    )


def _kernels() -> Finding:
    from mamba_export.operators import native

    what = "kernels for PyTorch"
    if not native.available():
        return Finding(what, "absent", native.why_absent())
    library = native.library()
    return Finding(what, "ok", f"CPU, {library.instruction_set}: {library.path}")


def _gpu_count() -> int:
    """At least 1: where torch is absent or counts no GPU, having no CUDA, the library looks for itself."""
    if not requirements.is_installed("torch"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _cuda(what: str, functions: ctypes.CDLL) -> Finding:
    """What a library was built for, and which of the GPUs of this machine it runs on."""
    architectures = cuda_queries.cuda_architectures(functions)
    if not architectures:
        return Finding(what, "absent", cuda_queries.why_not_on_gpu(functions, 0))
    gpus = range(_gpu_count())
    problems = [cuda_queries.why_not_on_gpu(functions, index) for index in gpus]
    runs_on = [f"GPU {index}" for index in gpus if not problems[index]]
    built = f"built for {', '.join(f'sm_{name}' for name in architectures.split())}"
    details = [
        built,
        *([f"runs on {', '.join(runs_on)}"] if runs_on else []),
        *filter(None, problems),
    ]
    return Finding(what, "ok" if runs_on else "absent", "; ".join(details))


def _cuda_kernels() -> Finding:
    from mamba_export.operators import native

    what = "CUDA kernels for PyTorch"
    if not native.available():
        return Finding(what, "absent", native.why_absent())
    return _cuda(what, native.library().functions)


def _cuda_custom_ops() -> Finding:
    from mamba_export.backends.onnxruntime import custom_ops

    what = "CUDA kernels for ONNX Runtime"
    path = CUSTOM_OPS.path()
    if path is None:
        return Finding(what, "absent", CUSTOM_OPS.why_absent())
    return _cuda(what, custom_ops.load(path))


def _custom_ops() -> Finding:
    from mamba_export.backends.onnxruntime import custom_ops

    what = "kernels for ONNX Runtime"
    path = CUSTOM_OPS.path()
    if path is None:
        return Finding(what, "absent", CUSTOM_OPS.why_absent())
    custom_ops.check_registers()
    return Finding(what, "ok", f"CPU: {path}")


def _tensorrt(kind: Kind) -> Finding:
    from mamba_export.backends.tensorrt import library

    if not library.is_installed(kind):
        return Finding(kind.title, "absent", f"not installed: {kind.install}")
    return Finding(kind.title, "ok", library.load(kind).version)


def _tensorrt_plugins() -> Finding:

    what = "TensorRT plugins"
    path = TRT_PLUGIN.path()
    if path is None:
        return Finding(what, "absent", TRT_PLUGIN.why_absent())
    functions = ctypes.CDLL(str(path))
    cuda_queries.declare_cuda_queries(functions)
    architectures = cuda_queries.cuda_architectures(functions).split()
    return Finding(what, "ok", f"built for {', '.join(f'sm_{a}' for a in architectures)}: {path}")


def _mamba_run() -> Finding:
    path = installed(MAMBA_RUN)
    if path is None:
        return Finding(MAMBA_RUN, "absent", "not built: it is built with the TensorRT plugins")
    return Finding(MAMBA_RUN, "ok", str(path))


def _guarded(what: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except MambaExportError as error:
        return Finding(what, "broken", str(error))
    except ModuleNotFoundError as error:
        line = requirements.missing(error)
        if line is None:
            return Finding(what, "broken", named_first_line(error))
        return Finding(
            what, "absent", requirements.how_to_install(what) if line.name == what else str(line)
        )
    except Exception as error:
        return Finding(what, "broken", named_first_line(error))


def report() -> list[Finding]:
    """Look at everything that an export or a run may use; a row each, whatever its state."""
    machine = f"{sys.version.split()[0]} on {platform.system()} {platform.machine()}"
    return [
        Finding("mamba_export", "ok", f"{__version__}: {Path(__file__).parents[1]}"),
        Finding("python", "ok", machine),
        _guarded("torch", _torch),
        *(_package(name) for name in _PACKAGES),
        _guarded("onnxruntime", _onnxruntime),
        _guarded("NVIDIA GPU", _gpu),
        _guarded("kernels for PyTorch", _kernels),
        _guarded("CUDA kernels for PyTorch", _cuda_kernels),
        _guarded("kernels for ONNX Runtime", _custom_ops),
        _guarded("CUDA kernels for ONNX Runtime", _cuda_custom_ops),
        *(_guarded(kind.title, functools.partial(_tensorrt, kind)) for kind in KINDS),
        _guarded("TensorRT plugins", _tensorrt_plugins),
        _guarded(MAMBA_RUN, _mamba_run),
    ]


def kernels_of(folder: Path) -> list[Finding]:
    """The kernels that an exported folder's calls fall to on GPUs, a row for each shape.

    Raises:
        SessionError: the folder's graph cannot be read.
    """
    from mamba_export.cli import forms

    problem = forms.why_unknown()
    return [
        Finding(what, "absent" if problem else "ok", problem or detail)
        for what, detail in forms.rows(folder)
    ]


def weights_of(folder: Path) -> list[Finding]:
    """A row on how an exported folder's matrices are stored, where that is not in its dtype.

    Raises:
        SessionError: the folder is none that was exported, or is damaged.
    """
    from mamba_export.folder.metadata import read_metadata

    stored = read_metadata(folder).weights
    return [] if stored is None else [Finding("weights", "ok", str(stored))]


def discretization_of(folder: Path) -> list[Finding]:
    """A row on each way in which an exported folder's scans discretise B, where its metadata says it.

    Raises:
        SessionError: as ``weights_of``.
    """
    from mamba_export.folder.metadata import read_metadata

    found = read_metadata(folder).discretization or ()
    return [Finding("discretisation", "ok", DISCRETIZATIONS[one]) for one in found]


def print_report(json_output: bool = False, folder: Path | None = None) -> None:
    """Print the report to standard output, as a table or as a JSON list of objects.

    Args:
        json_output: print JSON: ``[{"what": ..., "state": "ok" | "absent" | "broken", "detail": ...}]``.
        folder: an exported folder, whose weights, discretisation and kernels are told too.

    Raises:
        SessionError: the folder's graph cannot be read.
    """
    of_folder: list[Finding] = []
    if folder:
        of_folder = [*weights_of(folder), *discretization_of(folder), *kernels_of(folder)]
    findings = [*report(), *of_folder]
    if json_output:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    styles = {"ok": "green", "absent": "yellow", "broken": "bold red"}
    table = Table("state", "what", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("detail", overflow="fold")
    for finding in findings:
        state = as_text(finding.state, styles[finding.state])
        table.add_row(state, as_text(finding.what), as_text(finding.detail))
    Console().print(table)


def command(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT]",
            help="An exported folder, to tell its weights, discretisation and kernels too.",
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Print what was built and found on this machine, and why the rest was not."""
    with results():
        print_report(json_output, folder)
