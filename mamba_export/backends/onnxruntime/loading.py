"""Opening a graph in ONNX Runtime: version, providers, and errors in one clear line."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from mamba_export import given
from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.backends.onnxruntime.cuda_stream import GpuStream
from mamba_export.backends.onnxruntime.device import Device
from mamba_export.backends.onnxruntime.providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    MISSING_DTYPES,
    Provider,
    checked_providers,
    device_index,
    make_session,
    provider_name,
    session_device,
    with_defaults,
)
from mamba_export.errors import MissingKernelError, SessionError, shortened, whole_first_line
from mamba_export.folder.interface import Interface, difference
from mamba_export.folder.metadata import Metadata
from mamba_export.untrusted import utf8_name

THREADS_PER_CORE = 4
"""More only wait for each other: on two cores 500 took 35 s, and 2,000 never ended."""

MINIMUM_VERSION = (1, 20)
"""The oldest ONNX Runtime that the exported files were run with."""
_TYPE_NAMES = {
    "tensor(float)": "fp32",
    "tensor(float16)": "fp16",
    "tensor(bfloat16)": "bf16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def check_version() -> None:
    """Check that ONNX Runtime is new enough.

    Raises:
        SessionError: it is older than ``MINIMUM_VERSION``; names what was found and what is needed.
    """
    numbers = re.match(r"(\d+)\.(\d+)", ort.__version__)
    if numbers and tuple(map(int, numbers.groups())) < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        raise SessionError(
            f"ONNX Runtime {ort.__version__} is too old: {needed} or newer is needed "
            f"(pip install 'onnxruntime>={needed}')"
        )


@dataclass(frozen=True)
class LoadedModel:
    """An exported graph, open in ONNX Runtime.

    Args:
        session: ONNX Runtime's.
        metadata: of its folder.
        device: that the first provider computes on.
        native: whether our library is registered.
        gpu: the stream that the session computes on, where its steps can be captured in CUDA graphs.
    """

    session: ort.InferenceSession
    metadata: Metadata
    device: Device
    native: bool
    gpu: GpuStream | None


def open_session(
    metadata: Metadata,
    providers: Sequence[Provider] | None,
    threads: int | None,
    session_options: ort.SessionOptions | None,
    native: bool | None = None,
) -> LoadedModel:
    """Open the graph of an exported folder.

    Args:
        metadata: of the folder.
        providers: ONNX Runtime's names, best first; None for CUDA where it works, else the CPU.
        threads: of the CPU provider; None lets ONNX Runtime choose.
        session_options: used instead of ours.
        native: whether to register our custom-op library; None for where it is found and has kernels.

    Raises:
        SessionError: our library is wanted and absent or has no kernels for the provider, or does not
            load, a provider is unknown or does not start, or the graph cannot be loaded, or is not the one
            that the metadata describes.
    """
    if threads is not None and session_options is not None:
        raise SessionError("give threads or session_options, not both")
    if threads is not None:
        threads = _check_threads(threads)
    if session_options is not None and not isinstance(session_options, ort.SessionOptions):
        raise SessionError(
            f"session_options is {given.shown(session_options)}: give an onnxruntime.SessionOptions"
        )
    if native is not None:
        native = given.flag(native, "native", SessionError)
    if (
        native is False
        and session_options is not None
        and custom_ops.is_registered(session_options)
    ):
        raise SessionError("native is False, but session_options has our library registered")

    def make_options() -> ort.SessionOptions:
        return _options(threads) if session_options is None else session_options

    available = ort.get_available_providers()
    if providers is None:
        model = _open_best(metadata, make_options, CUDA_PROVIDER in available, native)
    else:
        model = _open_given(
            metadata, make_options(), checked_providers(providers), available, native
        )
    problem = difference(metadata, _interface(model.session))
    if problem:
        raise SessionError(problem)
    return model


def _interface(session: ort.InferenceSession) -> Interface:
    inputs, outputs = (
        {
            value.name: (_TYPE_NAMES.get(value.type, value.type), tuple(value.shape))
            for value in values
        }
        for values in (session.get_inputs(), session.get_outputs())
    )
    return Interface(inputs, outputs)


def _check_threads(threads: Any) -> int:
    """The user's number of threads. SessionError where it is none, or where they would only wait."""
    cores = os.cpu_count() or 1
    count = given.integer(threads, "threads", 1, error=SessionError)
    if count > THREADS_PER_CORE * cores:
        raise SessionError(
            f"threads is {given.shown(threads)}, expected at most {THREADS_PER_CORE * cores}, "
            f"{THREADS_PER_CORE} for each of this machine's {cores} cores"
        )
    return count


def _options(threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal: its errors reach the user once, as ours
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _register_native(
    options: ort.SessionOptions, provider: str, native: bool | None, device: int = 0
) -> None:
    """Register our library where ``native`` and the first provider say so."""
    if provider == CPU_PROVIDER:
        custom_ops.register(options, native)
    elif provider == CUDA_PROVIDER and native is not False:
        problem = custom_ops.cuda_problem(device)
        if not problem:
            custom_ops.register(options, native, for_cuda=True)
        elif native:
            raise SessionError(f"native=True: {problem}")
        # Else not: its CPU kernels would win over the function bodies, and every node would copy its tensors
        # to the host and back.
    elif native:
        raise SessionError(
            f"native=True: the native library has no kernels for {provider}: "
            "use the CPU or the CUDA provider, or leave native out"
        )


def _open_best(
    metadata: Metadata,
    make_options: Callable[[], ort.SessionOptions],
    has_cuda: bool,
    native: bool | None,
) -> LoadedModel:
    model = _try_cuda(metadata, make_options(), native) if has_cuda else None
    if model is not None:
        if native and not model.native:
            raise SessionError(f"native=True: {custom_ops.cuda_problem()}")
        return model
    options = make_options()
    _register_native(options, CPU_PROVIDER, native)
    return _open(metadata, options, [CPU_PROVIDER])


def _try_cuda(
    metadata: Metadata, options: ort.SessionOptions, native: bool | None
) -> LoadedModel | None:
    """The model on CUDA; None where a GPU is missing, or its driver, or the file does not load.

    Then the CPU runs it, or says what is wrong with the file.
    """
    with contextlib.suppress(SessionError):
        _register_native(options, CUDA_PROVIDER, None if native else native)
        model = _open(metadata, options, [CUDA_PROVIDER, CPU_PROVIDER])
        if model.device.name == "cuda":
            return model
    return None


def _open_given(
    metadata: Metadata,
    options: ort.SessionOptions,
    providers: Sequence[Provider],
    available: Sequence[str],
    native: bool | None,
) -> LoadedModel:
    names = [provider_name(provider) for provider in providers]
    if not names:
        raise SessionError("providers is empty: name at least one, or pass None")
    for name in names:
        if name not in available:
            hint = ": install onnxruntime-gpu" if name == CUDA_PROVIDER else ""
            raise SessionError(
                f"ONNX Runtime {ort.__version__} here has no {name} "
                f"(it has {', '.join(available)}){hint}"
            )
    _register_native(options, names[0], native, device_index(providers[0]))
    model = _open(metadata, options, providers)
    # Where a provider cannot start, ONNX Runtime goes on with the next one and only logs it.
    if model.session.get_providers()[0] != names[0]:
        raise SessionError(
            f"{names[0]} did not start: check the GPU, its driver and the CUDA and cuDNN libraries, "
            "or use the CPU provider"
        )
    return model


def _open(
    metadata: Metadata, options: ort.SessionOptions, providers: Sequence[Provider]
) -> LoadedModel:
    _check_weights(metadata, provider_name(providers[0]))
    all_providers = with_defaults(providers)
    native = custom_ops.is_registered(options)
    gpu = None
    if native and not isinstance(all_providers[0], str):
        name, given = all_providers[0]
        gpu = _stream_for(name, given)
        if gpu is not None:
            all_providers[0] = (name, {**given, **gpu.provider_options})
    if not native and metadata.model is None and provider_name(providers[0]) == CUDA_PROVIDER:
        # ONNX Runtime 1.31 on CUDA, where it inlines functions itself, reuses the memory of a size that the
        # graph still reads: seen in modules that reshape by sizes, which models of this package do not.
        options.enable_mem_reuse = False
    try:
        with utf8_name(metadata.model_path, error=SessionError) as name:
            session = make_session(name, options, all_providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise _explained(metadata, error, provider_name(providers[0])) from error
    device = session_device(session)
    if device.name != "cuda":
        gpu = None
    return LoadedModel(session, metadata, device, native, gpu)


def _check_weights(metadata: Metadata, provider: str) -> None:
    """Refuse packed weights that a provider would fail on only when it runs the file."""
    kind = None if metadata.weights is None else metadata.weights.kind
    missing = MISSING_DTYPES.get(provider, {})
    if kind in missing:
        raise SessionError(
            f"{metadata.model_path} has weights of {kind}, and ONNX Runtime's {missing[kind]}: run it on the "
            "CPU (--provider cpu), or export the model again with --weights int8"
        )


def _stream_for(provider: str, options: dict[str, Any]) -> GpuStream | None:
    """A stream for a session whose first provider this is; None where there is nothing to capture."""
    # A caller's own stream, or ONNX Runtime's own capture, is kept.
    taken = {"user_compute_stream", "has_user_compute_stream", "enable_cuda_graph"} & set(options)
    if provider != CUDA_PROVIDER or taken:
        return None
    device = device_index((provider, options))
    return None if custom_ops.cuda_problem(device) else GpuStream(device)


def _explained(metadata: Metadata, error: Exception, provider: str) -> SessionError:
    reason = plain_reason(error)
    found = f"ONNX Runtime {ort.__version__}"
    if provider == CPU_PROVIDER and metadata.dtype != "fp32" and "NOT_IMPLEMENTED" in str(error):
        known = metadata.dtype in MISSING_DTYPES[CPU_PROVIDER]
        return (MissingKernelError if known else SessionError)(
            f"{metadata.model_path} is {metadata.dtype}, which the CPU provider of {found} cannot "
            f"compute ({reason}): run it on a GPU (onnxruntime-gpu, --provider cuda), or export the "
            "model again with --dtype fp32"
        )
    return SessionError(
        f"{metadata.model_path} cannot be loaded by {found} on {provider}: {reason}"
    )


def plain_reason(error: Exception) -> str:
    """First line of an ONNX Runtime error, without its codes and places in the source."""
    line = re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", whole_first_line(error))
    return shortened(re.sub(r"\S+\.cc:\d+ \S+ ", "", line))
