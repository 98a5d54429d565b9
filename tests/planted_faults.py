"""Faults planted into a copy of the native sources, one compiled library for all of them.

A fault is a patch of the sources' text that does wrong where ``mamba::is_planted`` says so of its number: of
the one in the environment variable ``MAMBA_PLANTED_FAULT``, which is read at each call. The shipped sources
hold none of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mamba_export import contract
from mamba_export.export import export
from mamba_export.models import MambaLM, ModelConfig, checkpoints
from mamba_export.operators import gated_rms_norm, state_space_dual
from mamba_export.verify.bounds import Report

ROOT = Path(__file__).parents[1]
VARIABLE = "MAMBA_PLANTED_FAULT"
EXACT = "SelectiveScanExactZoh"
"""The scan's node in a language model with exact zero-order hold; as a fault's mixer, that model."""


@dataclass(frozen=True)
class Patch:
    """Text that stands once in one file under plugins/ with this ending, and what replaces it."""

    ending: str
    old: str
    new: str


@dataclass(frozen=True)
class Fault:
    """A fault: its patch, in which ``FAULT`` is true where it is chosen, and what it is caught by.

    name: for the test's id. check: name of a check that fails. dtype: of the file that shows it.
    mixer: of the language model whose file it is, or ``EXACT``. also: a second patch, which alone changes no
    result and makes sure that the fault does: of a race, a kernel that takes its time.
    """

    name: str
    check: str
    patch: Patch
    dtype: str = "fp32"
    mixer: str = "mamba"
    also: Patch | None = None


def patched(folder: Path, faults: Sequence[Fault], support: Sequence[Patch]) -> Path:
    """A copy of the sources in ``folder`` with all faults; arguments as in ``build``."""
    sources = folder / "sources"
    shutil.copytree(
        ROOT / "plugins", sources / "plugins", ignore=shutil.ignore_patterns("tensorrt")
    )
    shutil.copy(ROOT / "CMakeLists.txt", sources)
    for number, fault in enumerate(faults, 1):
        for patch in (fault.patch, fault.also):
            if patch is not None:
                _apply(sources, patch, f"mamba::is_planted({number})")
    for patch in support:
        _apply(sources, patch, "")
    return sources


def build(
    folder: Path,
    faults: Sequence[Fault],
    support: Sequence[Patch],
    targets: Sequence[str],
    options: Sequence[str],
) -> Path:
    """Compile a patched copy of the sources.

    Args:
        folder: empty, for sources and build.
        faults: fault i of the list is number i + 1.
        support: patches that define ``mamba::is_planted``.
        targets: to build. options: of cmake, such as -DMAMBA_CUDA=OFF.

    Returns:
        The build folder.
    """
    sources = patched(folder, faults, support)
    build_folder = folder / "build"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    _run("cmake", "-S", sources, "-B", build_folder, *generator, *options)
    _run("cmake", "--build", build_folder, "--parallel", os.cpu_count() or 1, "--target", *targets)
    return build_folder


def built_file(build_folder: Path, name: str) -> Path:
    """The file of this name that the build made."""
    return next(build_folder.rglob(name))


def _apply(sources: Path, patch: Patch, fault: str) -> None:
    files = [
        file
        for file in sorted((sources / "plugins").rglob(f"*{patch.ending}"))
        if patch.old in file.read_text()
    ]
    places = sum(file.read_text().count(patch.old) for file in files)
    assert places == 1, f"{patch.old!r} stands {places} times in *{patch.ending}, expected once"
    text = files[0].read_text()
    files[0].write_text(text.replace(patch.old, re.sub(r"\bFAULT\b", fault, patch.new)))


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def exports(
    folder: Path, config: ModelConfig, dtypes: Sequence[str] = contract.DTYPES
) -> dict[str, Path]:
    """A small language model, exported in each dtype: the folders by dtype."""
    torch.manual_seed(0)
    model = MambaLM(config)
    checkpoints.save(model, folder / "source")
    return {dtype: export(folder / "source", folder / dtype, dtype=dtype) for dtype in dtypes}


class DualMixer(nn.Module):
    """Mamba-2's two operators, with every input that they have."""

    def __init__(self, heads: int = 2, head_dim: int = 4) -> None:
        super().__init__()
        self.A, self.D, self.bias = (nn.Parameter(-torch.rand(heads) - 0.1) for _ in range(3))
        self.weight = nn.Parameter(torch.rand(heads * head_dim))

    def forward(
        self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, log_decay: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, state = state_space_dual(
            x, dt, self.A, B, C, self.D, x, log_decay, self.bias, state, dt_min=1e-3, dt_max=10.0
        )
        return gated_rms_norm(y.flatten(2), x.flatten(2), self.weight, groups=2), state


def export_dual(folder: Path) -> tuple[DualMixer, Path]:
    """A module with the nodes StateSpaceDualGatedWithDecay and GatedRmsNorm, and its export."""
    torch.manual_seed(0)
    module = DualMixer().eval()
    shapes = ((2, 5, 2, 4), (2, 5, 2), (2, 5, 1, 3), (2, 5, 1, 3), (2, 5, 2), (2, 2, 4, 3))
    inputs = tuple(-torch.rand(shape) for shape in shapes)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    dynamic = (*[{0: batch, 1: length}] * 5, {0: batch})
    return module, export(module, inputs, output=folder / "dual", dynamic_shapes=dynamic)


def failing(report: Report) -> list[str]:
    """Names of the checks that failed."""
    return [check.check for check in report.checks if not check.passed]
