"""Which names of which modules the adapters provide: the one table of them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from mamba_export.adapters import (
    block,
    checkpoint_files,
    convolution,
    extensions,
    gated_norms,
    generation,
    inner,
    language_model,
    mamba,
    norms,
    scan,
    state_update,
)
from mamba_export.adapters.stand_ins import absent, absent_class


def _of_einops(*names: str) -> dict[str, Any]:
    """Functions of einops, where it is installed: models that use them bring it."""
    if importlib.util.find_spec("einops") is None:
        return {}
    einops = importlib.import_module("einops")
    return {name: getattr(einops, name) for name in names}


_MAMBA2 = "Mamba-2 comes with the operator of state space duality"
_INTERFACE = {
    "selective_scan_fn": scan.selective_scan_fn,
    "selective_scan_ref": scan.selective_scan_ref,
    "mamba_inner_fn": inner.mamba_inner_fn,
    "mamba_inner_ref": inner.mamba_inner_fn,
    "mamba_inner_fn_no_out_proj": inner.mamba_inner_fn_no_out_proj,
    "bimamba_inner_fn": inner.bimamba_inner_fn,
    "bimamba_inner_ref": inner.bimamba_inner_fn,
    **_of_einops("rearrange", "repeat"),  # which models take from here, too
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
_CORE = {"fwd": extensions.core_fwd, "bwd": extensions.core_bwd}

MODULES: dict[str, Mapping[str, Any]] = {
    "mamba_ssm": {
        "selective_scan_fn": scan.selective_scan_fn,
        "mamba_inner_fn": inner.mamba_inner_fn,
        "Mamba": mamba.Mamba,
        "Mamba2": absent_class("Mamba2", _MAMBA2),
        "MambaLMHeadModel": language_model.MambaLMHeadModel,
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
        **{
            name: absent(name, "call layernorm_fn or rmsnorm_fn, which have gradients")
            for name in ("_layer_norm_fwd", "_layer_norm_bwd")
        },
    },
    "mamba_ssm.ops.triton.selective_state_update": {
        "selective_state_update": state_update.selective_state_update,
        "selective_state_update_ref": state_update.selective_state_update,
    },
    "mamba_ssm.ops.triton.ssd_combined": {
        name: absent(name, _MAMBA2)
        for name in (
            "mamba_chunk_scan_combined",
            "mamba_split_conv1d_scan_combined",
            "_mamba_chunk_scan_combined_fwd",
            "_mamba_chunk_scan_combined_bwd",
        )
    },
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {"Mamba": mamba.Mamba, "Block": block.OldBlock},
    "mamba_ssm.modules.mamba2": {"Mamba2": absent_class("Mamba2", _MAMBA2)},
    "mamba_ssm.modules.mamba2_simple": {"Mamba2Simple": absent_class("Mamba2Simple", _MAMBA2)},
    "mamba_ssm.modules.block": {"Block": block.Block},
    "mamba_ssm.modules.mlp": {"GatedMLP": language_model.GatedMLP},
    "mamba_ssm.modules.mha": {"MHA": absent_class("MHA", "attention layers are not adapted")},
    "mamba_ssm.models": {},
    "mamba_ssm.models.config_mamba": {"MambaConfig": language_model.MambaConfig},
    "mamba_ssm.models.mixer_seq_simple": {
        "MambaLMHeadModel": language_model.MambaLMHeadModel,
        "MixerModel": language_model.MixerModel,
        "create_block": language_model.create_block,
        "_init_weights": language_model.init_weights,
    },
    "mamba_ssm.utils": {},
    "mamba_ssm.utils.generation": {
        "GenerationMixin": generation.GenerationMixin,
        "InferenceParams": generation.InferenceParams,
        "sample": generation.sample,
        **{
            name: absent(name, "call the model, or generate of an exported folder")
            for name in ("decode", "update_graph_cache")
        },
    },
    "mamba_ssm.utils.hf": {
        "load_config_hf": checkpoint_files.load_config_hf,
        "load_state_dict_hf": checkpoint_files.load_state_dict_hf,
    },
    **{
        name: {"selective_scan_cuda_core": SimpleNamespace(**_CORE)}
        for name in ("selective_scan_vmamba", "selective_scan_vmamba_pt202")  # EfficientVMamba
    },
    "selective_scan": {
        "selective_scan_fn": scan.ungated_scan_fn,
        "selective_scan_ref": scan.ungated_scan_ref,
    },
    "selective_scan_cuda": {"fwd": extensions.mamba_fwd, "bwd": extensions.mamba_bwd},
    "selective_scan_cuda_core": _CORE,
    "selective_scan_cuda_nrow": _CORE,
    "selective_scan_cuda_ndstate": {"fwd": extensions.ndstate_fwd, "bwd": extensions.ndstate_bwd},
    "selective_scan_cuda_oflex": {"fwd": extensions.oflex_fwd, "bwd": extensions.core_bwd},
    "causal_conv1d": {
        "causal_conv1d_fn": convolution.causal_conv1d_fn,
        "causal_conv1d_update": convolution.causal_conv1d_update,
    },
    "causal_conv1d.causal_conv1d_interface": {
        "causal_conv1d_fn": convolution.causal_conv1d_fn,
        "causal_conv1d_ref": convolution.causal_conv1d_fn,
        "causal_conv1d_update": convolution.causal_conv1d_update,
        "causal_conv1d_update_ref": convolution.causal_conv1d_update,
    },
    "causal_conv1d_cuda": {
        "causal_conv1d_fwd": convolution.compiled_fwd,
        "causal_conv1d_bwd": convolution.compiled_bwd,
        "causal_conv1d_update": convolution.compiled_update,
    },
}
"""A module's full name, and what is in it. A module stands after its parent."""
