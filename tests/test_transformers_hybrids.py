"""transformers' Jamba and Zamba, as objects and folders: their own logits, and their own greedy text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mamba_export
from mamba_export import OrtSession
from mamba_export.errors import ExportError, SessionError

transformers = pytest.importorskip("transformers")

VOCABULARY = 61


def jamba() -> Any:
    """Scan, attention with experts, scan, attention."""
    config = transformers.JambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=4,
        mamba_dt_rank=3,
        pad_token_id=0,
        eos_token_id=[1, 2],
    )
    return transformers.JambaForCausalLM(config)


def zamba() -> Any:
    """Layers of heads, two of which share their attention."""
    config = transformers.ZambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_mamba_heads=2,
        mamba_d_state=4,
        mamba_dt_rank=3,
        attn_layer_period=2,
        attn_layer_offset=1,
        attention_hidden_size=32,
        attention_head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.ZambaForCausalLM(config)


@pytest.fixture(scope="module", params=[jamba, zamba], ids=["jamba", "zamba"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, Path]:
    """The model, its exported folder and its checkpoint's; logits spread, so that an argmax means something."""
    torch.manual_seed(0)
    model = request.param().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    folder = tmp_path_factory.mktemp(request.param.__name__)
    model.save_pretrained(folder / "checkpoint")
    return model, mamba_export.export(model, folder / "out"), folder / "checkpoint"


def test_one_graph_of_two_kinds_of_state(exported: tuple[Any, Path, Path]) -> None:
    model, out, _ = exported
    session = OrtSession(out)
    grows = [state.name for state in session.metadata.states if state.grows is not None]
    fixed = [state.name for state in session.metadata.states if state.grows is None]
    assert [name.rpartition(".")[2] for name in grows] == ["key", "value"] * 2
    layers = len(fixed) // 2
    assert [name.rpartition(".")[2] for name in fixed] == ["conv_state", "recurrent_state"] * layers
    assert session.metadata.end_tokens == ((1, 2) if "Jamba" in type(model).__name__ else (1,))


@pytest.mark.parametrize("parts", [(23,), (1,) * 23, (5, 1, 17), (1,), (2,)], ids=str)
def test_logits_are_those_of_transformers_at_any_length_and_split(
    exported: tuple[Any, Path, Path], parts: tuple[int, ...]
) -> None:
    model, out, _ = exported
    session = OrtSession(out)
    ids = torch.randint(0, VOCABULARY, (3, sum(parts)))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits.numpy()
    found, state, start = [], None, 0
    for part in parts:
        logits, state = session.run(ids[:, start : start + part].numpy(), state)
        found.append(logits)
        start += part
    error = np.abs(np.concatenate(found, axis=1) - expected).max()
    assert error <= 1e-4 * np.abs(expected).max()


def test_greedy_text_is_that_of_generate(exported: tuple[Any, Path, Path]) -> None:
    model, out, _ = exported
    ids = torch.randint(3, VOCABULARY, (1, 7))
    expected = model.generate(ids, max_new_tokens=30, do_sample=False)[0, 7:].tolist()
    found = OrtSession(out).generate(ids.numpy(), max_new_tokens=30).sequences[0].tokens
    assert list(found) == [token for token in expected if token not in (1, 2)][: len(found)]
    assert len(found) in (len(expected), len(expected) - 1)  # with or without the end token


def test_what_generation_cannot_do_is_one_line(exported: tuple[Any, Path, Path]) -> None:
    session = OrtSession(exported[1])
    with pytest.raises(SessionError, match="no option 'num_beams'"):
        session.generate([[3, 4]], num_beams=4)
    with pytest.raises(SessionError, match="prompts of 2 and 3 tokens in one call"):
        session.generate([[3, 4, 5], [6, 7]], max_new_tokens=2)


def test_it_verifies_and_a_folder_gives_the_same(
    exported: tuple[Any, Path, Path], tmp_path: Path
) -> None:
    model, out, checkpoint = exported
    report = mamba_export.verify(out, model=model, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    again = mamba_export.export(checkpoint, tmp_path / "again")
    for name in ("model.onnx", "model.onnx.data"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_the_model_is_left_as_it_was(exported: tuple[Any, Path, Path]) -> None:
    model, _, checkpoint = exported
    fresh = type(model).from_pretrained(checkpoint).eval()
    ids = torch.randint(0, VOCABULARY, (1, 9))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, fresh(input_ids=ids).logits)


def test_what_cannot_be_is_one_line(exported: tuple[Any, Path, Path], tmp_path: Path) -> None:
    model, _, _ = exported
    with pytest.raises(ExportError, match="last-logits-only"):
        mamba_export.export(model, tmp_path / "out", last_logits_only=True)
    bert = transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(mamba_export.MambaExportError) as caught:
        mamba_export.export(bert, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
