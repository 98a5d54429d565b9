"""The format of the state-spaces authors (mamba_ssm), of Mamba-1."""

from __future__ import annotations

from typing import Any

from mamba_export.models import MambaConfig
from mamba_export.models.checkpoints.family import Description, Family
from mamba_export.models.checkpoints.fields import Fields
from mamba_export.models.checkpoints.naming import EMBEDDING, our_name

# What mamba_ssm's Mamba-1 block takes. From dt_min on: its initialisation's and speed's business.
_SSM_OPTIONS = {
    "layer", "d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias",
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path",
}  # fmt: skip

# The GPT-NeoX tokenizer's, which the published state-spaces checkpoints use without shipping it.
_GPT_NEOX_TOKENS, _GPT_NEOX_END_OF_TEXT = 50277, 0


def _recognises(fields: Fields) -> bool:
    # The format does not name itself.
    named = fields.get("model_type") is not None
    return not named and "d_model" in fields.data and "n_layer" in fields.data


def _read(fields: Fields) -> Description:
    """Fields and defaults of mamba_ssm's MambaConfig and Mamba."""
    if not fields.boolean("rms_norm", True):
        fields.refuse("rms_norm", "LayerNorm is not supported, only RMSNorm")
    if fields.get("attn_layer_idx"):
        fields.refuse("attn_layer_idx", "attention layers are not supported")
    if fields.integer("d_intermediate", 0) > 0:
        fields.refuse("d_intermediate", "MLP layers are not supported")
    ssm = fields.inside(_ssm_cfg(fields))
    tokens = fields.integer("vocab_size", _GPT_NEOX_TOKENS)
    multiple = max(fields.integer("pad_vocab_size_multiple", 8), 1)
    config = MambaConfig(
        d_model=fields.integer("d_model", 0),
        n_layer=fields.integer("n_layer", 0),
        vocab_size=-(-tokens // multiple) * multiple,
        d_state=ssm.integer("d_state", 16),
        d_conv=ssm.integer("d_conv", 4),
        expand=ssm.integer("expand", 2),
        dt_rank=ssm.rank("dt_rank"),
        bias=ssm.boolean("bias", False),
        conv_bias=ssm.boolean("conv_bias", True),
        tie_embeddings=fields.boolean("tie_embeddings", True),
        residual_in_fp32=fields.boolean("residual_in_fp32", True),
        eos_token_id=fields.eos(),
    )
    if "eos_token_id" not in fields.data and tokens == _GPT_NEOX_TOKENS:
        config = config.replace(eos_token_id=_GPT_NEOX_END_OF_TEXT)
    return Description(config, "mamba")


def _ssm_cfg(fields: Fields) -> dict[str, Any]:
    """The block's options, checked: an option unknown to us could change the arithmetic unseen."""
    ssm = fields.get("ssm_cfg") or {}
    if not isinstance(ssm, dict):
        fields.refuse("ssm_cfg", "expected an object")
    if ssm.get("layer", "Mamba1") != "Mamba1":
        fields.refuse("ssm_cfg", f"layer {ssm['layer']!r} is not supported, only Mamba1")
    unknown = sorted(set(ssm) - _SSM_OPTIONS)
    if unknown:
        fields.refuse("ssm_cfg", f"unknown option {', '.join(unknown)}")
    return ssm


def _file_name(name: str) -> str:
    return "backbone.embedding.weight" if name == EMBEDDING else name


FAMILY = Family(
    name="state-spaces",
    supports="the state-spaces format of Mamba-1",
    recognises=_recognises,
    read=_read,
    our_name=our_name,
    file_name=_file_name,
)
