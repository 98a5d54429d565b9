"""The format of the state-spaces authors (mamba_ssm), of both Mambas, and of the first ports to transformers.

The ports kept the names and put the block's options beside d_model, where the authors have them in ssm_cfg.
"""

from __future__ import annotations

from typing import Any

from mamba_export.fields import Boolean, Integer, shown
from mamba_export.models import Mamba2Config, MambaConfig, ModelConfig
from mamba_export.models.checkpoints.family import MAMBA, MAMBA2, Description, Family
from mamba_export.models.checkpoints.fields import RULES, ConfigFields
from mamba_export.models.checkpoints.naming import EMBEDDING, our_name

# What mamba_ssm's blocks take. From dt_min on: their initialisation's and speed's business.
_OF_BOTH = {
    "layer", "d_state", "d_conv", "expand", "bias", "conv_bias",
    "dt_min", "dt_max", "dt_init_floor",
}  # fmt: skip
_OF_MAMBA = _OF_BOTH | {"dt_rank", "dt_init", "dt_scale", "use_fast_path"}
_OF_MAMBA2 = _OF_BOTH | {
    "headdim", "ngroups", "d_ssm", "D_has_hdim", "rmsnorm", "norm_before_gate", "dt_limit",
    "A_init_range", "conv_init", "chunk_size", "use_mem_eff_path", "sequence_parallel",
}  # fmt: skip
_OPTIONS_OF_PORTS = ("d_state", "d_conv", "expand", "d_inner", "dt_rank", "bias", "conv_bias")
_LAYERS = ("Mamba1", "Mamba2")

# The GPT-NeoX tokenizer's, which the published state-spaces checkpoints use without shipping it.
_GPT_NEOX_TOKENS, _GPT_NEOX_END_OF_TEXT = 50277, 0


def _recognises(fields: ConfigFields) -> bool:
    model_type = fields.get("model_type")
    if model_type is None:  # the format does not name itself
        return "d_model" in fields.data and "n_layer" in fields.data
    return model_type in (MAMBA, MAMBA2) and fields.has_original_names


def _read(fields: ConfigFields) -> Description:
    """Fields and defaults of mamba_ssm's MambaConfig, Mamba and Mamba2."""
    check_norms(fields)
    if fields.get("attn_layer_idx"):
        fields.unsupported("attn_layer_idx", "attention layers are not supported")
    if fields.optional("d_intermediate", Integer(0), 0) > 0:
        fields.unsupported("d_intermediate", "MLP layers are not supported")
    tokens = fields.vocab_size(_GPT_NEOX_TOKENS)
    shared = {
        "d_model": fields.take("d_model", RULES["d_model"]),
        "n_layer": fields.take("n_layer", RULES["n_layer"]),
        "vocab_size": padded_vocabulary(fields, tokens, 8),
        "norm_epsilon": fields.of("norm_epsilon", "layer_norm_epsilon", 1e-5),
        "tie_embeddings": fields.of("tie_embeddings", "tie_embeddings", True),
        "residual_in_fp32": fields.of("residual_in_fp32", "residual_in_fp32", True),
        "eos_token_id": fields.eos(
            default=_GPT_NEOX_END_OF_TEXT if tokens == _GPT_NEOX_TOKENS else None
        ),
    }
    layer, block = _block(fields)
    read = _read_mamba2 if layer == "Mamba2" else _read_mamba
    config = read(block, shared)
    return Description(config, config.mixer)


def _read_mamba(block: ConfigFields, shared: dict[str, Any]) -> ModelConfig:
    return MambaConfig(
        d_state=block.of("d_state", "d_state", 16),
        dt_rank=block.rank("dt_rank"),
        **_of_both(block),
        **shared,
        **block.widths(shared["d_model"], "d_inner"),
    )


def _read_mamba2(block: ConfigFields, shared: dict[str, Any]) -> ModelConfig:
    block.check_chunk_size()
    config = Mamba2Config(
        d_state=block.of("d_state", "d_state", 128),
        head_dim=block.of("head_dim", "headdim", 64),
        n_groups=block.of("n_groups", "ngroups", 1),
        gated_norm=block.of("gated_norm", "rmsnorm", True),
        norm_before_gate=block.of("norm_before_gate", "norm_before_gate", False),
        skip_per_channel=block.of("skip_per_channel", "D_has_hdim", False),
        **block.dt_limits("dt_limit"),
        **_of_both(block),
        **shared,
        **block.widths(shared["d_model"], "d_inner"),
    )
    if block.optional("d_ssm", Integer(1), config.inner) != config.inner:
        block.unsupported("d_ssm", "a gated MLP beside the scan is not supported")
    return config


def _of_both(block: ConfigFields) -> dict[str, Any]:
    return {
        "d_conv": block.of("d_conv", "d_conv", 4),
        "bias": block.of("bias", "bias", False),
        "conv_bias": block.of("conv_bias", "conv_bias", True),
    }


def check_norms(fields: ConfigFields) -> None:
    """Refuse LayerNorm in the place of RMSNorm."""
    if not fields.optional("rms_norm", Boolean(), True):
        fields.unsupported("rms_norm", "LayerNorm is not supported, only RMSNorm")


def padded_vocabulary(fields: ConfigFields, tokens: int, multiple: int) -> int:
    """Rows of the embedding: the tokens, up to pad_vocab_size_multiple or the multiple that it defaults to."""
    multiple = max(fields.optional("pad_vocab_size_multiple", Integer(0), multiple), 1)
    return -(-tokens // multiple) * multiple


def _block(fields: ConfigFields) -> tuple[str, ConfigFields]:
    """Which block, and its options, checked: an option unknown to us could change the arithmetic unseen."""
    ssm = fields.get("ssm_cfg") or {}
    if not isinstance(ssm, dict):
        fields.unsupported("ssm_cfg", "expected an object")
    layer = ssm.get("layer", "Mamba2" if fields.get("model_type") == MAMBA2 else "Mamba1")
    if layer not in _LAYERS:
        fields.unsupported(
            "ssm_cfg", f"layer {shown(layer)} is not supported, only {' and '.join(_LAYERS)}"
        )
    unknown = sorted(set(ssm) - (_OF_MAMBA2 if layer == "Mamba2" else _OF_MAMBA))
    if unknown:
        fields.unsupported("ssm_cfg", f"unknown option {', '.join(unknown)}")
    beside = {name: fields.data[name] for name in _OPTIONS_OF_PORTS if name in fields.data}
    return layer, ConfigFields(fields.path, {**beside, **ssm}, fields.supported)


def file_name(name: str) -> str:
    """MambaLM's parameter name -> mamba_ssm's name of the tensor."""
    return "backbone.embedding.weight" if name == EMBEDDING else name


FAMILY = Family(
    name="state-spaces",
    supports="the state-spaces format of Mamba-1 and Mamba-2",
    recognises=_recognises,
    read=_read,
    our_name=our_name,
    file_name=file_name,
)
