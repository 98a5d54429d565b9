"""What a user meets at transformers' models: one line of what is not taken, and nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers_hybrids import granite, jamba, make, nemotron, transformers

import mamba_export
from mamba_export.adapters import transformers as transformers_adapter
from mamba_export.adapters import transformers_program
from mamba_export.errors import CheckpointError, ExportError


def edited(folder: Path, **fields: Any) -> Path:
    """A checkpoint whose config.json has other fields; None takes one away."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: one for name, one in config.items() if one is not None}))
    return folder


def test_the_command_line_says_its_own_words_alone(tmp_path: Path) -> None:
    """transformers' bars and its advice to install other kernels are not for who exports."""
    granite().save_pretrained(tmp_path / "checkpoint")
    arguments = ["export", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "mamba_export", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for word in ("transformers]", "falling back", "Loading weights"):
        assert word not in done.stderr


def test_last_logits_only(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="last-logits-only"):
        mamba_export.export(make(jamba), tmp_path / "out", last_logits_only=True)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    bert = transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(mamba_export.MambaExportError) as caught:
        mamba_export.export(bert, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["sliding_attention", "no such layer", "two\nlines"])
def test_a_layer_of_a_type_that_is_not_known(name: str, tmp_path: Path) -> None:
    model = make(granite)
    model.save_pretrained(tmp_path / "checkpoint")
    types = ["linear_attention", name, "linear_attention", "full_attention"]
    folder = edited(tmp_path / "checkpoint", layer_types=types)
    with pytest.raises(
        CheckpointError, match=r"config.json: layer 1 is '.*' in layer_types, which is not known"
    ) as caught:
        mamba_export.export(folder, tmp_path / "out")
    assert name.split()[0] in str(caught.value)
    assert "\n" not in str(caught.value)
    model.config.layer_types[1] = name
    with pytest.raises(ExportError, match="GraniteMoeHybridForCausalLM: layer 1 is '"):
        mamba_export.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_letter_of_nemotron_that_is_not_known(tmp_path: Path) -> None:
    make(nemotron).save_pretrained(tmp_path / "checkpoint")
    folder = edited(
        tmp_path / "checkpoint",
        layers_block_type=None,
        layer_types=None,
        hybrid_override_pattern="M-*EMX*",
    )
    with pytest.raises(CheckpointError, match="layer 5 is 'X' in hybrid_override_pattern"):
        mamba_export.export(folder, tmp_path / "out")


def test_rotary_frequencies_that_follow_the_length(tmp_path: Path) -> None:
    model = make(granite)
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ExportError, match="rope_type 'dynamic' changes the keys"):
        mamba_export.export(model, tmp_path / "out")


@pytest.mark.parametrize("fields", [{"mamba_chunk_size": 0}, {"mamba_n_groups": 4}], ids=str)
def test_sizes_that_do_not_fit(fields: dict[str, int], tmp_path: Path) -> None:
    model = make(lambda: granite(**fields))
    with pytest.raises(ExportError, match="GraniteMoeHybridForCausalLM does not run") as caught:
        mamba_export.export(model, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_older_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_program, "installed_versions", lambda name: {name: "5.17.0"})
    with pytest.raises(ExportError, match=r"need transformers 5\.24 or newer, and 5\.17\.0 is"):
        transformers_adapter.make_program(make(granite))


def test_a_modelling_file_of_another_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = make(granite)
    module = transformers_program._modelling_file(model)
    monkeypatch.delattr(module, "mamba2_chunk_scan")
    with pytest.raises(ExportError, match="has no mamba_selective_scan or mamba2_chunk_scan"):
        mamba_export.export(model, tmp_path / "out")
