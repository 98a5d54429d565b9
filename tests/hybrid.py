"""A module with both kinds of state: cached causal attention beside a selective scan."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import mamba_export
import mamba_export.operators  # registers the torch operators
from mamba_export import State
from mamba_export.contract.program import Program, Tokens, Value
from mamba_export.contract.program import State as ProgramState

WIDTH, HEADS, D_STATE, TAPS = 16, 2, 4, 3


class Hybrid(nn.Module):
    """x (batch, length, WIDTH) and four states -> y of the same shape, and the states after it.

    keys and values (batch, HEADS, past, WIDTH // HEADS) grow; the convolution's and the scan's do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.conv_weight = nn.Parameter(0.5 * torch.randn(WIDTH, TAPS))
        self.conv_bias = nn.Parameter(torch.randn(WIDTH))
        self.delta = nn.Linear(WIDTH, WIDTH, bias=False)
        self.delta_bias = nn.Parameter(torch.randn(WIDTH))
        self.B_C = nn.Linear(WIDTH, 2 * D_STATE)
        self.A_log = nn.Parameter(torch.randn(WIDTH, D_STATE))
        self.D = nn.Parameter(torch.randn(WIDTH))

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, conv: Tensor, scan: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        attended, keys, values = self.attend(x, keys, values)
        u, conv = torch.ops.mamba_export.causal_conv1d(
            x, self.conv_weight, self.conv_bias, conv, True, False
        )
        B, C = self.B_C(u).unsqueeze(2).chunk(2, dim=-1)
        scanned, scan = torch.ops.mamba_export.selective_scan(
            u, self.delta(u), -torch.exp(self.A_log), B, C, self.D, None, self.delta_bias, scan, True, False
        )  # fmt: skip
        return x + attended + scanned, keys, values, conv, scan

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)

        q, k, v = (heads(t) for t in self.qkv(x).chunk(3, dim=-1))
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        length, total = x.shape[1], keys.shape[2]
        columns = torch.arange(total, device=x.device)
        rows = torch.arange(length, device=x.device)[:, None] + (total - length)
        scores = q @ keys.transpose(2, 3) * (WIDTH // HEADS) ** -0.5
        # A number that fp16 holds: softmax makes 0 of it.
        scores = torch.where(columns <= rows, scores, torch.full_like(scores, -30000.0))
        y = torch.softmax(scores, -1) @ values
        return self.out(y.transpose(1, 2).flatten(2)), keys, values


def states(batch: int, past: int = 5) -> tuple[Tensor, ...]:
    """Example states, the growing ones of some length."""
    cache = torch.zeros(batch, HEADS, past, WIDTH // HEADS)
    return (
        cache,
        cache.clone(),
        torch.zeros(batch, WIDTH, TAPS - 1),
        torch.zeros(batch, WIDTH, D_STATE),
    )


def truth(module: Hybrid, x: np.ndarray) -> dict[str, np.ndarray]:
    """The whole sequence at once in float64, in numpy alone, step by step as the formulas say.

    Returns:
        y, and the four states after the last step.
    """
    w = {name: p.detach().double().numpy() for name, p in module.named_parameters()}
    x = x.astype(np.float64)
    batch, length, _ = x.shape
    qkv = x @ w["qkv.weight"].T + w["qkv.bias"]
    split = qkv.reshape(batch, length, 3, HEADS, WIDTH // HEADS).transpose(2, 0, 3, 1, 4)
    q, k, v = split
    attended = np.zeros((batch, HEADS, length, WIDTH // HEADS))
    for t in range(length):
        scores = np.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, : t + 1]) * (WIDTH // HEADS) ** -0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended[:, :, t] = np.einsum("bhs,bhsd->bhd", weights, v[:, :, : t + 1])
    joined = attended.transpose(0, 2, 1, 3).reshape(batch, length, WIDTH)
    y = x + joined @ w["out.weight"].T + w["out.bias"]

    padded = np.concatenate([np.zeros((batch, TAPS - 1, WIDTH)), x], axis=1)
    h = np.zeros((batch, WIDTH, D_STATE))
    for t in range(length):
        window = padded[:, t : t + TAPS]  # (batch, TAPS, WIDTH)
        u = np.einsum("bkc,ck->bc", window, w["conv_weight"]) + w["conv_bias"]
        u = u / (1 + np.exp(-u))
        step = np.log1p(np.exp(u @ w["delta.weight"].T + w["delta_bias"]))
        B, C = np.split(u @ w["B_C.weight"].T + w["B_C.bias"], 2, axis=-1)
        decay = np.exp(step[..., None] * -np.exp(w["A_log"]))
        h = decay * h + (step * u)[..., None] * B[:, None]
        y[:, t] += np.einsum("bdn,bn->bd", h, C) + w["D"] * u
    conv = padded[:, padded.shape[1] - (TAPS - 1) :].transpose(0, 2, 1)
    return {"y": y, "keys": k, "values": v, "conv": conv, "scan": h}


SHAPES = {
    "x": {0: "batch", 1: "length"},
    **{name: {0: "batch"} for name in ("keys", "values", "conv", "scan")},
}
STATES = [
    State("keys", 1, grows=2),
    State("values", 2, grows=2),
    State("conv", 3),
    State("scan", 4),
]


def export_hybrid(module: Hybrid, out: Path) -> Path:
    """An exported folder; the examples of batch and length 1 with an empty cache may leave no constant."""
    dtype = module.out.weight.dtype
    x, keys, values, conv, scan = (torch.randn(1, 1, WIDTH), *states(1, past=0))
    args = (x.to(dtype), keys.to(dtype), values.to(dtype), conv.to(dtype), scan)
    return mamba_export.export(module, args, output=out, dynamic_shapes=SHAPES, states=STATES)


def in_fp16(module: Hybrid) -> Hybrid:
    """A copy whose matrices are fp16; what acts on a channel alone stays fp32, as the operators take it."""
    duplicate = copy.deepcopy(module)
    for name in ("qkv", "out", "delta", "B_C"):
        getattr(duplicate, name).half()
    return duplicate


class Writer(nn.Module):
    """A language model around it: token ids -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(20, WIDTH)
        self.hybrid = Hybrid()
        with torch.no_grad():
            self.embeddings.weight.mul_(3)

    def forward(self, ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        y, *present = self.hybrid(self.embeddings(ids), *past)
        return (y @ self.embeddings.weight.T, *present)


def writer_program(writer: Writer) -> Program:
    """The language model as a program, made by hand."""
    head = WIDTH // HEADS
    cache, batch = ("batch", HEADS, "past", head), "batch"
    return Program(
        writer,
        (Value("input_ids", "int64", ("batch", "length")),),
        (Value("logits", "fp32", ("batch", "length", 20)),),
        (
            ProgramState.of("keys", "past.keys", "present.keys", "fp32", cache, grows=2),
            ProgramState.of("values", "past.values", "present.values", "fp32", cache, grows=2),
            ProgramState.of("conv", "past.conv", "present.conv", "fp32", (batch, WIDTH, TAPS - 1)),
            ProgramState.of("scan", "past.scan", "present.scan", "fp32", (batch, WIDTH, D_STATE)),
        ),
        Tokens(vocab_size=20),
    )
