"""Mistral's own format of Mamba-Codestral: params.json and consolidated.safetensors, of mamba_ssm's Mamba-2.

Fields are those of mistral_inference's MambaArgs; what it has none of is mamba_ssm's default.
"""

from __future__ import annotations

from mamba_export.models import Mamba2Config
from mamba_export.models.checkpoints.family import MAMBA2, Description, Family
from mamba_export.models.checkpoints.fields import RULES, ConfigFields
from mamba_export.models.checkpoints.naming import our_name
from mamba_export.models.checkpoints.state_spaces import check_norms, file_name, padded_vocabulary

CONFIG_FILE = "params.json"

_BOS, _EOS = 1, 2
"""Of every tokenizer of Mistral's; the file names none."""


def _recognises(fields: ConfigFields) -> bool:
    return {"dim", "n_layers", "n_groups"} <= fields.data.keys()


def _read(fields: ConfigFields) -> Description:
    check_norms(fields)
    config = Mamba2Config(
        d_model=fields.take("dim", RULES["d_model"]),
        n_layer=fields.take("n_layers", RULES["n_layer"]),
        n_groups=fields.take("n_groups", RULES["n_groups"]),
        vocab_size=padded_vocabulary(fields, fields.vocab_size(32768), 1),
        tie_embeddings=fields.of("tie_embeddings", "tie_embeddings", False),
        residual_in_fp32=fields.of("residual_in_fp32", "residual_in_fp32", True),
        eos_token_id=fields.eos(default=_EOS),
    )
    return Description(config, MAMBA2, bos_token_id=_BOS)


FAMILY = Family(
    name="mistral",
    supports="Mistral's own format of Mamba-Codestral",
    recognises=_recognises,
    read=_read,
    our_name=our_name,
    file_name=file_name,
)
