"""Round to nearest: the codes, scales and zero points of a matrix, and the matrix that they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from mamba_export.contract.weights import Weights

_AT_ONCE = 1 << 22
"""Weights that are packed at once, in fp32: more only take memory."""

_CODE_TYPES: dict[tuple[str, bool], type] = {
    ("int4", True): ml_dtypes.int4,
    ("int4", False): ml_dtypes.uint4,
    ("int8", True): np.int8,
    ("int8", False): np.uint8,
    ("fp8", True): ml_dtypes.float8_e4m3fn,
}


def code_dtype(weights: Weights) -> np.dtype:
    """numpy's dtype of the codes."""
    return np.dtype(_CODE_TYPES[weights.kind, weights.symmetric])


@dataclass(frozen=True)
class Packed:
    """A matrix (K, N) of K inputs and N outputs as ``DequantizeLinear`` takes it along axis 0.

    codes: (K, N), of ``code_dtype``. scales: (K / block, N), in the file's dtype.
    zero_points: (K / block, N), of the codes' dtype; None where the codes are symmetric.
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None


def blocks_of(array: np.ndarray, block: int) -> np.ndarray:
    """(K, N) as (K / block, block, N)."""
    return array.reshape(-1, block, array.shape[1])


def block_scales(
    blocks: np.ndarray, weights: Weights, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales and zero points that no weight of a block lies beyond.

    Scales are positive, as TensorRT demands, and what the file's dtype holds; 0 is always a code's value.

    Args:
        blocks: (blocks, block, N) fp32.
        weights: which codes.
        dtype: of the scales.

    Returns:
        (blocks, N) each: scales in ``dtype``, and zero points in fp32, None of symmetric codes.
    """
    low, high = weights.limits
    smallest = np.minimum(blocks.min(axis=1), 0)
    largest = np.maximum(blocks.max(axis=1), 0)
    if weights.symmetric:
        scales = np.maximum(smallest / low, largest / high)
    else:
        scales = (largest - smallest) / (high - low)
    # A block of zeros needs some scale; one below the normal numbers of 16 bits has few digits.
    scales = np.where(scales > 0, np.maximum(scales, np.finfo(dtype).tiny), 1)
    scales = scales.astype(dtype)
    if weights.symmetric:
        return scales, None
    return scales, np.clip(np.rint(low - smallest / scales.astype(np.float32)), low, high)


def nearest(
    values: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None, weights: Weights
) -> np.ndarray:
    """Codes in fp32 that stand for what is nearest to values; all of shapes that broadcast, fp32."""
    codes = values / scales
    if weights.kind == "fp8":
        return np.clip(codes, *weights.limits).astype(code_dtype(weights)).astype(np.float32)
    codes = np.rint(codes)
    if zero_points is not None:
        codes += zero_points
    return np.clip(codes, *weights.limits)


def pack(matrix: np.ndarray, weights: Weights, dtype: np.dtype) -> Packed:
    """A matrix with each weight at its nearest code.

    Args:
        matrix: (K, N), of any floating dtype; ``weights.block`` divides K.
        weights: which codes.
        dtype: of the scales.
    """
    columns = max(1, _AT_ONCE // len(matrix))
    parts = [
        _pack(matrix[:, start : start + columns], weights, dtype)
        for start in range(0, matrix.shape[1], columns)
    ]
    codes, scales, zero_points = zip(*parts, strict=True)
    return Packed(
        np.concatenate(codes, axis=1),
        np.concatenate(scales, axis=1),
        None if weights.symmetric else np.concatenate(zero_points, axis=1),
    )


def _pack(
    matrix: np.ndarray, weights: Weights, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes, scales and zero points of some columns."""
    blocks = blocks_of(matrix.astype(np.float32), weights.block)
    scales, zero_points = block_scales(blocks, weights, dtype)
    wide = scales.astype(np.float32)[:, None]
    middle = None if zero_points is None else zero_points[:, None]
    codes = nearest(blocks, wide, middle, weights).reshape(matrix.shape)
    kind = code_dtype(weights)
    return codes.astype(kind), scales, None if zero_points is None else zero_points.astype(kind)


def unpack(packed: Packed) -> np.ndarray:
    """(K, N) fp32: what the codes stand for, before ``DequantizeLinear`` rounds it to the scales' dtype."""
    scales = packed.scales.astype(np.float32)
    blocks = packed.codes.astype(np.float32).reshape(len(scales), -1, scales.shape[1])
    if packed.zero_points is not None:
        blocks = blocks - packed.zero_points.astype(np.float32)[:, None]
    return (blocks * scales[:, None]).reshape(packed.codes.shape)
