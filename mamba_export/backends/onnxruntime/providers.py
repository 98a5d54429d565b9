"""ONNX Runtime's execution providers: their names, options and devices."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

from mamba_export import given
from mamba_export.backends.onnxruntime.device import Device
from mamba_export.errors import SessionError

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU_PROVIDER, "cuda": CUDA_PROVIDER}
"""By their names on the command line."""

MISSING_DTYPES = {
    # But for files whose products are all nodes of ours, where our kernels run them.
    CPU_PROVIDER: {"bf16": "CPU provider has no bf16 MatMul"},
    # Tried with 1.31: it loads the file, and fails when it runs it.
    CUDA_PROVIDER: {"fp8": "CUDA provider has no DequantizeLinear of fp8 in blocks"},
}
"""Of a file, or of its packed weights: what a provider cannot run as a whole model, and why."""

Provider = str | tuple[str, dict[str, Any]]


def checked_providers(providers: Any) -> list[Provider]:
    """Providers as a user gave them: a list of names and (name, options), or one name.

    Raises:
        SessionError: they are something else.
    """
    expected = "a list of names, or of (name, options)"
    listed = (
        [providers]
        if isinstance(providers, str)
        else given.listed(providers, "providers", expected, SessionError)
    )
    for provider in listed:
        is_pair = isinstance(provider, tuple) and len(provider) == 2
        name, options = (provider[0], provider[1]) if is_pair else (provider, {})
        if not isinstance(name, str) or not isinstance(options, dict):
            raise SessionError(
                f"provider {given.shown(provider)}: give its name, or (name, options) with a dict of options"
            )
        given.integer(_number(options.get("device_id", 0)), "device_id", 0, error=SessionError)
    return listed


def _number(value: Any) -> Any:
    """ONNX Runtime takes numbers in options as text, too."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def provider_name(provider: Provider) -> str:
    """ONNX Runtime's name of a provider."""
    return provider if isinstance(provider, str) else provider[0]


def describe() -> str:
    """This ONNX Runtime, whose package may have another name, for people: its version and its providers."""
    names = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    return f"{ort.__version__}, providers {', '.join(names)}"


def device_index(provider: Provider) -> int:
    """The number of the device that a provider's options name; 0 where they name none."""
    options = {} if isinstance(provider, str) else provider[1]
    return int(options.get("device_id", 0))


def with_defaults(providers: Sequence[Provider]) -> list[Provider]:
    """Providers with our options where none are given, and CUDA's libraries loaded where it is asked for.

    CUDA computes fp32 products in TF32 unless told otherwise, which costs three digits: fp32 means fp32.
    """
    if CUDA_PROVIDER in map(provider_name, providers):
        _preload_cuda()
    return [(CUDA_PROVIDER, {"use_tf32": "0"}) if p == CUDA_PROVIDER else p for p in providers]


@functools.cache
def _preload_cuda() -> None:
    """Find CUDA and cuDNN in the wheels that carry them; they need not be on the system's path."""
    preload = getattr(ort, "preload_dlls", None)  # since ONNX Runtime 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            preload()


_NORM = "SimplifiedLayerNormalization"
_NORM_FUSION = "SimplifiedLayerNormFusion"


def make_session(
    model: str | bytes, options: ort.SessionOptions, providers: Sequence[Provider], **more: Any
) -> ort.InferenceSession:
    """ONNX Runtime's session of a file or a serialised model; raises what ONNX Runtime raises.

    ONNX Runtime 1.31 fuses the norm of a bf16 residual stream into a node that its CUDA provider has no
    kernel for, and then refuses the graph. Without that fusion it takes it.
    """
    try:
        return ort.InferenceSession(model, options, providers=providers, **more)
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        if _NORM not in str(error):
            raise
    return ort.InferenceSession(
        model, options, providers=providers, disabled_optimizers=[_NORM_FUSION], **more
    )


def session_device(session: ort.InferenceSession) -> Device:
    """The device that a session's first provider computes on."""
    first = session.get_providers()[0]
    if first != CUDA_PROVIDER:
        return Device("cpu", 0)
    return Device("cuda", int(session.get_provider_options()[first].get("device_id", 0)))
