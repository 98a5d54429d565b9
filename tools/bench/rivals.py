"""mamba_ssm, causal_conv1d and transformers as a benchmark sees them; each may be absent.

mamba_ssm keeps sequences as (batch, channels, length): it is given that layout, made beforehand, and the
arguments it likes best. It starts from a state of zeros, so it reads one tensor less than our operators.
"""

from __future__ import annotations

import functools
import importlib
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mamba_export.errors import first_line
from mamba_export.models import TORCH_DTYPES, MambaConfig
from mamba_export.versions import installed_versions

MAMBA_SSM = "mamba_ssm"
CAUSAL_CONV1D = "causal_conv1d"
TRANSFORMERS = "transformers"
_PROMPT = 16  # tokens before a decode measurement


def _absent(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # its own imports fail in many ways where a part is missing
        reason = first_line(error)
        name = module.partition(".")[0]
        return (
            f"not installed ({reason})" if isinstance(error, ImportError) else f"{name}: {reason}"
        )
    return ""


@functools.cache
def mamba_ssm_absent() -> str:
    """Why mamba_ssm cannot be timed; empty where it can."""
    return _absent("mamba_ssm")


@functools.cache
def causal_conv1d_absent() -> str:
    """Why causal_conv1d cannot be timed; empty where it can."""
    return _absent("causal_conv1d")


@functools.cache
def transformers_absent() -> str:
    """Why transformers cannot be timed; empty where it can."""
    return _absent("transformers")


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous()


def scan_arguments(
    *,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    initial_state: Tensor,
) -> dict[str, Any]:
    """Arguments of ``selective_scan_fn`` from those of our operator; the initial state has no place there."""
    return {
        "u": _channels_first(u),
        "delta": _channels_first(delta),
        "A": A,
        "B": B.permute(0, 2, 3, 1).contiguous(),  # (batch, groups, d_state, length)
        "C": C.permute(0, 2, 3, 1).contiguous(),
        "D": D,
        "z": _channels_first(z),
        "delta_bias": delta_bias,
        "delta_softplus": True,
        "return_last_state": True,
    }


def scan(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """``mamba_ssm``'s scan: y (batch, channels, length) and the last state."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(**arguments)


def step_arguments(
    *,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    initial_state: Tensor,
) -> dict[str, Any]:
    """Arguments of ``selective_state_update``, which changes the state in place, from those of our operator."""
    return {
        "state": initial_state,
        "x": u[:, 0],
        "dt": delta[:, 0],
        "A": A,
        "B": B[:, 0, 0],
        "C": C[:, 0, 0],
        "D": D,
        "z": z[:, 0],
        "dt_bias": delta_bias,
        "dt_softplus": True,
    }


def step(arguments: dict[str, Any]) -> Tensor:
    """``mamba_ssm``'s step of the scan: y (batch, channels)."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    return selective_state_update(**arguments)


def conv_arguments(
    *, x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor
) -> dict[str, Any]:
    """Arguments of ``causal_conv1d_fn``; states have no place in its channels-first layout."""
    return {
        "x": _channels_first(x),
        "weight": weight.to(x.dtype),
        "bias": bias.to(x.dtype),
        "activation": "silu",
    }


def conv(arguments: dict[str, Any]) -> Tensor:
    """``causal_conv1d``'s convolution: (batch, channels, length)."""
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(**arguments)


class MambaSsmModel:
    """``MambaLMHeadModel`` of a shape with random weights, on the GPU."""

    def __init__(self, config: MambaConfig, dtype: str) -> None:
        from mamba_ssm import MambaLMHeadModel
        from mamba_ssm.models.config_mamba import MambaConfig as TheirConfig

        theirs = TheirConfig(
            d_model=config.d_model,
            n_layer=config.n_layer,
            vocab_size=config.vocab_size,
            ssm_cfg={"layer": "Mamba1"},
        )
        self._model = MambaLMHeadModel(theirs, device="cuda", dtype=TORCH_DTYPES[dtype]).eval()

    @torch.inference_mode()
    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """tokens (batch, length) -> logits of the last step (batch, vocab), on the host; fills its states."""
        from mamba_ssm.utils.generation import InferenceParams

        batch, length = tokens.shape
        states = InferenceParams(max_seqlen=length + 1, max_batch_size=batch)
        ids = torch.from_numpy(tokens).cuda()
        return (
            self._model(ids, inference_params=states, num_last_tokens=1).logits[:, 0].cpu().numpy()
        )

    def decode_milliseconds(self, batch: int, steps: int) -> float:
        """Time of a token in its ``generate`` with a CUDA graph, greedy: a long run less a short one."""
        prompt = torch.randint(0, 1000, (batch, _PROMPT), device="cuda")

        def seconds(tokens: int) -> float:
            torch.cuda.synchronize()
            start = time.perf_counter()
            self._model.generate(
                prompt, max_length=_PROMPT + tokens, cg=True, top_k=1, eos_token_id=None
            )
            torch.cuda.synchronize()
            return time.perf_counter() - start

        seconds(1 + steps)  # captures the graph
        times = [seconds(1 + steps) - seconds(1) for _ in range(3)]
        return 1e3 * sorted(times)[1] / steps

    def graph_milliseconds(self, batch: int, steps: int) -> float:
        """Time of its captured step alone, replayed without choosing a token. After ``decode_milliseconds``."""
        cache = self._model._decoding_cache
        ids = torch.randint(0, 1000, (batch, 1), device="cuda")
        position = torch.full((batch, 1), _PROMPT, dtype=torch.long, device="cuda")
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.inference_mode():
            cache.run(ids, position, _PROMPT)
            start.record()
            for _ in range(steps):
                cache.run(ids, position, _PROMPT)
            end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / steps


def transformers_model(config: MambaConfig, dtype: str, device: str) -> Any:
    """transformers' ``MambaForCausalLM`` of a shape, with random weights."""
    import transformers

    transformers.logging.set_verbosity_error()  # it warns that its fast path needs other packages
    theirs = transformers.MambaConfig(
        hidden_size=config.d_model,
        num_hidden_layers=config.n_layer,
        vocab_size=config.vocab_size,
    )
    model = transformers.MambaForCausalLM(theirs).eval()
    return model.to(device=device, dtype=TORCH_DTYPES[dtype])


def versions() -> dict[str, str]:
    """Versions of what a run on a GPU depends on, as the modules say: rivals may come from a bare folder."""
    found = installed_versions(TRANSFORMERS)
    for module in ("mamba_export", "torch", "onnxruntime", MAMBA_SSM, CAUSAL_CONV1D):
        absent = _absent(module)
        found[module] = "not installed" if absent else importlib.import_module(module).__version__
    return found
