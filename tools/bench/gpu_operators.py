"""Scan, step and convolution on a GPU: ours and mamba_ssm's kernels, each in its own layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench import gpu, limits, peers
from bench.limits import Ceilings
from bench.peers import operators as peer_operators
from bench.rows import LIMIT, OURS, Row
from mamba_export.errors import first_line
from mamba_export.models import TORCH_DTYPES
from mamba_export.operators.dispatch import BACKEND_VARIABLE

SHAPES = (
    (1, 1536, 512),
    (1, 1536, 2048),
    (1, 4096, 2048),
    (1, 5120, 8192),
    (8, 4096, 2048),
    (64, 1536, 512),
    (1, 1536, 65536),
)
"""(batch, d_inner, length) of the scan with 16 states, and of the convolution."""
WIDE_SHAPES = ((1, 1536, 2048), (8, 4096, 2048))
"""Shapes of the scan with 128 states."""
STEP_SHAPES = tuple((batch, d_inner) for d_inner in (1536, 5120) for batch in (1, 8, 64))
VISION_SHAPES = tuple(
    (64, channels, length) for channels in (384, 768, 1536) for length in (196, 784, 3136)
)
"""The scan of vision models: channels of four directions, patches of an image; no gate."""
VISION_STATES = (1, 8, 16)
_DIRECTIONS = 4
_D_CONV = 4
MAX_SETS = 1024
AGREE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
"""Relative error under which two implementations compute the same thing; mamba_ssm is built with fast
approximate functions. What is exact enough is the tests' business, not this one's."""

Inputs = dict[str, Any]


def scan_inputs(
    sets: int,
    batch: int,
    d_inner: int,
    length: int,
    d_state: int,
    dtype: str,
    device: str = "cuda",
    *,
    n_groups: int = 1,
    gated: bool = True,
) -> list[Inputs]:
    """Random inputs of a scan in our layout, ``sets`` times; the names are the operator's arguments."""
    low = TORCH_DTYPES[dtype]

    def rows(*shape: int, of: torch.dtype = low) -> Tensor:
        return torch.randn(sets, *shape, device=device, dtype=of)

    stacked = {
        "u": rows(batch, length, d_inner),
        "delta": rows(batch, length, d_inner),
        "A": rows(d_inner, d_state, of=torch.float32).exp_().neg_(),
        "B": rows(batch, length, n_groups, d_state),
        "C": rows(batch, length, n_groups, d_state),
        "D": rows(d_inner, of=torch.float32),
        "z": rows(batch, length, d_inner) if gated else None,
        "delta_bias": rows(d_inner, of=torch.float32).sub_(4),  # softplus of it is about 0.02
        "initial_state": rows(batch, d_inner, d_state, of=torch.float32),
    }
    return [
        {name: None if tensor is None else tensor[index] for name, tensor in stacked.items()}
        for index in range(sets)
    ]


def conv_inputs(
    sets: int, batch: int, channels: int, length: int, dtype: str, device: str = "cuda"
) -> list[Inputs]:
    """Random inputs of a causal convolution in our layout, ``sets`` times."""
    low = TORCH_DTYPES[dtype]
    stacked = {
        "x": torch.randn(sets, batch, length, channels, device=device, dtype=low),
        "weight": torch.randn(sets, channels, _D_CONV, device=device),
        "bias": torch.randn(sets, channels, device=device),
        "initial_state": torch.randn(sets, batch, channels, _D_CONV - 1, device=device, dtype=low),
    }
    return [{name: tensor[index] for name, tensor in stacked.items()} for index in range(sets)]


def _scan(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return torch.ops.mamba_export.selective_scan(**inputs)


def _conv(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return torch.ops.mamba_export.causal_conv1d(**inputs)


def operator_rows(
    ceilings: Ceilings,
    dtypes: Sequence[str],
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """Time scan, step and convolution.

    Args:
        ceilings: of the device.
        dtypes: of the scan; the step and the convolution run in the first alone.
        shapes: (batch, d_inner, length), of ``SHAPES``.
        progress: called with what is being done.
    """
    for dtype in dtypes:
        for batch, d_inner, length in shapes:
            yield from _scan_rows(ceilings, batch, d_inner, length, 16, dtype, progress)
        for batch, d_inner, length in WIDE_SHAPES:
            if (batch, d_inner, length) in shapes:
                yield from _scan_rows(ceilings, batch, d_inner, length, 128, dtype, progress)
    for batch, d_inner in STEP_SHAPES:
        yield from _step_rows(ceilings, batch, d_inner, dtypes[0], progress)
    for shape in shapes:
        yield from _conv_rows(ceilings, *shape, dtypes[0], progress)


def _scan_rows(
    ceilings: Ceilings,
    batch: int,
    d_inner: int,
    length: int,
    d_state: int,
    dtype: str,
    progress: Callable[[str], None],
    kind: str = "scan",
    **form: Any,
) -> Iterator[Row]:
    """Rows of one shape; ``form``: n_groups and gated, where they are not 1 and True."""
    sizes = {
        "dtype": dtype, "batch": batch, "d_inner": d_inner, "length": length, "d_state": d_state,
    }  # fmt: skip
    progress(f"{kind} {sizes}")
    moved = limits.scan_bytes(batch, d_inner, length, d_state, dtype, **form)
    sets = gpu.sets_to_rotate(moved)
    limit = limits.scan(ceilings, batch, d_inner, length, d_state, dtype, **form)
    inputs = scan_inputs(sets, batch, d_inner, length, d_state, dtype, **form)
    yield time_call(kind, sizes, _scan, inputs)
    if peers.mamba_ssm_absent():
        yield Row.of(kind, sizes, peers.MAMBA_SSM, None, peers.mamba_ssm_absent())
    else:
        error = _difference(inputs[0])
        theirs = [peer_operators.scan_arguments(**one) for one in inputs]
        del inputs
        note = "" if error <= AGREE[dtype] else f"results differ by {error:.1e}: one is wrong"
        yield time_call(kind, sizes, peer_operators.scan, theirs, peers.MAMBA_SSM, note)
        del theirs
    yield Row.of(kind, sizes, LIMIT, limit.milliseconds, limit.bound)
    gpu.release_memory()


def _difference(inputs: Inputs) -> float:
    """Relative error between our scan and mamba_ssm's, which starts from a state of zeros."""
    state = inputs["initial_state"]
    from_zero = {**inputs, "initial_state": torch.zeros_like(state)}
    try:
        with torch.no_grad(), native():
            ours = _scan(from_zero)[0].float()
    except (ValueError, RuntimeError):
        return 0.0  # there is nothing to compare; our row says why
    theirs = (
        peer_operators.scan(peer_operators.scan_arguments(**from_zero))[0].transpose(1, 2).float()
    )
    return float((ours - theirs).norm() / theirs.norm())


def vision_rows(
    ceilings: Ceilings, dtypes: Sequence[str], progress: Callable[[str], None] = lambda _: None
) -> Iterator[Row]:
    """Time the scan at the shapes of vision models; arguments as in ``operator_rows``."""
    for dtype in dtypes:
        for d_state in VISION_STATES:
            for batch, channels, length in VISION_SHAPES:
                yield from _scan_rows(
                    ceilings,
                    batch,
                    channels,
                    length,
                    d_state,
                    dtype,
                    progress,
                    kind="vision",
                    n_groups=_DIRECTIONS,
                    gated=False,
                )


def _step_rows(
    ceilings: Ceilings, batch: int, d_inner: int, dtype: str, progress: Callable[[str], None]
) -> Iterator[Row]:
    sizes = {"dtype": dtype, "batch": batch, "d_inner": d_inner, "d_state": 16}
    progress(f"step {sizes}")
    moved = limits.scan_bytes(batch, d_inner, 1, 16, dtype)
    sets = min(MAX_SETS, gpu.sets_to_rotate(moved))
    inputs = scan_inputs(sets, batch, d_inner, 1, 16, dtype)
    yield time_call("step", sizes, _scan, inputs)
    if peers.mamba_ssm_absent():
        yield Row.of("step", sizes, peers.MAMBA_SSM, None, peers.mamba_ssm_absent())
    else:
        theirs = [peer_operators.step_arguments(**one) for one in inputs]
        yield time_call("step", sizes, peer_operators.step, theirs, peers.MAMBA_SSM)
        del theirs
    limit = limits.scan(ceilings, batch, d_inner, 1, 16, dtype)
    yield Row.of("step", sizes, LIMIT, limit.milliseconds, limit.bound)
    del inputs
    gpu.release_memory()


def _conv_rows(
    ceilings: Ceilings,
    batch: int,
    channels: int,
    length: int,
    dtype: str,
    progress: Callable[[str], None],
) -> Iterator[Row]:
    sizes = {"dtype": dtype, "batch": batch, "channels": channels, "length": length}
    progress(f"convolution {sizes}")
    moved = limits.conv_bytes(batch, channels, length, _D_CONV, dtype)
    inputs = conv_inputs(gpu.sets_to_rotate(moved), batch, channels, length, dtype)
    yield time_call("convolution", sizes, _conv, inputs)
    if peers.causal_conv1d_absent():
        absent = peers.causal_conv1d_absent()
        yield Row.of("convolution", sizes, peers.CAUSAL_CONV1D, None, absent)
    else:
        theirs = [peer_operators.conv_arguments(**one) for one in inputs]
        yield time_call("convolution", sizes, peer_operators.conv, theirs, peers.CAUSAL_CONV1D)
        del theirs
    limit = limits.conv(ceilings, batch, channels, length, _D_CONV, dtype)
    yield Row.of("convolution", sizes, LIMIT, limit.milliseconds, limit.bound)
    del inputs
    gpu.release_memory()


def native() -> Any:
    """Context in which operators run the compiled kernels, or fail."""
    return mock.patch.dict(os.environ, {BACKEND_VARIABLE: "native"})


def time_call(
    kind: str,
    sizes: dict[str, Any],
    call: Callable[[Inputs], Any],
    inputs: Sequence[Inputs],
    implementation: str = OURS,
    note: str = "",
) -> Row:
    """A row with the kernels' time, or with the reason why there is none."""
    try:
        with native():
            milliseconds = gpu.kernel_milliseconds(lambda i: call(inputs[i]), len(inputs))
    except (ValueError, RuntimeError) as error:  # no kernels, out of memory
        reason = first_line(error)
        return Row.of(kind, sizes, implementation, None, reason)
    return Row.of(kind, sizes, implementation, milliseconds, note)
