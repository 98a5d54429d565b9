"""The compiled CUDA kernels of the gated RMSNorm under PyTorch: parity with float64, the same bits every time.

MAMBA_EXPORT_KERNELS=build/libmamba_export_kernels.so pytest -m gpu tests/test_gated_rms_norm_cuda.py
"""

from __future__ import annotations

import pytest
import torch
from cases import bound, error
from test_gated_rms_norm import ORDERS, exact

from mamba_export.operators import gated_rms_norm, native
from mamba_export.operators.dispatch import BACKEND_VARIABLE

GPU = torch.device("cuda", 0)
WHY_NOT = native.why_not_on(GPU) if torch.cuda.is_available() else ""
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHAPES = [
    (1, 1, 1, 1), (2, 5, 1, 24), (3, 7, 4, 8), (1, 65, 3, 130),
    # More rows than a GPU has at once, of a warp, of a block and of the most vectors; and wider ones.
    (3, 5001, 2, 24), (1, 1101, 1, 1536), (2, 201, 1, 5120), (1, 151, 2, 8192), (2, 3, 1, 16_392),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing falls back to another implementation unseen."""
    monkeypatch.setenv(BACKEND_VARIABLE, "native")


@ORDERS
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("batch", "length", "groups", "width"), SHAPES)
def test_any_shape(
    batch: int, length: int, groups: int, width: int, dtype: torch.dtype, before: bool
) -> None:
    # The gate lies among other columns, as in what in_proj makes.
    columns = torch.randn(batch, length, 3 * groups * width).to(dtype)
    x, z = columns[..., : groups * width].contiguous(), columns[..., -groups * width :]
    weight = torch.randn(groups * width)

    def found() -> torch.Tensor:
        moved = columns.to(GPU)[..., -groups * width :]
        return gated_rms_norm(
            x.to(GPU), moved, weight.to(GPU), groups=groups, epsilon=1e-3, norm_before_gate=before
        )

    y = found()
    truth = exact(x, z, weight, groups, 1e-3, before)
    assert error(y.cpu(), truth) <= bound(truth, dtype)
    assert torch.equal(found(), y)
