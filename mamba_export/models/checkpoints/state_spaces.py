"""The format of the state-spaces authors (mamba_ssm), of Mamba-1, and of the first ports to transformers.

The ports kept the names and put the block's options beside d_model, where the authors have them in ssm_cfg.
"""

from __future__ import annotations

from mamba_export.fields import Boolean, Integer, shown
from mamba_export.models import MambaConfig
from mamba_export.models.checkpoints.family import MAMBA, Description, Family
from mamba_export.models.checkpoints.fields import ConfigFields
from mamba_export.models.checkpoints.naming import EMBEDDING, our_name
from mamba_export.models.config import RULES

# What mamba_ssm's Mamba-1 block takes. From dt_min on: its initialisation's and speed's business.
_SSM_OPTIONS = {
    "layer", "d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias",
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path",
}  # fmt: skip
_OPTIONS_OF_PORTS = ("d_state", "d_conv", "expand", "d_inner", "dt_rank", "bias", "conv_bias")

# The GPT-NeoX tokenizer's, which the published state-spaces checkpoints use without shipping it.
_GPT_NEOX_TOKENS, _GPT_NEOX_END_OF_TEXT = 50277, 0


def _recognises(fields: ConfigFields) -> bool:
    model_type = fields.get("model_type")
    if model_type is None:  # the format does not name itself
        return "d_model" in fields.data and "n_layer" in fields.data
    return model_type == MAMBA and fields.has_original_names


def _read(fields: ConfigFields) -> Description:
    """Fields and defaults of mamba_ssm's MambaConfig and Mamba."""
    if not fields.optional("rms_norm", Boolean(), True):
        fields.unsupported("rms_norm", "LayerNorm is not supported, only RMSNorm")
    if fields.get("attn_layer_idx"):
        fields.unsupported("attn_layer_idx", "attention layers are not supported")
    if fields.optional("d_intermediate", Integer(0), 0) > 0:
        fields.unsupported("d_intermediate", "MLP layers are not supported")
    tokens = fields.vocab_size(_GPT_NEOX_TOKENS)
    multiple = max(fields.optional("pad_vocab_size_multiple", Integer(0), 8), 1)
    d_model = fields.take("d_model", RULES["d_model"])
    block = _block(fields)
    config = MambaConfig(
        d_model=d_model,
        n_layer=fields.take("n_layer", RULES["n_layer"]),
        vocab_size=-(-tokens // multiple) * multiple,
        d_state=block.of("d_state", "d_state", 16),
        d_conv=block.of("d_conv", "d_conv", 4),
        dt_rank=block.rank("dt_rank"),
        bias=block.of("bias", "bias", False),
        conv_bias=block.of("conv_bias", "conv_bias", True),
        norm_epsilon=fields.of("norm_epsilon", "layer_norm_epsilon", 1e-5),
        tie_embeddings=fields.of("tie_embeddings", "tie_embeddings", True),
        residual_in_fp32=fields.of("residual_in_fp32", "residual_in_fp32", True),
        eos_token_id=fields.eos(),
        **block.widths(d_model, "d_inner"),
    )
    if "eos_token_id" not in fields.data and tokens == _GPT_NEOX_TOKENS:
        config = config.replace(eos_token_id=_GPT_NEOX_END_OF_TEXT)
    return Description(config, MAMBA)


def _block(fields: ConfigFields) -> ConfigFields:
    """The block's options, checked: an option unknown to us could change the arithmetic unseen."""
    ssm = fields.get("ssm_cfg") or {}
    if not isinstance(ssm, dict):
        fields.unsupported("ssm_cfg", "expected an object")
    if ssm.get("layer", "Mamba1") != "Mamba1":
        fields.unsupported("ssm_cfg", f"layer {shown(ssm['layer'])} is not supported, only Mamba1")
    unknown = sorted(set(ssm) - _SSM_OPTIONS)
    if unknown:
        fields.unsupported("ssm_cfg", f"unknown option {', '.join(unknown)}")
    beside = {name: fields.data[name] for name in _OPTIONS_OF_PORTS if name in fields.data}
    return ConfigFields(fields.path, {**beside, **ssm}, fields.supported)


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
