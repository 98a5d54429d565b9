"""Which names of which modules the adapters provide: the one table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mamba_export.adapters import (
    block,
    convolution,
    extensions,
    gated_norms,
    inner,
    mamba,
    norms,
    scan,
    state_update,
)

_INTERFACE = {
    "selective_scan_fn": scan.selective_scan_fn,
    "selective_scan_ref": scan.selective_scan_ref,
    "mamba_inner_fn": inner.mamba_inner_fn,
    "mamba_inner_ref": inner.mamba_inner_fn,
    "mamba_inner_fn_no_out_proj": inner.mamba_inner_fn_no_out_proj,
    "bimamba_inner_fn": inner.bimamba_inner_fn,
    "bimamba_inner_ref": inner.bimamba_inner_fn,
}
_OLD_NORMS = {
    "RMSNorm": norms.RMSNorm,
    "layer_norm_fn": norms.old_layer_norm_fn,
    "rms_norm_fn": norms.old_rms_norm_fn,
}
_NORMS = {
    "RMSNorm": norms.RMSNorm,
    "layer_norm_fn": norms.layer_norm_fn,
    "rms_norm_fn": norms.rms_norm_fn,
}

MODULES: dict[str, Mapping[str, Any]] = {
    "mamba_ssm": {
        "selective_scan_fn": scan.selective_scan_fn,
        "mamba_inner_fn": inner.mamba_inner_fn,
        "Mamba": mamba.Mamba,
    },
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": _INTERFACE,
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layernorm": _OLD_NORMS,
    "mamba_ssm.ops.triton.layer_norm": _NORMS,
    "mamba_ssm.ops.triton.layernorm_gated": {
        "RMSNorm": gated_norms.RMSNorm,
        "LayerNorm": gated_norms.LayerNorm,
        "rmsnorm_fn": gated_norms.rmsnorm_fn,
        "layernorm_fn": gated_norms.layernorm_fn,
    },
    "mamba_ssm.ops.triton.selective_state_update": {
        "selective_state_update": state_update.selective_state_update,
        "selective_state_update_ref": state_update.selective_state_update,
    },
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {"Mamba": mamba.Mamba, "Block": block.OldBlock},
    "mamba_ssm.modules.block": {"Block": block.Block},
    "selective_scan_cuda": {"fwd": extensions.mamba_fwd},
    "selective_scan_cuda_core": {"fwd": extensions.core_fwd},
    "selective_scan_cuda_nrow": {"fwd": extensions.core_fwd},
    "selective_scan_cuda_oflex": {"fwd": extensions.oflex_fwd},
    "causal_conv1d": {
        "causal_conv1d_fn": convolution.causal_conv1d_fn,
        "causal_conv1d_update": convolution.causal_conv1d_update,
    },
}
"""A module's full name, and what is in it. A module stands after its parent."""
