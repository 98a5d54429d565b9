"""State space duality and its step on a GPU: ours and mamba_ssm's Triton kernels, each in its own form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bench import gpu, limits, peers
from bench.gpu_operators import AGREE, MAX_SETS, Inputs, native, time_call
from bench.limits import Ceilings
from bench.peers import dual as peer
from bench.rows import LIMIT, Row
from mamba_export.contract.operators import STATE_SPACE_DUAL
from mamba_export.models import TORCH_DTYPES

SHAPES = (
    (1, 24, 512),
    (1, 24, 2048),
    (1, 64, 2048),
    (1, 64, 8192),
    (1, 80, 8192),
    (8, 64, 2048),
    (64, 24, 512),
    (1, 24, 65536),
)
"""(batch, heads, length) at published models' sizes of a head."""
STEP_SHAPES = ((1, 24), (1, 80), (8, 80), (64, 80))
"""(batch, heads) of the step."""
HEAD_DIM, D_STATE = 64, 128


def dual_inputs(
    sets: int,
    batch: int,
    heads: int,
    length: int,
    dtype: str,
    state: torch.dtype = torch.float32,
    device: str = "cuda",
) -> list[Inputs]:
    """Random inputs of our operator, ``sets`` times, by its row's order; a sequence has no initial state, as
    mamba_ssm starts, and a step a random one."""
    sizes = {
        "batch": batch, "heads": heads, "length": length, "head_dim": HEAD_DIM,
        "d_state": D_STATE, "n_groups": 1, "d_skip": 1,
    }  # fmt: skip
    low = TORCH_DTYPES[dtype]
    dtypes = {"T": low, "R": state, "fp32": torch.float32}
    stacked: Inputs = {}
    for row in STATE_SPACE_DUAL.inputs:
        shape = (sets, *row.shape(sizes))
        absent = row.without is not None or (row.null_is_zeros and length > 1)
        stacked[row.name] = (
            None if absent else torch.randn(shape, device=device, dtype=dtypes[row.dtype])
        )
    stacked["A"].exp_().neg_()
    stacked["dt_bias"].sub_(4)  # softplus of it is about 0.02
    return [
        {name: None if tensor is None else tensor[index] for name, tensor in stacked.items()}
        for index in range(sets)
    ]


def _dual(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return torch.ops.mamba_export.state_space_dual(**inputs)


def dual_rows(
    ceilings: Ceilings,
    dtypes: Sequence[str],
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """Time sequences and steps.

    Args:
        ceilings: of the device.
        dtypes: of the sequences; steps run in the first alone, with states in it and in fp32.
        progress: called with what is being done.
    """
    for dtype in dtypes:
        for batch, heads, length in SHAPES:
            yield from _sequence_rows(ceilings, batch, heads, length, dtype, progress)
    for batch, heads in STEP_SHAPES:
        for state in (dtypes[0], "fp32"):
            yield from _step_rows(ceilings, batch, heads, dtypes[0], state, progress)


def _sequence_rows(
    ceilings: Ceilings,
    batch: int,
    heads: int,
    length: int,
    dtype: str,
    progress: Callable[[str], None],
) -> Iterator[Row]:
    sizes = {"dtype": dtype, "batch": batch, "heads": heads, "length": length}
    progress(f"dual {sizes}")
    limit = limits.dual(ceilings, batch, heads, length, HEAD_DIM, D_STATE, dtype)
    sets = gpu.sets_to_rotate(limits.dual_bytes(batch, heads, length, HEAD_DIM, D_STATE, dtype))
    inputs = dual_inputs(sets, batch, heads, length, dtype)
    yield time_call("dual", sizes, _dual, inputs)
    if peers.mamba_ssm_absent():
        yield Row.of("dual", sizes, peers.MAMBA_SSM, None, peers.mamba_ssm_absent())
    else:
        error = _difference(inputs[0])
        note = "" if error <= AGREE[dtype] else f"results differ by {error:.1e}: one is wrong"
        theirs = [peer.sequence_arguments(**one) for one in inputs]
        yield time_call("dual", sizes, peer.sequence, theirs, peers.MAMBA_SSM, note)
    yield Row.of("dual", sizes, LIMIT, limit.milliseconds, limit.bound)
    del inputs
    gpu.release_memory()


def _step_rows(
    ceilings: Ceilings,
    batch: int,
    heads: int,
    dtype: str,
    state: str,
    progress: Callable[[str], None],
) -> Iterator[Row]:
    sizes = {"dtype": dtype, "state": state, "batch": batch, "heads": heads}
    progress(f"dual step {sizes}")
    limit = limits.dual(ceilings, batch, heads, 1, HEAD_DIM, D_STATE, dtype, state)
    moved = limits.dual_bytes(batch, heads, 1, HEAD_DIM, D_STATE, dtype, state)
    sets = min(MAX_SETS, gpu.sets_to_rotate(moved))
    inputs = dual_inputs(sets, batch, heads, 1, dtype, TORCH_DTYPES[state])
    yield time_call("dual step", sizes, _dual, inputs)
    if peers.mamba_ssm_absent():
        yield Row.of("dual step", sizes, peers.MAMBA_SSM, None, peers.mamba_ssm_absent())
    else:
        theirs = [peer.step_arguments(**one) for one in inputs]
        yield time_call("dual step", sizes, peer.step, theirs, peers.MAMBA_SSM)
    yield Row.of("dual step", sizes, LIMIT, limit.milliseconds, limit.bound)
    del inputs
    gpu.release_memory()


def _difference(inputs: Inputs) -> float:
    """Relative error between our result and mamba_ssm's."""
    try:
        with torch.no_grad(), native():
            ours = _dual(inputs)[0].float()
    except (ValueError, RuntimeError):
        return 0.0  # there is nothing to compare; our row says why
    theirs = peer.sequence(peer.sequence_arguments(**inputs))[0].float()
    return float((ours - theirs).norm() / theirs.norm())
