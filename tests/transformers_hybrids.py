"""Tiny models of transformers' hybrids: the structure of published ones, random weights, awkward sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

VOCABULARY = 61
CHUNK = 16
"""Of transformers' own scan: lengths of the tests are on and off it."""

_COMMON = {
    "vocab_size": VOCABULARY,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


def jamba() -> Any:
    """Scan, attention with experts, scan, attention."""
    config = transformers.JambaConfig(
        **_COMMON,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=4,
        mamba_dt_rank=3,
        eos_token_id=[1, 2],
    )
    return transformers.JambaForCausalLM(config)


def zamba() -> Any:
    """Layers of heads, two of which share their attention."""
    config = transformers.ZambaConfig(
        **_COMMON,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=5,
        num_key_value_heads=4,
        n_mamba_heads=2,
        mamba_d_state=4,
        mamba_dt_rank=3,
        attn_layer_period=2,
        attn_layer_offset=1,
        attention_hidden_size=32,
        attention_head_dim=8,
        tie_word_embeddings=False,
        eos_token_id=1,
    )
    return transformers.ZambaForCausalLM(config)


def bamba() -> Any:
    """Mamba-2 with groups and limits of dt; attention whose keys are rotated in half of their width."""
    config = transformers.BambaConfig(
        **_COMMON,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_key_value_heads=2,
        attn_layer_indices=[1, 3],
        mamba_n_heads=4,
        mamba_d_head=12,
        mamba_n_groups=2,
        mamba_d_state=8,
        mamba_chunk_size=CHUNK,
        time_step_limit=(0.3, 0.6),
        eos_token_id=[1, 2],
    )
    return transformers.BambaForCausalLM(config)


def granite(**fields: Any) -> Any:
    """Granite 4: every layer with experts and a shared one, multipliers everywhere."""
    sizes = {"mamba_n_groups": 3, "mamba_chunk_size": CHUNK, **fields}
    config = transformers.GraniteMoeHybridConfig(
        **_COMMON,
        **sizes,
        hidden_size=24,
        intermediate_size=20,
        shared_intermediate_size=28,
        num_hidden_layers=4,
        num_key_value_heads=2,
        layer_types=["mamba", "attention", "mamba", "attention"],
        mamba_n_heads=6,
        mamba_d_head=8,
        mamba_d_state=8,
        num_local_experts=5,
        num_experts_per_tok=2,
        position_embedding_type="rope",
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.4,
        attention_multiplier=0.3,
        output_router_logits=True,
        eos_token_id=1,
    )
    return transformers.GraniteMoeHybridForCausalLM(config)


def nemotron() -> Any:
    """Nemotron-H: one kind a layer, experts of groups behind a latent projection, no positions."""
    config = transformers.NemotronHConfig(
        **_COMMON,
        hidden_size=24,
        intermediate_size=20,
        layers_block_type=["mamba", "mlp", "attention", "moe", "mamba", "attention"],
        num_key_value_heads=2,
        head_dim=10,
        ssm_state_size=8,
        mamba_num_heads=6,
        mamba_head_dim=10,
        n_groups=2,
        chunk_size=CHUNK,
        n_routed_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        moe_shared_expert_intermediate_size=14,
        moe_latent_size=16,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=1.7,
        eos_token_id=1,
    )
    return transformers.NemotronHForCausalLM(config)


def falcon(*, norm: bool = True, norm_before_gate: bool = False) -> Any:
    """Falcon-H1: attention and a scan of a width of its own side by side in every layer, multipliers."""
    config = transformers.FalconH1Config(
        **_COMMON,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_key_value_heads=2,
        mamba_d_ssm=40,
        mamba_n_heads=4,
        mamba_d_head=10,
        mamba_n_groups=2,
        mamba_d_state=8,
        mamba_chunk_size=CHUNK,
        mamba_rms_norm=norm,
        mamba_norm_before_gate=norm_before_gate,
        lm_head_multiplier=0.5,
        embedding_multiplier=3.0,
        mlp_multipliers=[0.7, 1.3],
        key_multiplier=0.6,
        attention_out_multiplier=0.8,
        attention_in_multiplier=1.2,
        ssm_multipliers=[0.5, 0.6, 0.7, 0.8, 0.9],
        ssm_in_multiplier=1.1,
        ssm_out_multiplier=0.9,
        eos_token_id=1,
    )
    return transformers.FalconH1ForCausalLM(config)


def falcon_without_norm() -> Any:
    return falcon(norm=False)


def falcon_norm_first() -> Any:
    return falcon(norm_before_gate=True)


def zamba2() -> Any:
    """Two shared blocks of attention over three layers, an adapter of each use, rotated keys."""
    config = transformers.Zamba2Config(
        **_COMMON,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "hybrid", "hybrid"],
        mamba_d_state=8,
        mamba_ngroups=2,
        n_mamba_heads=4,
        chunk_size=CHUNK,
        num_mem_blocks=2,
        use_shared_attention_adapter=True,
        adapter_rank=5,
        use_mem_rope=True,
        eos_token_id=1,
    )
    return transformers.Zamba2ForCausalLM(config)


MAMBA_1 = (jamba, zamba)
MAMBA_2 = (bamba, granite, nemotron, falcon, zamba2)
"""One of each model type."""


def make(builder: Callable[[], Any], seed: int = 0) -> Any:
    """A model with weights spread: an argmax means something, states last, no two channels are alike."""
    torch.manual_seed(seed)
    model = builder().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if parameter.dim() > 1 and last != "A_log":
                parameter.mul_(4)
            elif last == "A_log":
                parameter.uniform_(-4.0, 1.0)
            elif last == "dt_bias":
                parameter.uniform_(-3.0, 1.0)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.1)
    return model
