"""Try one family in this process: build, export, run with our library and without, compare with PyTorch.

python -m model_families.trial NAME REPOSITORIES RESULT.json
"""

from __future__ import annotations

import copy
import json
import math
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import mamba_export
from bench import provenance
from mamba_export import contract
from mamba_export.errors import MambaExportError, MambaExportWarning, first_line
from mamba_export.operators.dispatch import forced
from mamba_export.verify.bounds import relative_error
from model_families import entries
from model_families.family import STAND_INS, Family, Trial

TOLERANCE = 1e-4
"""Largest difference over the largest magnitude of the truth: fp32 against float64 stays far below."""

INSTALL = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "pywt": "PyWavelets",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""Packages whose name is not that of their module."""

Result = dict[str, Any]


def tried(family: Family, repositories: Path) -> Result:
    """What happened to one family: plain values for the record."""
    folder = repositories / family.folder
    result: Result = {
        "family": family.name,
        "repository": family.repository,
        "commit": None,
        "class": family.cls,
        "status": "not there",
        "happened": "",
        "note": family.note,
    }
    if not folder.is_dir():
        return {**result, "happened": f"no folder {family.folder}"}
    start = time.perf_counter()
    result["commit"] = provenance.commit(folder)
    stage = "not built"
    try:
        torch.manual_seed(0)
        trial = family.build(folder)
        model = trial.model.eval()
        _leave_initial_constants(model)
        args = trial.inputs(**trial.traced)
        draws = _draws_at_random(model, args)
        result |= {
            "reduced": trial.reduced,
            "traced": _shapes(args),
            "dynamic": _dynamic(trial.axes),
        }
        stage = "not exported"
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / "out"
            with warnings.catch_warnings(record=True) as raised:
                warnings.simplefilter("always")
                mamba_export.export(model, args, output=out, dynamic_shapes=trial.axes)
            result["warnings"] = [
                str(one.message) for one in raised if issubclass(one.category, MambaExportWarning)
            ]
            result |= _contents(out)
            if draws:
                result |= {"status": "random", "happened": "two runs in PyTorch differ"}
                return result
            stage = "not run"
            result |= _compared(trial, out)
        fits = max(result["error"], result["error_without_library"]) <= TOLERANCE
        result["status"] = "right" if fits else "wrong"
    except Exception as error:
        traceback.print_exc()
        result |= {"status": stage, "happened": _said(error, folder)}
    finally:
        result |= {"seconds": round(time.perf_counter() - start), "stand_ins": list(STAND_INS)}
    return result


def _draws_at_random(model: nn.Module, args: Sequence[Tensor]) -> bool:
    with torch.no_grad():
        one, other = (_pytree.tree_leaves(model(*args)) for _ in range(2))
    return not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _leave_initial_constants(model: nn.Module) -> None:
    """Move every parameter that is one constant: a branch scaled by zero or 1e-6 would hide its errors."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            values = parameter.flatten()
            if values.numel() > 1 and parameter.is_floating_point() and (values == values[0]).all():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _shapes(args: Sequence[Tensor]) -> str:
    return ", ".join("x".join(map(str, one.shape)) for one in args)


def _dynamic(axes: Any) -> list[str]:
    """Names of the dynamic axes."""
    names = [getattr(one, "__name__", one) for one in _pytree.tree_leaves(axes)]
    return [name for name in dict.fromkeys(names) if isinstance(name, str)]


def _contents(out: Path) -> Result:
    graph = onnx.load(out / contract.MODEL_FILE, load_external_data=False).graph
    ours: dict[str, int] = {}
    reverse = 0
    for node in graph.node:
        if node.domain == contract.DOMAIN:
            ours[node.op_type] = ours.get(node.op_type, 0) + 1
            reverse += any(one.name == "reverse" and one.i for one in node.attribute)
    return {"nodes": len(graph.node), "ours": ours, "reversed": reverse}


def _compared(trial: Trial, out: Path) -> Result:
    """The worst relative errors over the traced and the swept sizes, and which truth they are of."""
    sessions = {
        "error": mamba_export.OrtSession(out, native=True),
        "error_without_library": mamba_export.OrtSession(out, native=False),
    }
    wide, why = _widened(trial)
    worst = dict.fromkeys(sessions, 0.0)
    swept = []
    for sizes in (trial.traced, *trial.swept):
        torch.manual_seed(sum(sizes.values()))
        args = trial.inputs(**sizes)
        truth = _truth(wide, args if why else _doubled(args))
        swept.append(_shapes(args))
        for name, session in sessions.items():
            got = _run(session, args)
            for one, other in zip(got, truth, strict=True):
                if one.shape != other.shape:
                    raise MambaExportError(f"shape {one.shape}, in PyTorch {other.shape}")
                error = relative_error(one, other)
                worst[name] = max(worst[name], error if math.isfinite(error) else math.inf)
    truth_said = f"fp32 ({why})" if why else "float64"
    return {**worst, "swept": swept[1:], "truth": truth_said}


def _widened(trial: Trial) -> tuple[nn.Module, str]:
    """The model in float64 and "", or the model in fp32 and why it is."""
    args = trial.inputs(**trial.traced)
    try:
        wide = copy.deepcopy(trial.model).double()
        _truth(wide, _doubled(args))
    except Exception as error:
        return trial.model, first_line(error)
    return wide, ""


def _doubled(args: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(one.double() if one.is_floating_point() else one for one in args)


def _truth(model: nn.Module, args: Sequence[Tensor]) -> list[np.ndarray]:
    with torch.no_grad(), forced("reference"):
        result = model(*args)
    return [one.numpy() for one in _pytree.tree_leaves(result) if isinstance(one, Tensor)]


def _run(session: Any, args: Sequence[Tensor]) -> list[np.ndarray]:
    names = [value.name for value in session.metadata.inputs]
    given = {name: one.numpy() for name, one in zip(names, args, strict=True)}
    outputs, _ = session.run(given)
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


def _said(error: Exception, folder: Path) -> str:
    """One line about a failure: what is missing, or the error and the repository's line that it arose at."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        if top in sys.modules:
            return f"needs another version of {top}: {first_line(error)}"
        if not (folder / top).exists():
            return f"needs the package {top}: pip install {INSTALL.get(top, top)}"
    line = first_line(error)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(folder)
    ]
    said = f"{type(error).__name__}: {line}"
    if own and not isinstance(error, MambaExportError):
        place = Path(own[-1].filename).relative_to(folder)
        said += f" ({place}, line {own[-1].lineno})"
    return said.replace(f"{folder}/", "").replace(str(folder.parent), "")


def main() -> None:
    name, repositories, out = sys.argv[1:]
    import mamba_export.adapters.mamba_ssm  # noqa: F401 before the model's own imports

    result = tried(entries.FAMILIES[name], Path(repositories).resolve())
    Path(out).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
