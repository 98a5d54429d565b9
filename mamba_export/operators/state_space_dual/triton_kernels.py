"""State space duality on NVIDIA GPUs in Triton, forward and backward: the training path.

The definition is ``reference.state_space_dual_reference``; the kernels stand in ``triton_forward`` and
``triton_backward``. The length is cut into chunks (arXiv:2405.21060, section 6, the block decomposition). With
``u_j = dt_j x_j``, ``e_k`` the exponent of a step's decay, and in a chunk

.. code-block:: text

    W_ij = exp(sum of e_k over j < k <= i), 0 where j > i         left at i of what j added
    s_i  = exp(sum of e_k over k <= i)    w_j = exp(sum of e_k over k > j)

    h'  = exp(sum of e_k) h + sum_j w_j u_j B_j^T                 the state behind, from the one before
    r_i = sum_j W_ij (C_i B_j) u_j + s_i h C_i + D x_i            y_i = r_i silu(z_i)

Forward: ``sums_kernel`` makes every chunk's sum over j at once, ``carry_kernel`` walks the chunks and leaves
the state before each, ``scan_kernel`` then makes the results of every chunk at once.

Backward, with ``q_i = dy_i silu(z_i)``, ``g`` the gradient of h' and ``G_ij = q_i u_j``, in the same three
parts, the walk going the other way:

.. code-block:: text

    dh   = exp(sum of e_k) g + sum_i s_i q_i C_i^T
    du_j = sum_i W_ij (C_i B_j) q_i + w_j g B_j                   dx_j = dt_j du_j + D q_j, ddt_j = x_j du_j
    dB_j = sum_i W_ij G_ij C_i + w_j g^T u_j                      dC_i = sum_j W_ij G_ij B_j + s_i h^T q_i
    de_k = sum of W_ij (C_i B_j) G_ij over j < k <= i + sum of s_i q_i h C_i over i >= k
           + sum of w_j u_j g B_j over j < k + exp(sum of e) <g, h>

Steps, exponents and their gradients are small tensors, and PyTorch's (``steps``). dB and dC are sums over the
heads of a group: a program takes some of them, torch adds up the parts. No atomics, so results are the same
from run to run.

A product is of fp32 tiles whatever the inputs' dtype is, for the state is fp32 and its error has no rounding to
hide behind: "ieee" for fp32 inputs; for 16 bits three products in TF32 ("tf32x3"), which are as exact to some
2^-21 and run on tensor cores.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from mamba_export.operators.state_space_dual.steps import steps_and_exponents
from mamba_export.operators.state_space_dual.triton_backward import groups_kernel, heads_kernel
from mamba_export.operators.state_space_dual.triton_forward import (
    carry_kernel,
    scan_kernel,
    sums_kernel,
)
from mamba_export.operators.triton_launch import on_device, unit_stride

CHUNK = 64
"""Most steps of a chunk; a shorter sequence is one chunk."""
LEAST_TILE = 16
"""Of each axis of a product."""
# Channels and states of a tile, and warps of a program, by kernel: what registers and 96 KiB of shared memory
# hold on every GPU since sm_80.
SUMS = {"p": 64, "n": 64, "warps": 4}
SCAN = {"p": 64, "n": 32, "warps": 8}
OF_HEADS = {"p": 32, "n": 32, "warps": 8}
OF_GROUPS = {"p": 32, "n": 64, "warps": 8}
CARRIED = 1024
"""Numbers of a state that a program carries from chunk to chunk."""
CHUNKS_AT_ONCE = 8
"""Chunks whose sums it loads together."""
BUSY_PROGRAMS = 264
"""Programs that keep a large GPU busy: two for each of an H100's multiprocessors."""


class _Call:
    """A call's sizes, steps and decays, and what is passed to every kernel."""

    def __init__(
        self, x: Tensor, B: Tensor, D: Tensor, z: Tensor | None, step: Tensor, exponent: Tensor, reverse: bool
    ) -> None:  # fmt: skip
        self.batch, self.length, self.heads, self.head_dim = x.shape
        self.groups, self.d_state = B.shape[2:]
        self.chunk = min(CHUNK, max(LEAST_TILE, triton.next_power_of_2(self.length)))
        self.n_chunks = triton.cdiv(self.length, self.chunk)
        self.step, self.exponent = self._walked(step, reverse), self._walked(exponent, reverse)
        shape = (self.batch, self.heads, self.n_chunks, self.chunk)
        self.decay = torch.exp(self.exponent.view(shape).sum(-1))
        self.D = D.float().repeat_interleave(self.head_dim // D.shape[1], 1).contiguous()
        self.programs = self.batch * self.heads * self.n_chunks
        self.sizes = (
            self.length, self.heads, self.heads // self.groups, self.n_chunks, self.head_dim, self.d_state,
        )  # fmt: skip
        self.form: dict[str, Any] = dict(
            HAS_Z=z is not None, REVERSE=reverse, CHUNK=self.chunk,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32x3",
        )  # fmt: skip

    def tiles(self, most: dict[str, int]) -> tuple[int, int, dict[str, int]]:
        """Tiles of a state along its channels and its states, and what a launch says of them."""
        p, n = (
            min(most[axis], max(LEAST_TILE, triton.next_power_of_2(size)))
            for axis, size in (("p", self.head_dim), ("n", self.d_state))
        )
        launch = dict(BLOCK_P=p, BLOCK_N=n, num_warps=most["warps"], num_stages=1)
        return triton.cdiv(self.head_dim, p), triton.cdiv(self.d_state, n), launch

    def _walked(self, tensor: Tensor, reverse: bool) -> Tensor:
        """(batch, length, heads) -> (batch, heads, n_chunks * chunk) in the walk's order, 0 behind its end."""
        tensor = (tensor.flip(1) if reverse else tensor).transpose(1, 2)
        return F.pad(tensor, (0, self.n_chunks * self.chunk - self.length)).contiguous()

    def of_steps(self, tensor: Tensor) -> Tensor:
        """The way back of ``_walked``."""
        tensor = tensor[..., : self.length].transpose(1, 2)
        return tensor.flip(1) if self.form["REVERSE"] else tensor

    def states(
        self, rows: Tensor, columns: Tensor, gate: Tensor, first: Tensor, *, adjoint: bool
    ) -> tuple[Tensor, Tensor]:
        """States before each chunk (of the backward walk their gradients behind it), and the last one."""
        size = self.head_dim * self.d_state
        sums = rows.new_empty((self.programs, size), dtype=torch.float32)
        last = torch.empty_like(first, memory_format=torch.contiguous_format)
        blocks_p, blocks_n, tile = self.tiles(SUMS)
        sums_kernel[(self.programs, blocks_p * blocks_n)](
            rows, columns, gate, self.step, self.exponent, sums,
            *rows.stride()[:3], *gate.stride()[:3], *columns.stride()[:3], *self.sizes,
            ADJOINT=adjoint, **self.form, **tile,
        )  # fmt: skip
        carry_kernel[(self.batch * self.heads, triton.cdiv(size, CARRIED))](
            sums, self.decay, first.contiguous(), last, self.n_chunks, size,
            ADJOINT=adjoint, BLOCK=CARRIED, GROUP=CHUNKS_AT_ONCE,
        )  # fmt: skip
        return sums, last


def state_space_dual_forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    log_decay: Tensor | None,
    dt_bias: Tensor,
    initial_state: Tensor,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """State space duality; arguments and results as in ``state_space_dual_reference``, any strides."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y, initial_state.clone()
    x, B, C = map(unit_stride, (x, B, C))
    gate = x if z is None else unit_stride(z)  # never read without a gate
    step, exponent = steps_and_exponents(
        dt.float(), A.float(), log_decay, dt_bias.float(), dt_softplus, dt_min, dt_max
    )
    with on_device(x):
        call = _Call(x, B, D, z, step, exponent, reverse)
        states, last_state = call.states(x, B, gate, initial_state, adjoint=False)
        blocks_p, _, tile = call.tiles(SCAN)
        scan_kernel[(call.programs, blocks_p)](
            x, B, C, call.D, gate, call.step, call.exponent, states, y,
            *x.stride()[:3], *gate.stride()[:3], *B.stride()[:3], *C.stride()[:3],
            *call.sizes, **call.form, **tile,
        )  # fmt: skip
    return y, last_state


def state_space_dual_backward(
    dy: Tensor,
    dlast_state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    log_decay: Tensor | None,
    dt_bias: Tensor,
    initial_state: Tensor,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    reverse: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of :func:`state_space_dual_forward`; nothing of the forward is kept but its inputs.

    Returns:
        Gradients of every tensor input in order, each with its input's shape and dtype; None where one is
        absent.
    """
    if x.numel() == 0:
        raise ValueError(f"no gradient of an empty scan: x {tuple(x.shape)}")
    dy, x, B, C = map(unit_stride, (dy, x, B, C))
    gate = x if z is None else unit_stride(z)
    dt_, A_, dt_bias_ = (t.detach().float().requires_grad_() for t in (dt, A, dt_bias))
    log_decay_ = None if log_decay is None else log_decay.detach().float().requires_grad_()
    with torch.enable_grad():
        step, exponent = steps_and_exponents(
            dt_, A_, log_decay_, dt_bias_, dt_softplus, dt_min, dt_max
        )

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    with on_device(x):
        call = _Call(x, B, D, z, step.detach(), exponent.detach(), reverse)
        states, _ = call.states(x, B, gate, initial_state, adjoint=False)
        adjoints, dinitial = call.states(dy, C, gate, dlast_state, adjoint=True)
        dx = empty(*x.shape, dtype=x.dtype)
        dz = None if z is None else empty(*x.shape, dtype=z.dtype)
        dstep, dexponent = empty(*call.step.shape), empty(*call.step.shape)
        dD = empty(call.batch, call.heads, call.n_chunks, call.head_dim)
        strides = (
            *dy.stride()[:3], *x.stride()[:3], *gate.stride()[:3], *B.stride()[:3], *C.stride()[:3],
        )  # fmt: skip
        _, _, tile = call.tiles(OF_HEADS)
        heads_kernel[(call.programs,)](
            dy, x, B, C, call.D, gate, call.step, call.exponent, states, adjoints,
            dx, gate if dz is None else dz, dstep, dexponent, dD,
            *strides, *call.sizes, **call.form, **tile,
        )  # fmt: skip

        # As many heads of a group in one program as leaves the GPU busy.
        _, blocks_n, tile = call.tiles(OF_GROUPS)
        whole = call.batch * call.groups * call.n_chunks * blocks_n
        a_group = call.heads // call.groups
        a_program = triton.cdiv(a_group, min(a_group, triton.cdiv(BUSY_PROGRAMS, whole)))
        blocks = triton.cdiv(a_group, a_program)
        dB, dC = (empty(blocks, *B.shape) for _ in range(2))
        length, *others = call.sizes
        groups_kernel[(call.batch * blocks * call.groups * call.n_chunks, blocks_n)](
            dy, x, B, C, gate, call.step, call.exponent, states, adjoints, dB, dC,
            *strides, length, call.batch, *others, blocks, a_program, **call.form, **tile,
        )  # fmt: skip

    ends = [dt_, A_, dt_bias_] + ([] if log_decay_ is None else [log_decay_])
    ddt, dA, dbias, *dlog = torch.autograd.grad(
        (step, exponent), ends, (call.of_steps(dstep), call.of_steps(dexponent))
    )
    dD = dD.sum((0, 2)).unflatten(1, (D.shape[1], -1)).sum(-1)
    given = (x, dt, A, B, C, D, z, log_decay, dt_bias, initial_state)
    gradients = (
        dx,
        ddt,
        dA,
        dB.sum(0),
        dC.sum(0),
        dD,
        dz,
        dlog[0] if dlog else None,
        dbias,
        dinitial,
    )
    return tuple(
        None if tensor is None or one is None else one.to(tensor.dtype)
        for tensor, one in zip(given, gradients, strict=True)
    )
