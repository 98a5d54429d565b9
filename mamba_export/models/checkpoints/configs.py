"""config.json of the supported formats -> MambaConfig, and back to transformers'."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mamba_export.errors import CheckpointError, MambaExportError
from mamba_export.models import MambaConfig

Format = Literal["transformers", "state-spaces"]
Architecture = Literal["mamba", "falcon_mamba"]

SUPPORTED = "mamba, falcon_mamba (transformers), and the state-spaces format of Mamba-1"

# What mamba_ssm's Mamba-1 block takes. From dt_min on: its initialisation's and speed's business.
_SSM_OPTIONS = {
    "layer", "d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias",
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path",
}  # fmt: skip

# The GPT-NeoX tokenizer's, which the published state-spaces checkpoints use without shipping it.
_GPT_NEOX_TOKENS, _GPT_NEOX_END_OF_TEXT = 50277, 0


@dataclass(frozen=True)
class Description:
    """What a config.json says."""

    config: MambaConfig
    format: Format
    architecture: Architecture


def read_config(folder: Path) -> Description:
    """Read ``folder``/config.json.

    Raises:
        CheckpointError: the file is missing or unreadable, of another architecture, or asks for
            an option that MambaLM lacks.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no config.json: pass the folder of a checkpoint ({SUPPORTED})"
        )
    fields = _Fields(path, read_json(path))
    if fields.integer("vocab_size", 1) < 1:  # MambaConfig lets a backbone without tokens pass
        raise CheckpointError(
            f"{path}: vocab_size is {fields.get('vocab_size')}, expected at least 1"
        )
    model_type = fields.get("model_type")
    try:
        if model_type in ("mamba", "falcon_mamba"):
            return _transformers(fields, model_type)
        if model_type is None and "d_model" in fields.data and "n_layer" in fields.data:
            return Description(_state_spaces(fields), "state-spaces", "mamba")
    except CheckpointError:
        raise
    except MambaExportError as error:  # MambaConfig refused a value
        raise CheckpointError(f"{path}: {error}") from error
    what = f"architecture {model_type!r}" if model_type is not None else "an unnamed architecture"
    raise CheckpointError(f"{path} is of {what}; supported are {SUPPORTED}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it does not.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}): fetch the file again"
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


class _Fields:
    """Typed access to config.json; an absent or null field takes the default."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data

    def get(self, name: str) -> Any:
        return self.data.get(name)

    def _typed(self, name: str, default: Any, kinds: tuple[type, ...], expected: str) -> Any:
        value = self.data.get(name)
        if value is None:
            return default
        if type(value) not in kinds:  # not isinstance: true is no integer here
            raise CheckpointError(f"{self.path}: {name} is {value!r}, expected {expected}")
        return value

    def integer(self, name: str, default: int) -> int:
        return self._typed(name, default, (int,), "an integer")

    def optional_integer(self, name: str) -> int | None:
        return self._typed(name, None, (int,), "an integer")

    def number(self, name: str, default: float) -> float:
        return float(self._typed(name, default, (int, float), "a number"))

    def boolean(self, name: str, default: bool) -> bool:
        return self._typed(name, default, (bool,), "true or false")

    def rank(self, name: str) -> int | str:
        return "auto" if self.get(name) == "auto" else self.integer(name, 0) or "auto"

    def eos(self, default: int | None) -> int | None:
        """Token that ends a text: the first where the field is a list; null is none."""
        value = self.data.get("eos_token_id", default)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is not None and type(value) is not int:
            raise CheckpointError(f"{self.path}: eos_token_id is {value!r}, expected an integer")
        return value

    def refuse(self, name: str, what: str) -> None:
        raise CheckpointError(
            f"{self.path}: {name} is {self.get(name)!r}: {what}; supported are {SUPPORTED}"
        )


def _transformers(fields: _Fields, architecture: Architecture) -> Description:
    """Fields and defaults of transformers' MambaConfig and FalconMambaConfig."""
    if (fields.get("hidden_act") or "silu") not in ("silu", "swish"):
        fields.refuse("hidden_act", "only silu is supported")
    if fields.get("quantization_config") is not None:
        fields.refuse("quantization_config", "quantised weights are not supported")
    falcon = architecture == "falcon_mamba"
    config = MambaConfig(
        d_model=fields.integer("hidden_size", 768),
        n_layer=fields.integer("num_hidden_layers", 32),
        vocab_size=fields.integer("vocab_size", 50280),
        d_state=fields.integer("state_size", 16),
        d_conv=fields.integer("conv_kernel", 4),
        expand=fields.integer("expand", 2),
        # Wins over expand where it is given: the published FalconMamba says expand 16 and means 2.
        d_inner=fields.optional_integer("intermediate_size"),
        dt_rank=fields.rank("time_step_rank"),
        bias=fields.boolean("use_bias", False),
        conv_bias=fields.boolean("use_conv_bias", True),
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        bcdt_norm_epsilon=fields.number("mixer_rms_eps", 1e-6) if falcon else None,
        tie_embeddings=fields.boolean("tie_word_embeddings", True),
        residual_in_fp32=fields.boolean("residual_in_fp32", True),
        dt_min=fields.number("time_step_min", 1e-3),
        dt_max=fields.number("time_step_max", 1e-1),
        dt_floor=fields.number("time_step_floor", 1e-4),
        eos_token_id=fields.eos(0),
    )
    return Description(config, "transformers", architecture)


def _state_spaces(fields: _Fields) -> MambaConfig:
    """Fields and defaults of mamba_ssm's MambaConfig and Mamba."""
    if not fields.boolean("rms_norm", True):
        fields.refuse("rms_norm", "LayerNorm is not supported, only RMSNorm")
    if fields.get("attn_layer_idx"):
        fields.refuse("attn_layer_idx", "attention layers are not supported")
    if fields.integer("d_intermediate", 0) > 0:
        fields.refuse("d_intermediate", "MLP layers are not supported")
    ssm = _Fields(fields.path, _ssm_cfg(fields))
    tokens = fields.integer("vocab_size", _GPT_NEOX_TOKENS)
    multiple = max(fields.integer("pad_vocab_size_multiple", 8), 1)
    return MambaConfig(
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
        eos_token_id=fields.eos(_GPT_NEOX_END_OF_TEXT if tokens == _GPT_NEOX_TOKENS else None),
    )


def _ssm_cfg(fields: _Fields) -> dict[str, Any]:
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


def transformers_config(config: MambaConfig, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of transformers' format; ``dtype`` is the matrices'."""
    falcon = config.bcdt_norm_epsilon is not None
    fields: dict[str, Any] = {
        "architectures": ["FalconMambaForCausalLM" if falcon else "MambaForCausalLM"],
        "model_type": "falcon_mamba" if falcon else "mamba",
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "state_size": config.d_state,
        "conv_kernel": config.d_conv,
        "expand": config.expand,
        "intermediate_size": config.inner,
        "time_step_rank": config.rank,
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_epsilon,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": config.tie_embeddings,
        "time_step_min": config.dt_min,
        "time_step_max": config.dt_max,
        "time_step_floor": config.dt_floor,
        # All three default to 0 in transformers: a token like any other in some vocabularies.
        "bos_token_id": config.eos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.eos_token_id,
    }
    if falcon:
        fields["mixer_rms_eps"] = config.bcdt_norm_epsilon
    return fields
