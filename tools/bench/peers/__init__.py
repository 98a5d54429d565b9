"""Other implementations as a benchmark sees them; each may be absent.

``operators`` has mamba_ssm's and causal_conv1d's kernels, ``models`` whole models, ``llama_cpp`` llama.cpp's.
"""

from __future__ import annotations

import functools
import importlib

import mamba_export.backends.onnxruntime  # noqa: F401  (switches its telemetry off before the import)
from mamba_export.errors import first_line
from mamba_export.versions import installed_versions

MAMBA_SSM = "mamba_ssm"
CAUSAL_CONV1D = "causal_conv1d"
TRANSFORMERS = "transformers"
LLAMA_CPP = "llama.cpp"


def _absent(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # its own imports fail in many ways where a part is missing
        reason = first_line(error)
        name = module.partition(".")[0]
        return (
            f"not installed ({reason})" if isinstance(error, ImportError) else f"{name}: {reason}"
        )
    return ""


@functools.cache
def mamba_ssm_absent() -> str:
    """Why mamba_ssm cannot be timed; empty where it can."""
    return _absent(MAMBA_SSM)


@functools.cache
def causal_conv1d_absent() -> str:
    """Why causal_conv1d cannot be timed; empty where it can."""
    return _absent(CAUSAL_CONV1D)


@functools.cache
def transformers_absent() -> str:
    """Why transformers cannot be timed; empty where it can."""
    return _absent(TRANSFORMERS)


@functools.cache
def llama_cpp_absent() -> str:
    """Why llama.cpp cannot be timed; empty where it can."""
    return _absent("llama_cpp")


def versions() -> dict[str, str]:
    """Versions of what a run on a GPU depends on, as the modules say: peers may come from a bare folder."""
    found = installed_versions(TRANSFORMERS)
    for module in ("mamba_export", "torch", "onnxruntime", MAMBA_SSM, CAUSAL_CONV1D):
        absent = _absent(module)
        found[module] = "not installed" if absent else importlib.import_module(module).__version__
    return found
