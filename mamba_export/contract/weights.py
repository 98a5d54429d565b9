"""How the matrices of a file's products are stored: in the file's dtype, or as codes of few bits in blocks."""

from __future__ import annotations

from dataclasses import dataclass

from mamba_export.contract.names import DEFAULT_OPSET

WEIGHT_KINDS = ("int4", "int8", "fp8")
"""Codes that a matrix may be stored in; fp8 is float8e4m3fn."""

BLOCKS = (32, 64, 128)
"""Lengths of a block: inputs of a product whose weights to one output share a scale."""

PACKED_OPSET = 21
"""The oldest version of standard ONNX whose DequantizeLinear takes blocks, and whose tensors hold 4 bits."""

NARROW = 256
"""A product of fewer inputs than this keeps its dtype where a block does not divide them: dt_proj, of which
there is little."""

METHODS = ("nearest", "gptq")
"""How codes are chosen: each weight's own nearest, or so that the outputs over a text change least."""

PARTS = CODES, SCALES, ZERO_POINTS = "codes", "scales", "zero_points"
"""The tensors that a packed matrix is stored as."""

ROW_PARTS = ROW_CODES, ROW_SCALES = "row_codes", "row_scales"
"""Those of an embedding: int8 codes (rows, width), and scales (rows, width / block)."""

EMBEDDING_KIND = "int8"
"""Codes of an embedding, whatever the products' are: tables of 4-bit numbers have no Gather."""


@dataclass(frozen=True)
class Weights:
    """How the matrices of the products are stored; what is computed with keeps the file's dtype.

    A weight is scale (code - zero point), a scale and a zero point of each block of ``block`` weights that one
    output takes from successive inputs. Scales have the file's dtype.

    Args:
        kind: of the codes, one of ``WEIGHT_KINDS``.
        block: length of a block, one of ``BLOCKS``.
        symmetric: no zero points: codes are signed, and code 0 is a weight of 0. False is for int4 and int8,
            and for runtimes other than TensorRT.
        head: whether the output projection of a language model is stored so as well. Where it is tied to the
            embeddings, these stay in the file beside it.
        embeddings: whether the embedding is stored in blocks too, as symmetric codes of ``EMBEDDING_KIND``.
        method: how codes were chosen, one of ``METHODS``; ``export`` sets it.
    """

    kind: str
    block: int = BLOCKS[0]
    symmetric: bool = True
    head: bool = True
    embeddings: bool = False
    method: str = METHODS[0]

    @property
    def bits(self) -> int:
        """Of a code."""
        return 8 if self.kind == "fp8" else int(self.kind.removeprefix("int"))

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest code; of fp8 the largest numbers."""
        if self.kind == "fp8":
            return -448, 448
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.symmetric else (0, 2 * half - 1)

    def __str__(self) -> str:
        zero_points = "" if self.symmetric else " with zero points"
        calibrated = "" if self.method == METHODS[0] else f", {self.method}"
        embeddings = f", embeddings {EMBEDDING_KIND}" if self.embeddings else ""
        return f"{self.kind} in blocks of {self.block}{zero_points}{embeddings}{calibrated}"


def packed_name(parameter: str, part: str) -> str:
    """Name in the file of a part of a packed matrix, of ``PARTS`` or ``ROW_PARTS``."""
    return f"{parameter}.{part}"


def default_opset(weights: Weights | None) -> int:
    """The version of standard ONNX that a file has where none is asked for."""
    return DEFAULT_OPSET if weights is None else PACKED_OPSET
