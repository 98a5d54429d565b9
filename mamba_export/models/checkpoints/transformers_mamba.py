"""transformers' Mamba and FalconMamba."""

from __future__ import annotations

from typing import Any

import torch

from mamba_export.models import MambaConfig, ModelConfig
from mamba_export.models.checkpoints.family import MAMBA, Description, Family
from mamba_export.models.checkpoints.fields import ConfigFields
from mamba_export.models.checkpoints.naming import EMBEDDING, our_name

FALCON = "falcon_mamba"
"""``model_type`` of FalconMamba."""


def _recognises(fields: ConfigFields) -> bool:
    model_type = fields.get("model_type")
    return model_type == FALCON or (model_type == MAMBA and not fields.has_original_names)


def _read(fields: ConfigFields) -> Description:
    """Fields and defaults of transformers' MambaConfig and FalconMambaConfig."""
    check_shared(fields)
    architecture = fields.get("model_type")
    falcon = architecture == FALCON
    d_model = fields.of("d_model", "hidden_size", 768)
    config = MambaConfig(
        d_model=d_model,
        n_layer=fields.of("n_layer", "num_hidden_layers", 32),
        vocab_size=fields.vocab_size(50280),
        d_state=fields.of("d_state", "state_size", 16),
        d_conv=fields.of("d_conv", "conv_kernel", 4),
        dt_rank=fields.rank("time_step_rank"),
        bias=fields.of("bias", "use_bias", False),
        conv_bias=fields.of("conv_bias", "use_conv_bias", True),
        norm_epsilon=fields.of("norm_epsilon", "layer_norm_epsilon", 1e-5),
        bcdt_norm_epsilon=fields.of("norm_epsilon", "mixer_rms_eps", 1e-6) if falcon else None,
        exact_zoh=fields.of(
            "exact_zoh", "exact_zoh", False
        ),  # ours: transformers has Euler's rule alone
        tie_embeddings=fields.of("tie_embeddings", "tie_word_embeddings", True),
        residual_in_fp32=fields.of("residual_in_fp32", "residual_in_fp32", True),
        dt_min=fields.of("dt_min", "time_step_min", 1e-3),
        dt_max=fields.of("dt_max", "time_step_max", 1e-1),
        dt_floor=fields.of("dt_floor", "time_step_floor", 1e-4),
        eos_token_id=fields.eos(),
        **fields.widths(d_model, "intermediate_size"),
    )
    return Description(
        config,
        architecture,
        bos_token_id=fields.token("bos_token_id"),
        pad_token_id=fields.token("pad_token_id"),
    )


def check_shared(fields: ConfigFields) -> None:
    """Refuse what no model of transformers may ask for here: another activation, quantised weights."""
    if (fields.get("hidden_act") or "silu") not in ("silu", "swish"):
        fields.unsupported("hidden_act", "only silu is supported")
    if fields.get("quantization_config") is not None:
        fields.unsupported("quantization_config", "quantised weights are not supported")


def shared_fields(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Fields of config.json that transformers names alike in Mamba and Mamba2; ``dtype`` is the matrices'."""
    eos = config.eos_token_id
    other = eos[0] if isinstance(eos, tuple) else eos
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "state_size": config.d_state,
        "conv_kernel": config.d_conv,
        "expand": config.expand,
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_epsilon,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": config.tie_embeddings,
        "time_step_min": config.dt_min,
        "time_step_max": config.dt_max,
        "time_step_floor": config.dt_floor,
        # Those of the classes, 0 to 2, are tokens like any other in some vocabularies.
        "bos_token_id": other,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": other,
    }


def write_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any] | None:
    """config.json of transformers' format, of a MambaConfig; ``dtype`` is the matrices'."""
    if not isinstance(config, MambaConfig):
        return None
    falcon = config.bcdt_norm_epsilon is not None
    fields: dict[str, Any] = {
        "architectures": ["FalconMambaForCausalLM" if falcon else "MambaForCausalLM"],
        "model_type": FALCON if falcon else MAMBA,
        **shared_fields(config, dtype),
        "intermediate_size": config.inner,
        "time_step_rank": config.rank,
    }
    if falcon:
        fields["mixer_rms_eps"] = config.bcdt_norm_epsilon
    if config.exact_zoh:
        fields["exact_zoh"] = True
    return fields


def file_name(name: str) -> str:
    """MambaLM's parameter name -> transformers' name of the tensor."""
    return f"backbone.{name}" if name == EMBEDDING else name


FAMILY = Family(
    name="transformers",
    supports=f"{MAMBA}, {FALCON} (transformers)",
    recognises=_recognises,
    read=_read,
    our_name=our_name,
    file_name=file_name,
    write=write_config,
)
