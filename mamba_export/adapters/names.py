"""Which names of which modules the adapters provide: the one table of them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from mamba_export.adapters import (
    attention,
    block,
    checkpoint_files,
    convolution,
    extensions,
    gated_norms,
    generation,
    inner,
    language_model,
    mamba,
    mamba2,
    mamba2_simple,
    norms,
    scan,
    split_projection,
    ssd_minimal,
    state_space,
    state_space_kernels,
    state_update,
)
from mamba_export.adapters.stand_ins import absent, absent_class


def _of_einops(*names: str) -> dict[str, Any]:
    """Functions of einops, where it is installed: models that use them bring it."""
    if importlib.util.find_spec("einops") is None:
        return {}
    einops = importlib.import_module("einops")
    return {name: getattr(einops, name) for name in names}


_PART_OF_A_SCAN = "call mamba_chunk_scan_combined, which has gradients"
_KERNELS = {
    "ssd_chunk_state": (
        "_chunk_cumsum_fwd", "_chunk_cumsum_bwd", "_chunk_state_fwd", "_chunk_state_bwd_dx",
        "_chunk_state_bwd_db", "_chunk_state_bwd_ddAcs_stable", "chunk_state", "chunk_state_ref",
        "chunk_state_varlen",
    ),
    "ssd_state_passing": (
        "_state_passing_fwd", "_state_passing_bwd", "state_passing", "state_passing_ref",
    ),
    "k_activations": ("_swiglu_fwd", "_swiglu_bwd", "swiglu"),
    "ssd_bmm": ("_bmm_chunk_fwd", "_bmm_chunk_bwd"),
    "ssd_chunk_scan": (
        "_chunk_scan_fwd", "_chunk_scan_bwd_dz", "_chunk_scan_bwd_dstates", "_chunk_scan_bwd_dC",
        "_chunk_scan_bwd_dcb", "_chunk_scan_bwd_ddAcs_stable", "_chunk_scan_bwd_ddAcs_unstable",
        "_chunk_scan_bwd_ddAcs_prev",
        "chunk_scan", "chunk_scan_ref",
    ),
}  # fmt: skip
"""Parts of mamba_ssm's scan of heads and fused mixer, by their modules: vendored copies of it import them."""
_SSD_PARTS = {
    module: {name: absent(name, _PART_OF_A_SCAN) for name in names}
    for module, names in _KERNELS.items()
}
_SSD_COMBINED = {
    **{name: stand_in for part in _SSD_PARTS.values() for name, stand_in in part.items()},
    **{
        name: absent(name, _PART_OF_A_SCAN)
        for name in (
            "ssd_selective_scan",
            "selective_scan_bwd",
            "mamba_conv1d_scan_ref",
            "mamba_split_conv1d_scan_ref",
        )
    },
    "mamba_chunk_scan_combined": state_space.mamba_chunk_scan_combined,
    "mamba_chunk_scan": state_space.mamba_chunk_scan,
    "ssd_chunk_scan_combined_ref": state_space.ssd_chunk_scan_combined_ref,
    "mamba_split_conv1d_scan_combined": split_projection.mamba_split_conv1d_scan_combined,
    "_mamba_chunk_scan_combined_fwd": state_space_kernels.chunk_scan_fwd,
    "_mamba_chunk_scan_combined_bwd": state_space_kernels.chunk_scan_bwd,
}
_PARALLEL = "a model is exported from one process"
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
        "Mamba2": mamba2.Mamba2,
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
        "rms_norm_ref": gated_norms.rms_norm_ref,
        "layernorm_fn": gated_norms.layernorm_fn,
        "_layer_norm_fwd": gated_norms.layer_norm_fwd,
        "_layer_norm_bwd": gated_norms.layer_norm_bwd,
    },
    "mamba_ssm.ops.triton.selective_state_update": {
        "selective_state_update": state_update.selective_state_update,
        "selective_state_update_ref": state_update.selective_state_update,
    },
    "mamba_ssm.ops.triton.ssd_combined": _SSD_COMBINED,
    **{f"mamba_ssm.ops.triton.{module}": names for module, names in _SSD_PARTS.items()},
    "mamba_ssm.distributed": {},
    "mamba_ssm.distributed.tensor_parallel": {
        name: absent_class(name, _PARALLEL)
        for name in ("ColumnParallelLinear", "RowParallelLinear")
    },
    "mamba_ssm.distributed.distributed_utils": {
        name: absent(name, _PARALLEL) for name in ("all_reduce", "reduce_scatter")
    },
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {"Mamba": mamba.Mamba, "Block": block.OldBlock},
    "mamba_ssm.modules.mamba2": {"Mamba2": mamba2.Mamba2},
    "mamba_ssm.modules.mamba2_simple": {"Mamba2Simple": mamba2_simple.Mamba2Simple},
    "mamba_ssm.modules.ssd_minimal": {
        "segsum": ssd_minimal.segsum,
        "segsum_unstable": ssd_minimal.segsum,
        "ssd_minimal_discrete": ssd_minimal.ssd_minimal_discrete,
    },
    "mamba_ssm.modules.block": {"Block": block.Block},
    "mamba_ssm.modules.mlp": {"GatedMLP": language_model.GatedMLP},
    "mamba_ssm.modules.mha": {"MHA": attention.MHA},
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
