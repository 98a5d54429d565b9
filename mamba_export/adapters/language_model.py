"""mamba_ssm.models.mixer_seq_simple: the language model over the adapters' mixers, with its parameter names.

Versions 1 and 2 of mamba_ssm differ in what they take; keywords of both are taken here.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export.adapters.attention import MHA
from mamba_export.adapters.block import Block
from mamba_export.adapters.checkpoint_files import load_config_hf, load_state_dict_hf
from mamba_export.adapters.generation import GenerationMixin
from mamba_export.adapters.mamba import Mamba
from mamba_export.adapters.mamba2 import Mamba2
from mamba_export.adapters.norms import RMSNorm, add_and_norm
from mamba_export.adapters.unsupported import refuse
from mamba_export.files import new_files, write_text

_MIXERS: dict[str, type[nn.Module]] = {"Mamba1": Mamba, "Mamba2": Mamba2, "MHA": MHA}


@dataclass
class MambaConfig:
    """mamba_ssm.models.config_mamba.MambaConfig: the fields of a published config.json."""

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True


class GatedMLP(nn.Module):
    """mamba_ssm.modules.mlp.GatedMLP: fc2(a * activation(b)), where fc1 gives a and b."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Any = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden = math.ceil(hidden / multiple_of) * multiple_of
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias=bias, **factory)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, out_features or in_features, bias=bias, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * self.activation(gate))


def create_block(
    d_model: int,
    d_intermediate: int = 0,
    ssm_cfg: Mapping[str, Any] | None = None,
    attn_layer_idx: Sequence[int] | None = None,
    attn_cfg: Mapping[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """A block of the language model; ``d_intermediate`` 0 for one without an MLP.

    Args:
        ssm_cfg: the mixer's keywords; its ``layer`` is "Mamba1" (the default) or "Mamba2".
        attn_layer_idx: layers that are attention instead; attn_cfg has that one's keywords.

    Raises:
        NotImplementedError: another ``layer``.
    """
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    if layer_idx in (attn_layer_idx or ()):
        kind, keywords = "MHA", dict(attn_cfg or {})
    else:
        keywords = copy.deepcopy(dict(ssm_cfg or {}))
        kind = keywords.pop("layer", "Mamba1")
    if kind not in _MIXERS:
        refuse(f"create_block with layer={kind!r}", "it is Mamba1 or Mamba2")
    mlp: Any = nn.Identity
    if d_intermediate > 0:
        mlp = partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **factory)
    norm = RMSNorm if rms_norm else nn.LayerNorm
    block = Block(
        d_model,
        partial(_MIXERS[kind], layer_idx=layer_idx, **keywords, **factory),
        mlp,
        norm_cls=partial(norm, eps=norm_epsilon, **factory),
        fused_add_norm=fused_add_norm,
        residual_in_fp32=residual_in_fp32,
    )
    block.layer_idx = layer_idx  # type: ignore[assignment]
    return block


def init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """``_init_weights`` of mamba_ssm: embeddings normal, biases 0, outputs scaled by 1 / sqrt(residual sums).

    The scale is that of GPT-2 (Radford et al. 2019, section 2.3).
    """
    if isinstance(module, nn.Linear) and module.bias is not None:
        if not getattr(module.bias, "_no_reinit", False):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if not rescale_prenorm_residual:
        return
    for name, parameter in module.named_parameters():
        if name in ("out_proj.weight", "fc2.weight"):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))  # PyTorch's own for a Linear
            with torch.no_grad():
                parameter.div_(math.sqrt(n_residuals_per_layer * n_layer))


class MixerModel(nn.Module):
    """The backbone: embedding, blocks, last norm."""

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int = 0,
        vocab_size: int = 50277,
        ssm_cfg: Mapping[str, Any] | None = None,
        attn_layer_idx: Sequence[int] | None = None,
        attn_cfg: Mapping[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: Mapping[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **factory)
        self.layers = nn.ModuleList(
            create_block(
                d_model,
                d_intermediate,
                ssm_cfg=ssm_cfg,
                attn_layer_idx=attn_layer_idx,
                attn_cfg=attn_cfg,
                norm_epsilon=norm_epsilon,
                rms_norm=rms_norm,
                residual_in_fp32=residual_in_fp32,
                fused_add_norm=fused_add_norm,
                layer_idx=index,
                **factory,
            )
            for index in range(n_layer)
        )
        norm: Any = RMSNorm if rms_norm else nn.LayerNorm
        self.norm_f = norm(d_model, eps=norm_epsilon, **factory)
        self.apply(
            partial(
                init_weights,
                n_layer=n_layer,
                **(initializer_cfg or {}),
                n_residuals_per_layer=2 if d_intermediate else 1,
            )
        )

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """States of every layer, by its index."""
        layers: Any = self.layers
        return {
            index: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)
            for index, layer in enumerate(layers)
        }

    def forward(self, input_ids: Tensor, inference_params: Any = None, **mixer_kwargs: Any) -> Any:
        """input_ids (batch, length) -> hidden states (batch, length, d_model)."""
        hidden_states, residual = self.embedding(input_ids), None
        for layer in self.layers:
            hidden_states, residual = layer(
                hidden_states, residual, inference_params=inference_params, **mixer_kwargs
            )
        if self.fused_add_norm:
            return add_and_norm(
                hidden_states,
                self.norm_f.weight,
                self.norm_f.bias,
                residual,
                eps=self.norm_f.eps,
                prenorm=False,
                residual_in_fp32=self.residual_in_fp32,
                is_rms_norm=isinstance(self.norm_f, RMSNorm),
            )
        total = hidden_states if residual is None else hidden_states + residual
        return self.norm_f(total.to(self.norm_f.weight.dtype))


class CausalLMOutput(NamedTuple):
    """What the language model returns: logits (batch, length, vocab_size)."""

    logits: Tensor


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """The language model: ``backbone`` and ``lm_head``, whose weights may be the embedding's."""

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        multiple = config.pad_vocab_size_multiple
        vocab_size = math.ceil(config.vocab_size / multiple) * multiple
        self.backbone = MixerModel(
            config.d_model,
            config.n_layer,
            config.d_intermediate,
            vocab_size,
            ssm_cfg=config.ssm_cfg,
            attn_layer_idx=config.attn_layer_idx,
            attn_cfg=config.attn_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            **factory,
        )
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False, **factory)
        self.apply(partial(init_weights, n_layer=config.n_layer, **(initializer_cfg or {})))
        self.tie_weights()

    def tie_weights(self) -> None:
        """Give ``lm_head`` the embedding's weights, where the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """States of every layer, by its index."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
        **mixer_kwargs: Any,
    ) -> CausalLMOutput:
        """input_ids (batch, length) -> logits (batch, length, vocab_size), or of the last tokens alone.

        ``position_ids`` means nothing, as in mamba_ssm.
        """
        hidden = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        if num_last_tokens > 0:
            hidden = hidden[:, -num_last_tokens:]
        return CausalLMOutput(self.lm_head(hidden))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> MambaLMHeadModel:
        """A checkpoint of state-spaces, from a folder or a Hugging Face id."""
        config = MambaConfig(**load_config_hf(pretrained_model_name))
        model = cls(config, device=device, dtype=dtype, **kwargs)
        model.load_state_dict(load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype))
        return model

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config.json and pytorch_model.bin into a folder."""
        text = json.dumps(asdict(self.config), indent=4)
        with new_files(save_directory, last="config.json") as folder:
            torch.save(self.state_dict(), folder / "pytorch_model.bin")
            write_text(folder / "config.json", text)
