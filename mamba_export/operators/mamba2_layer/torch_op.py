"""What ``torch.ops.mamba_export.mamba2_layer`` computes: its decomposition into the operators that it calls.

It stands for a layer while a model is exported, as one node. Training and running take the module's own path.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_export.operators.mamba2_layer.reference import mamba2_layer_reference


def mamba2_layer_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and results as in ``mamba2_layer_reference``, through the operators' kernels."""
    ours = torch.ops.mamba_export
    return mamba2_layer_reference(
        *args, conv=ours.causal_conv1d, dual=ours.state_space_dual, norm=ours.gated_rms_norm
    )
