"""transformers' Mamba2: Mamba-Codestral, and the state-spaces models as they were converted."""

from __future__ import annotations

from typing import Any

import torch

from mamba_export.errors import CheckpointError
from mamba_export.fields import Integer
from mamba_export.models import Mamba2Config, ModelConfig
from mamba_export.models.checkpoints.family import MAMBA2, Description, Family
from mamba_export.models.checkpoints.fields import UNLIMITED, ConfigFields
from mamba_export.models.checkpoints.naming import our_name
from mamba_export.models.checkpoints.transformers_mamba import (
    check_shared,
    file_name,
    shared_fields,
)


def _recognises(fields: ConfigFields) -> bool:
    return fields.get("model_type") == MAMBA2 and not fields.has_original_names


def _read(fields: ConfigFields) -> Description:
    """Fields and defaults of transformers' Mamba2Config.

    As there, ``norm_before_gate``, ``rms_norm`` and ``intermediate_size``, which published files hold, are not
    read: the norm is always there, behind the gate, and the width is expand times hidden_size.
    """
    check_shared(fields)
    fields.check_chunk_size()
    d_model = fields.of("d_model", "hidden_size", 4096)
    config = Mamba2Config(
        d_model=d_model,
        n_layer=fields.of("n_layer", "num_hidden_layers", 64),
        vocab_size=fields.vocab_size(32768),
        d_state=fields.of("d_state", "state_size", 128),
        d_conv=fields.of("d_conv", "conv_kernel", 4),
        head_dim=fields.of("head_dim", "head_dim", 64),
        n_groups=fields.of("n_groups", "n_groups", 8),
        bias=fields.of("bias", "use_bias", False),
        conv_bias=fields.of("conv_bias", "use_conv_bias", True),
        norm_epsilon=fields.of("norm_epsilon", "layer_norm_epsilon", 1e-5),
        tie_embeddings=fields.of("tie_embeddings", "tie_word_embeddings", False),
        residual_in_fp32=fields.of("residual_in_fp32", "residual_in_fp32", True),
        dt_min=fields.of("dt_min", "time_step_min", 1e-3),
        dt_max=fields.of("dt_max", "time_step_max", 1e-1),
        dt_floor=fields.of("dt_floor", "time_step_floor", 1e-4),
        eos_token_id=fields.eos(),
        **fields.dt_limits("time_step_limit"),
        **fields.expansion(d_model),
    )
    heads = fields.optional("num_heads", Integer(1), 128)
    if heads != config.heads:
        fields.refuse(
            "num_heads",
            f": hidden_size {d_model} times expand is {config.inner}, {config.heads} heads of "
            f"head_dim {config.head_dim}",
        )
    return Description(
        config,
        MAMBA2,
        bos_token_id=fields.token("bos_token_id"),
        pad_token_id=fields.token("pad_token_id"),
    )


def _write(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any] | None:
    """config.json of transformers' format, of a Mamba2Config."""
    if not isinstance(config, Mamba2Config):
        return None
    lacks = {
        "a block without its gated norm": not config.gated_norm,
        "a norm before the gate": config.norm_before_gate,
        "a D of each channel": config.skip_per_channel,
        "a width that is no multiple of hidden_size": config.inner % config.d_model != 0,
    }
    for what, is_so in lacks.items():
        if is_so:
            raise CheckpointError(
                f"transformers' Mamba2 has no place for {what}: it cannot be saved"
            )
    fields: dict[str, Any] = {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": MAMBA2,
        **shared_fields(config, dtype),
        "expand": config.inner // config.d_model,
        "head_dim": config.head_dim,
        "num_heads": config.heads,
        "n_groups": config.n_groups,
    }
    if config.dt_limit_min > 0 or config.dt_limit_max is not None:  # else transformers' default
        high = UNLIMITED if config.dt_limit_max is None else config.dt_limit_max
        fields["time_step_limit"] = [config.dt_limit_min, high]
    return fields


FAMILY = Family(
    name="transformers",
    supports=f"{MAMBA2} (transformers)",
    recognises=_recognises,
    read=_read,
    our_name=our_name,
    file_name=file_name,
    write=_write,
)
