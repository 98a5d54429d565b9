"""transformers' hybrids of attention and Mamba, as objects and folders: their own logits and greedy text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers_hybrids import (
    MAMBA_1,
    MAMBA_2,
    VOCABULARY,
    bamba,
    falcon_norm_first,
    falcon_without_norm,
    make,
    nemotron,
)

import mamba_export
from mamba_export import OrtSession
from mamba_export.errors import SessionError
from mamba_export.folder.metadata import read_metadata

PARTS = [(1,), (7,), (17,), (64,), (300,), (2,), (23,), (1,) * 23, (5, 1, 17), (63, 1, 33)]
_KINDS = {
    "linear_attention": ("conv_state", "recurrent_state"),
    "full_attention": ("key", "value"),
    "hybrid": ("conv_state", "recurrent_state", "key", "value"),
}

Exported = tuple[Any, Path, Path]
"""The model, its exported folder and its checkpoint's."""


@pytest.fixture(scope="module", params=[*MAMBA_1, *MAMBA_2], ids=lambda one: one.__name__)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = make(request.param)
    folder = tmp_path_factory.mktemp(request.param.__name__)
    model.save_pretrained(folder / "checkpoint")
    return model, mamba_export.export(model, folder / "out"), folder / "checkpoint"


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> np.ndarray:
    """transformers' own, of the whole sequence at once."""
    return model(input_ids=ids, use_cache=False).logits.float().numpy()


def run_in_parts(session: OrtSession, ids: torch.Tensor, parts: tuple[int, ...]) -> np.ndarray:
    found, state, start = [], None, 0
    for part in parts:
        logits, state = session.run(ids[:, start : start + part].numpy(), state)
        found.append(logits)
        start += part
    return np.concatenate(found, axis=1)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max())


def test_one_graph_of_two_kinds_of_state(exported: Exported) -> None:
    model, out, _ = exported
    session = OrtSession(out)
    names = [state.name for state in session.metadata.states]
    assert names == [
        f"past_key_values.{index}.{kind}"
        for index, layer in enumerate(model.config.layer_types)
        for kind in _KINDS.get(layer, ())
    ]
    grows = {state.name.rpartition(".")[2] for state in session.metadata.states if state.grows}
    assert grows == {"key", "value"}
    end = model.config.eos_token_id
    assert session.metadata.end_tokens == (tuple(end) if isinstance(end, list) else (end,))


def test_every_scan_is_a_node(exported: Exported) -> None:
    model, out, _ = exported
    layers = sum("conv_state" in _KINDS.get(layer, ()) for layer in model.config.layer_types)
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    nodes = Counter(node.op_type for node in graph.node if node.domain == "mamba_export")
    if model.config.model_type in ("jamba", "zamba"):
        scans = layers * getattr(model.config, "n_mamba_heads", 1)
        assert nodes == {"CausalConv1d": layers, "SelectiveScan": scans}
    else:
        assert nodes == {
            "CausalConv1d": layers,
            "StateSpaceDual": layers,
            "GatedRmsNorm": layers,
        }


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: f"{len(parts)} calls, {sum(parts)}")
def test_logits_are_those_of_transformers_at_any_length_and_split(
    exported: Exported, parts: tuple[int, ...]
) -> None:
    model, out, _ = exported
    ids = torch.randint(0, VOCABULARY, (3, sum(parts)))
    found = run_in_parts(OrtSession(out), ids, parts)
    assert close(found, logits_of(model, ids))


@pytest.mark.parametrize("length", [1, 7, 17, 64])
def test_greedy_text_is_that_of_generate(exported: Exported, length: int) -> None:
    model, out, _ = exported
    ends = OrtSession(out).metadata.end_tokens
    ids = torch.randint(3, VOCABULARY, (2, length))
    # Without its cache: its single steps leave the limits of dt out, where a model has them.
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        use_cache=False,
    )[:, length:].tolist()
    found = OrtSession(out).generate(ids.numpy(), max_new_tokens=20).sequences
    for row, sequence in zip(expected, found, strict=True):
        text = row[: next((i for i, token in enumerate(row) if token in ends), len(row))]
        tokens = [token for token in sequence.tokens if token not in ends]
        assert tokens == text


def test_what_generation_cannot_do_is_one_line(exported: Exported) -> None:
    session = OrtSession(exported[1])
    with pytest.raises(SessionError, match="no option 'num_beams'"):
        session.generate([[3, 4]], num_beams=4)
    with pytest.raises(SessionError, match="prompts of 2 and 3 tokens in one call"):
        session.generate([[3, 4, 5], [6, 7]], max_new_tokens=2)


def test_it_verifies_and_a_folder_gives_the_same(exported: Exported, tmp_path: Path) -> None:
    model, out, checkpoint = exported
    report = mamba_export.verify(out, model=model, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    again = mamba_export.export(checkpoint, tmp_path / "again")
    for name in ("model.onnx", "model.onnx.data"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_the_model_is_left_as_it_was(exported: Exported) -> None:
    model, _, checkpoint = exported
    fresh = type(model).from_pretrained(checkpoint).eval()
    ids = torch.randint(0, VOCABULARY, (1, 9))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, fresh(input_ids=ids).logits)


@pytest.mark.parametrize(
    "builder", [falcon_without_norm, falcon_norm_first], ids=lambda one: one.__name__
)
def test_other_forms_of_the_gate(builder: Any, tmp_path: Path) -> None:
    model = make(builder)
    session = OrtSession(mamba_export.export(model, tmp_path / "out"))
    ids = torch.randint(0, VOCABULARY, (2, 21))
    assert close(run_in_parts(session, ids, (4, 1, 16)), logits_of(model, ids))


def test_limits_of_dt_hold_at_every_step(tmp_path: Path) -> None:
    """transformers has them in a prompt alone; ours are those of the prompt, whatever the split."""
    model = make(lambda: bamba(dt_limit=(0.3, 0.6)))
    session = OrtSession(mamba_export.export(model, tmp_path / "out"))
    ids = torch.randint(0, VOCABULARY, (2, 19))
    expected = logits_of(model, ids)
    assert close(run_in_parts(session, ids, (19,)), expected)
    assert close(run_in_parts(session, ids, (1,) * 19), expected)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :18], use_cache=True).cache
        step = model(input_ids=ids[:, 18:], cache=cache, use_cache=True).logits.numpy()
    assert not close(step, expected[:, 18:])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_narrow_dtypes(dtype: str, tmp_path: Path) -> None:
    """Experts that are chosen in fp32, and logits that transformers widens."""
    model = make(nemotron)
    out = mamba_export.export(model, tmp_path / "out", dtype=dtype)
    report = mamba_export.verify(out, model=model, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert read_metadata(out).outputs[0].dtype == dtype
