"""Which kernel the calls of an exported folder fall to, by shape, dtype and GPU.

The compiled library answers, from the function that picks the kernel for a call: no rule is repeated here.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_export import contract, cuda_queries
from mamba_export.contract import layout
from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.errors import SessionError
from mamba_export.libraries import CUSTOM_OPS, KERNELS, TRT_PLUGIN

if TYPE_CHECKING:
    from mamba_export.folder.calls import Call

FASTEST_FIRST = {
    "hopper": "tensor cores of sm_90",
    "mma": "tensor cores",
    "tile": "no tensor cores",
    "any": "no tensor cores, states in memory",
}
"""The kernels for many steps, and what they compute with."""

_PROMPT = 1024  # steps
_WIDEST = 128  # no kernel asks for channels of a head in larger multiples

Ask = Callable[[Mapping[str, int]], str]


def library() -> ctypes.CDLL | None:
    """The first of our libraries that can say which kernel a call falls to; None where none can."""
    for one in (CUSTOM_OPS, KERNELS, TRT_PLUGIN):
        path = one.path()
        functions = ctypes.CDLL(str(path)) if path else None
        if functions is not None and hasattr(functions, "mamba_state_space_dual_cuda_form"):
            cuda_queries.declare_cuda_queries(functions)
            return functions
    return None


def why_unknown() -> str:
    """One line about why no kernel can be told; empty where it can."""
    functions = library()
    if functions is None:
        return (
            KERNELS.why_absent() or "the compiled libraries are older: install mamba_export again"
        )
    return "" if architectures(functions) else cuda_queries.why_not_on_gpu(functions, 0)


def architectures(functions: ctypes.CDLL) -> dict[str, int]:
    """The GPUs that are asked about: this machine's, else every one that the library was built for."""
    if not cuda_queries.why_not_on_gpu(functions, 0):
        return {"GPU 0": 0}
    built = cuda_queries.cuda_architectures(functions).split()
    return {f"sm_{name}": int(name.removesuffix("+ptx")) for name in built}


def rows(folder: Path) -> Iterator[tuple[str, str]]:
    """For each different call that a choice of kernels exists for: what it is, and the kernels of each GPU.

    Raises:
        SessionError: the folder's graph cannot be read.
    """
    from mamba_export.folder.calls import calls
    from mamba_export.folder.graph import open_graph

    model = open_graph(folder / contract.MODEL_FILE, error=SessionError)
    functions = library()
    for call, count in calls(model).items():
        if functions and not hasattr(functions, f"{layout.stem(call.op)}_cuda_form"):
            continue  # it does not choose
        sizes = ", ".join(f"{name} {number}" for name, number in call.sizes)
        what = f"{call.name} {'/'.join(kind for _, kind in call.dtypes)} ({sizes}) x {count}"
        yield what, _on_gpus(call, functions) if functions else ""


def _on_gpus(call: Call, functions: ctypes.CDLL) -> str:
    form_of = getattr(functions, f"{layout.stem(call.op)}_cuda_form")
    form_of.argtypes, form_of.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_char_p
    own = [one.name for one in call.op.attributes if not one.derived]
    attributes = dict(zip(own, call.attributes, strict=True))
    there = {*(one.name for one in call.form.inputs), *call.form.packed}
    absent = {one.name for one in call.op.inputs} - there
    found: dict[str, list[str]] = {}
    for gpu, architecture in architectures(functions).items():

        def ask(changed: Mapping[str, int], architecture: int = architecture) -> str:
            sizes = {**dict(call.sizes), **changed}
            params = layout.pack_question(call.op, sizes, dict(call.dtypes), attributes, absent)
            return form_of(params, architecture).decode()

        found.setdefault(_described(ask, dict(call.sizes)), []).append(gpu)
    return "; ".join(f"{', '.join(gpus)}: {text}" for text, gpus in found.items())


def _described(ask: Ask, sizes: Mapping[str, int]) -> str:
    """The kernels for a token and for a prompt, and the nearest head_dim that has a faster one."""
    one, many = ask({BATCH: 1, LENGTH: 1}), ask({BATCH: 1, LENGTH: _PROMPT})
    text = f"{one} for a token, {many} ({FASTEST_FIRST.get(many, 'unknown')}) for a prompt"
    own = sizes["head_dim"]
    for head_dim in range(own + 1, math.ceil((own + 1) / _WIDEST) * _WIDEST + 1):
        wider = {"head_dim": head_dim}
        if sizes["d_skip"] == own:  # a skip of each channel
            wider["d_skip"] = head_dim
        other = ask({BATCH: 1, LENGTH: _PROMPT, **wider})
        if _rank(other) < _rank(many):
            return f"{text}, which head_dim {own} falls to: {head_dim} has {other}"
    return text


def _rank(form: str) -> int:
    names = list(FASTEST_FIRST)
    return names.index(form) if form in names else len(names)
