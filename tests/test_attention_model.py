"""The Transformer that Mamba is compared with: its export with a growing cache, against formulas in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trt_stand_in import on_engine

import mamba_export
from mamba_export.errors import MambaExportError, SessionError
from mixers.attention import FURTHEST, AttentionConfig, AttentionLM, attention_program

CONFIG = AttentionConfig(24, 2, 11, n_heads=4, n_kv_heads=2, mlp_width=20, rotary_base=100.0)


@pytest.fixture(scope="module")
def model() -> AttentionLM:
    torch.manual_seed(0)
    made = AttentionLM(CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


def truth(model: AttentionLM, tokens: np.ndarray) -> np.ndarray:
    """Logits of whole sequences in float64, step by step, positions as distances."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    heads, shared, width = CONFIG.n_heads, CONFIG.n_heads // CONFIG.key_heads, CONFIG.head_dim
    turns = CONFIG.rotary_base ** (-np.arange(width // 2) / (width // 2))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[name]

    def turned(x: np.ndarray, steps: np.ndarray) -> np.ndarray:
        pairs = (x[..., : width // 2] + 1j * x[..., width // 2 :]) * np.exp(1j * steps * turns)
        return np.concatenate([pairs.real, pairs.imag], -1)

    x = w["embeddings.weight"][tokens]
    batch, length, _ = x.shape
    for layer in range(CONFIG.n_layer):
        at = f"layers.{layer}."
        qkv = norm(x, at + "norm.weight") @ w[at + "attention.in_proj.weight"].T
        q, k, v = np.split(
            qkv.reshape(batch, length, -1, width), [heads, heads + CONFIG.key_heads], axis=2
        )
        y = np.zeros((batch, length, heads, width))
        for t in range(length):
            distance = t - np.arange(t + 1)[:, None]
            for head in range(heads):
                # Of query and key the distance alone counts: the query is turned by it, the keys stay.
                asked = turned(q[:, t, None, head], distance)
                scores = (asked * k[:, : t + 1, head // shared]).sum(-1) / np.sqrt(width)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                y[:, t, head] = np.einsum("bs,bsd->bd", weights, v[:, : t + 1, head // shared])
        x = x + y.reshape(batch, length, -1) @ w[at + "attention.out_proj.weight"].T
        inner = norm(x, at + "mlp_norm.weight") @ w[at + "mlp.in_proj.weight"].T
        gate, value = np.split(inner, 2, -1)
        x = x + (gate / (1 + np.exp(-gate)) * value) @ w[at + "mlp.out_proj.weight"].T
    return norm(x, "norm_f.weight") @ w["embeddings.weight"].T


def tokens_of(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(CONFIG.vocab_size, size=(batch, length))


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-5), ("fp16", 2.0**-7)])
def test_the_exported_file_whole_and_in_any_split(
    model: AttentionLM, tmp_path: Path, dtype: str, bound: float
) -> None:
    tokens = tokens_of(3, 40)
    expected = truth(model, tokens)
    cast = AttentionLM(CONFIG)
    cast.load_state_dict(model.state_dict())
    program = attention_program(cast.half() if dtype == "fp16" else cast)
    session = mamba_export.OrtSession(mamba_export.export(program, tmp_path / "out"), threads=1)
    assert session.metadata.dtype == dtype
    for parts in ((40,), (1,) * 40, (33, 1, 6), (2, 38)):
        found, state, read = [], session.initial_state(3), 0
        for part in np.split(tokens, np.cumsum(parts)[:-1], axis=1):
            logits, state = session.run(part, state)
            found.append(logits)
            read += part.shape[1]
            shapes = {array.shape for array in state.numpy()}
            assert shapes == {(3, CONFIG.key_heads, read, CONFIG.head_dim)}
        error = np.concatenate(found, axis=1).astype(np.float64) - expected
        assert np.linalg.norm(error) <= bound * np.linalg.norm(expected)


def test_the_exported_file_refuses_what_its_positions_do_not_reach(tmp_path: Path) -> None:
    model = AttentionLM(AttentionConfig(8, 2, 11, n_heads=2, longest=8)).eval()
    folder = mamba_export.export(attention_program(model), tmp_path / "out")
    words = r"would have 9 steps, and this model's positions end at 8: start anew from a shorter"
    tokens = tokens_of(2, 9)
    for session in (mamba_export.OrtSession(folder, threads=1), on_engine(folder)):
        assert [state.longest for state in session.metadata.states] == [8] * 4
        for read in (session.run, session.advance):
            with pytest.raises(SessionError, match=words):
                read(tokens)
        _, state = session.run(tokens[:, :7])
        stepper = session.stepper(state)
        stepper.step(tokens[:, 7])
        with pytest.raises(SessionError, match=words):
            stepper.step(tokens[:, 8])
        assert stepper.state.numpy()[0].shape[2] == 8
        prompt = tokens[0, :5].tolist()
        with pytest.raises(SessionError, match=words):
            session.generate([prompt], max_new_tokens=5)
        session.generate([prompt], max_new_tokens=4)


def test_in_pytorch_whole_and_in_parts_with_the_last_logits_alone(model: AttentionLM) -> None:
    tokens = tokens_of(2, 21)
    expected = truth(model, tokens)
    with torch.no_grad():
        ids = torch.from_numpy(tokens)
        whole, _ = model(ids)
        _, state = model(ids[:, :20], model.initial_state(2))
        last, _ = model(ids[:, 20:], state, last_logits_only=True)
    assert np.linalg.norm(whole.numpy() - expected) <= 1e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(last[:, 0].numpy() - expected[:, -1]) <= 1e-5 * np.linalg.norm(expected)
    assert attention_program(model, last_logits_only=True).outputs[0].shape == ("batch", 1, 11)


def test_a_sequence_beyond_its_positions_is_refused_in_one_line() -> None:
    model = AttentionLM(AttentionConfig(8, 1, 5, n_heads=2, longest=6))
    _, state = model(torch.zeros(1, 4, dtype=torch.long), model.initial_state(1))
    model(torch.zeros(1, 2, dtype=torch.long), state)
    with pytest.raises(
        MambaExportError, match=r"has 7 tokens, and this model's positions end at 6"
    ):
        model(torch.zeros(1, 3, dtype=torch.long), state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_heads": 3}, "d_model is 8, expected a multiple of 2 n_heads, 6"),
        ({"n_kv_heads": 3}, "n_kv_heads is 3, expected a divisor of n_heads, 4"),
        ({"vocab_size": 0}, "vocab_size is 0, expected"),
        ({"longest": FURTHEST + 1}, "longest is 16777217, expected"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sizes_that_do_not_fit_are_named(fields: dict[str, int], message: str) -> None:
    sizes = {"d_model": 8, "n_layer": 1, "vocab_size": 5, "n_heads": 4, **fields}
    with pytest.raises(MambaExportError, match=message):
        AttentionConfig(**sizes)
