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
    granite,
    jamba,
    make,
    nemotron,
)

import mamba_export
from mamba_export import OrtSession
from mamba_export.adapters.transformers import cast, make_program
from mamba_export.errors import MambaExportWarning, SessionError
from mamba_export.models import TORCH_DTYPES

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
    with pytest.warns(MambaExportWarning, match="holds no tokenizer.json"):
        out = mamba_export.export(folder / "checkpoint", folder / "out")
    return model, out, folder / "checkpoint"


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


@torch.no_grad()
def run_in_pytorch(model: Any, ids: torch.Tensor, parts: tuple[int, ...]) -> np.ndarray:
    """The program that is traced, as it is."""
    program = make_program(model)
    sizes = {"batch": ids.shape[0], "past_length": 0}
    states = [
        torch.zeros(state.past.resolve(sizes), dtype=TORCH_DTYPES[state.past.dtype])
        for state in program.states
    ]
    found, start = [], 0
    for part in parts:
        logits, *states = program.module(ids[:, start : start + part], *states)
        found.append(logits.float().numpy())
        start += part
    return np.concatenate(found, axis=1)


def text_of(model: Any, ids: torch.Tensor, count: int, **options: Any) -> list[list[int]]:
    """transformers' own, without its cache: its single steps leave the limits of dt out."""
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        use_cache=False,
        **options,
    )
    return found[:, ids.shape[1] :].tolist()


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


def test_greedy_text_is_that_of_generate(exported: Exported) -> None:
    model, out, _ = exported
    session = OrtSession(out)
    ends = session.metadata.end_tokens
    for length in (1, 7, 17, 64, 300):
        ids = torch.randint(3, VOCABULARY, (2, length))
        found = session.generate(ids.numpy(), max_new_tokens=9).sequences
        for row, sequence in zip(text_of(model, ids, 9), found, strict=True):
            end = next((i for i, token in enumerate(row) if token in ends), len(row))
            assert [token for token in sequence.tokens if token not in ends] == row[:end]


def test_genai_drives_the_folder(exported: Exported) -> None:
    og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model, out, _ = exported
    ids, length = torch.randint(3, VOCABULARY, (2, 7)), 16
    opened = og.Model(str(out))
    parameters = og.GeneratorParams(opened)
    parameters.set_search_options(max_length=length, min_length=length, batch_size=2)
    generator = og.Generator(opened, parameters)
    generator.append_tokens(ids.tolist())
    while not generator.is_done():
        generator.generate_next_token()
    found = [[int(token) for token in generator.get_sequence(row)][7:] for row in range(2)]
    assert found == text_of(model, ids, length - 7, min_new_tokens=length - 7)


def test_what_generation_cannot_do_is_one_line(exported: Exported) -> None:
    session = OrtSession(exported[1])
    with pytest.raises(SessionError, match="no option 'num_beams'"):
        session.generate([[3, 4]], num_beams=4)
    with pytest.raises(SessionError, match="prompts of 2 and 3 tokens in one call"):
        session.generate([[3, 4, 5], [6, 7]], max_new_tokens=2)


def test_it_verifies(exported: Exported) -> None:
    """A folder's file against the model in memory."""
    model, out, _ = exported
    report = mamba_export.verify(out, model=model, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]


@pytest.mark.parametrize("exported", [jamba, granite], ids=lambda one: one.__name__, indirect=True)
def test_an_object_gives_the_file_of_its_folder(exported: Exported, tmp_path: Path) -> None:
    """One of each generation; the others are tested as objects in PyTorch, below."""
    model, out, _ = exported
    again = mamba_export.export(model, tmp_path / "again")
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_the_model_is_left_as_it_was(exported: Exported) -> None:
    model, _, checkpoint = exported
    fresh = type(model).from_pretrained(checkpoint).eval()
    ids = torch.randint(0, VOCABULARY, (1, 9))
    torch.testing.assert_close(model.state_dict(), fresh.state_dict(), rtol=0, atol=0)
    # Products of experts differ in their last bit with the place of a weight in memory.
    np.testing.assert_allclose(logits_of(model, ids), logits_of(fresh, ids), atol=1e-6)


@pytest.mark.parametrize(
    "builder", [falcon_without_norm, falcon_norm_first], ids=lambda one: one.__name__
)
def test_other_forms_of_the_gate(builder: Any) -> None:
    model = make(builder)
    ids = torch.randint(0, VOCABULARY, (2, 21))
    assert close(run_in_pytorch(model, ids, (4, 1, 16)), logits_of(model, ids))


def test_limits_of_dt_hold_at_every_step() -> None:
    """transformers has them in a prompt alone; ours are those of the prompt, whatever the split."""
    model = make(bamba)
    ids = torch.randint(0, VOCABULARY, (2, 19))
    expected = logits_of(model, ids)
    assert close(run_in_pytorch(model, ids, (1,) * 19), expected)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :18], use_cache=True).cache
        step = model(input_ids=ids[:, 18:], cache=cache, use_cache=True).logits.numpy()
    assert not close(step, expected[:, 18:])


def test_fp16(tmp_path: Path) -> None:
    """Experts that are chosen in fp32, and logits that transformers widens."""
    model = make(nemotron)
    out = mamba_export.export(model, tmp_path / "out", dtype="fp16")
    assert OrtSession(out).metadata.outputs[0].dtype == "fp16"
    report = mamba_export.verify(out, model=model, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]


@pytest.mark.parametrize("builder", MAMBA_2, ids=lambda one: one.__name__)
def test_bf16(builder: Any) -> None:
    """No further from fp32 than transformers' own bf16 is, give or take its rounding."""
    model = make(builder)
    ids = torch.randint(0, VOCABULARY, (2, 21))
    expected = logits_of(model, ids)
    narrow: Any = cast(model, torch.bfloat16)
    narrow.set_experts_implementation("eager")  # the default one wants widths of 8
    theirs = np.linalg.norm(logits_of(narrow, ids) - expected)
    ours = np.linalg.norm(run_in_pytorch(narrow, ids, (20, 1)) - expected)
    assert ours <= 1.5 * theirs + 2**-8 * np.linalg.norm(expected)
