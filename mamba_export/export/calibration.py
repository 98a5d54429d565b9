"""``--calibrate``: what the inputs of a model's products are over a text, for codes that fit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mamba_export import contract, given
from mamba_export.contract.program import Program
from mamba_export.contract.weights import Weights
from mamba_export.errors import ExportError
from mamba_export.export.torch_run import run_program
from mamba_export.folder.tokenizer import load_tokenizer
from mamba_export.packing import Packed, pack
from mamba_export.packing.gptq import pack_calibrated
from mamba_export.untrusted import is_there

MOST_TOKENS = 1 << 15
"""Tokens of a text that are read: more change little."""

_LENGTH = 512  # of the sequences that a text is cut into
_LEAST_TOKENS = 64
_MEMORY = 2 << 30
"""Bytes of squares that are summed up in one reading of the text; more products need more readings."""


def read_tokens(text: Any, folder: Path, program: Program) -> np.ndarray:
    """The tokens of a text as sequences (batch, length).

    Args:
        text: of a user.
        folder: holds the tokenizer.
        program: that is to read them.

    Raises:
        ExportError: there is no tokenizer or no language model, or the text is none or too short.
    """
    if not isinstance(text, str):
        raise ExportError(f"calibrate is {given.shown(text)}, expected a text")
    if program.tokens is None:
        raise ExportError("--calibrate needs a language model: leave it out")
    if not is_there(folder / contract.TOKENIZER_FILE, error=ExportError):
        raise ExportError(
            f"--calibrate needs a {contract.TOKENIZER_FILE}, and the model has none: add --tokenizer"
        )
    tokens = np.array(load_tokenizer(folder).encode(text)[:MOST_TOKENS], dtype=np.int64)
    if len(tokens) < _LEAST_TOKENS:
        raise ExportError(
            f"--calibrate: the text has {len(tokens)} tokens, and at least {_LEAST_TOKENS} are needed"
        )
    length = min(_LENGTH, len(tokens))
    return tokens[: len(tokens) // length * length].reshape(-1, length)


class Calibration:
    """Packs the matrices of a program by what its products read of a text.

    Args:
        program: a language model's.
        tokens: (batch, length).
        weights: which codes.
        say: called with a line at each reading.
    """

    def __init__(
        self, program: Program, tokens: np.ndarray, weights: Weights, say: Callable[[str], None]
    ) -> None:
        self._program = program
        self._tokens = tokens
        self._weights = weights
        self._say = say
        self._parameters = dict(program.module.named_parameters())
        self.order: list[str] = []
        """Names of the matrices, in the order in which they will be packed."""
        self._kept: dict[str, Tensor] = {}

    def pack(self, name: str, matrix: np.ndarray, dtype: np.dtype) -> Packed:
        """A matrix (K, N) by its parameter's name; its nearest codes where no product of PyTorch takes it."""
        if name in self._parameters and name not in self._kept:
            self._read(name)
        squares = self._kept.pop(name, None)
        if squares is None or not bool(squares.any()):
            return pack(matrix, self._weights, dtype)
        return pack_calibrated(matrix, squares, self._weights, dtype)

    def _read(self, first: str) -> None:
        """Read the text for as many products as there is room for, from this one's on."""
        wanted: dict[str, Tensor] = {}
        used = 0
        for name in self.order[self.order.index(first) :]:
            parameter = self._parameters.get(name)
            if parameter is None:
                continue
            size = 4 * parameter.shape[-1] ** 2
            if wanted and used + size > _MEMORY:
                break
            used += size
            wanted[name] = torch.zeros(parameter.shape[-1], parameter.shape[-1])
        self._say(f"reading the text for {len(wanted)} matrices")
        input_name = self._program.inputs[0].name
        with torch.no_grad(), _Squares(self._parameters, wanted):
            for sequence in self._tokens:
                run_program(self._program, {input_name: torch.from_numpy(sequence[None])})
        self._kept = wanted


class _Squares(TorchFunctionMode):
    """Context that sums up x xT of the inputs of PyTorch's products, by their matrix's parameter."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._sums = [(parameters[name], total) for name, total in sums.items()]

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Any call of PyTorch's."""
        if function is nn.functional.linear:
            for parameter, total in self._sums:
                if args[1] is parameter:
                    x = args[0].detach().reshape(-1, args[0].shape[-1]).float()
                    total.addmm_(x.T, x)
                    break
        return function(*args, **(kwargs or {}))
