"""Whole models of others with random weights: mamba_ssm's, and transformers'."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from bench.timing import milliseconds_a_step
from mamba_export.models import TORCH_DTYPES, Mamba2Config, ModelConfig

_PROMPT = 16  # tokens before a decode measurement


class CapturedPrefill:
    """A model's prefill at one shape as a CUDA graph; a call is a replay with the logits on the host."""

    def __init__(self, model: Any, tokens: np.ndarray) -> None:
        self._host = torch.from_numpy(tokens)
        self._ids = self._host.cuda()

        def forward() -> torch.Tensor:
            return model(self._ids, num_last_tokens=1).logits[:, 0]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            stream
        ):  # kernels are compiled and algorithms picked before the capture
            for _ in range(3):
                forward()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = forward()

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        """Logits of the last step (batch, vocab), on the host."""
        self._ids.copy_(self._host)
        self._graph.replay()
        return self._logits.cpu()


class MambaSsmModel:
    """``MambaLMHeadModel`` of a shape with random weights, on the GPU."""

    def __init__(self, config: ModelConfig, dtype: str) -> None:
        from mamba_ssm import MambaLMHeadModel
        from mamba_ssm.models.config_mamba import MambaConfig as TheirConfig

        theirs = TheirConfig(
            d_model=config.d_model,
            n_layer=config.n_layer,
            vocab_size=config.vocab_size,
            ssm_cfg={"layer": "Mamba2" if isinstance(config, Mamba2Config) else "Mamba1"},
        )
        self._model = MambaLMHeadModel(theirs, device="cuda", dtype=TORCH_DTYPES[dtype]).eval()

    @torch.no_grad()
    def captured_prefill(self, tokens: np.ndarray) -> CapturedPrefill:
        """The same logits by one CUDA graph, without states: the way to call it that costs least.

        Without states it takes its fused path, and a replay spends nothing in Python.
        """
        return CapturedPrefill(self._model, tokens)

    @torch.inference_mode()
    def prefill(self, tokens: np.ndarray) -> torch.Tensor:
        """tokens (batch, length) -> logits of the last step (batch, vocab), on the host; fills its states."""
        from mamba_ssm.utils.generation import InferenceParams

        batch, length = tokens.shape
        states = InferenceParams(max_seqlen=length + 1, max_batch_size=batch)
        ids = torch.from_numpy(tokens).cuda()
        return self._model(ids, inference_params=states, num_last_tokens=1).logits[:, 0].cpu()

    def decode_milliseconds(self, batch: int, steps: int) -> float:
        """Time of a token in its ``generate`` with a CUDA graph, greedy: a long run less a short one.

        Python chooses every token, which on a slow host costs more than the graph.
        """
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
        return milliseconds_a_step(seconds, steps)

    def capture_step(self, batch: int, prompt: int) -> None:
        """Let its ``generate`` read random prompts and capture its step, for ``graph_milliseconds``."""
        ids = torch.randint(0, 1000, (batch, prompt), device="cuda")
        self._model.generate(ids, max_length=prompt + 2, cg=True, top_k=1, eos_token_id=None)

    def graph_milliseconds(self, batch: int, steps: int, prompt: int = _PROMPT) -> float:
        """Time of its captured step alone, replayed without choosing a token.

        After ``decode_milliseconds``, or ``capture_step`` of the same batch and prompt.
        """
        cache = self._model._decoding_cache
        ids = torch.randint(0, 1000, (batch, 1), device="cuda")
        position = torch.full((batch, 1), prompt, dtype=torch.long, device="cuda")
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.inference_mode():
            cache.run(ids, position, prompt)
            start.record()
            for _ in range(steps):
                cache.run(ids, position, prompt)
            end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / steps


def transformers_model(config: ModelConfig, dtype: str, device: str) -> Any:
    """transformers' model of a shape, with random weights."""
    import transformers

    transformers.logging.set_verbosity_error()  # it warns that its fast path needs other packages
    sizes: dict[str, Any] = {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "vocab_size": config.vocab_size,
    }
    if isinstance(config, Mamba2Config):
        mamba2 = transformers.Mamba2Config(
            **sizes,
            num_heads=config.heads,
            head_dim=config.head_dim,
            n_groups=config.n_groups,
            state_size=config.d_state,
            tie_word_embeddings=config.tie_embeddings,
        )
        model: Any = transformers.Mamba2ForCausalLM(mamba2).eval()
    else:
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    return model.to(device=device, dtype=TORCH_DTYPES[dtype])
