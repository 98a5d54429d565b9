"""What ``torch.ops.mamba_export.mamba_layer`` computes: its decomposition into the two operators.

It stands for a layer while a model is exported, as one node. Training and running take the module's own path.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_export.operators.mamba_layer.reference import mamba_layer_reference


def mamba_layer_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and results as in ``mamba_layer_reference``, through the operators' kernels."""
    ours = torch.ops.mamba_export
    return mamba_layer_reference(*args, conv=ours.causal_conv1d, scan=ours.selective_scan)
