"""Mamba-2 out of PyTorch: one graph for any length, states in and out, against transformers' own Mamba2."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_checkpoints_mamba2 import PUBLISHED, TINY_CFG, make_truth, tokens
from typer.testing import CliRunner

from mamba_export import verify
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.cli.app import app
from mamba_export.contract import MAMBA2_LAYER
from mamba_export.errors import ExportError, MambaExportError
from mamba_export.export import export
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.folder.metadata import read_metadata
from mamba_export.models import (
    LayerState,
    Mamba2Config,
    MambaBackbone,
    MambaConfig,
    MambaLM,
    ModelConfig,
)
from mamba_export.models.language_model import layers_as_nodes

LENGTHS = (1, 7, 17, 64, 300)
BYTES = {"vocab_size": 256, "eos_token_id": None, "pad_token_id": None, "bos_token_id": None}
FP32_BOUND = 1e-4  # the project's promise for whole models


@pytest.fixture(scope="module")
def truth() -> Any:
    model = make_truth(**BYTES)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def checkpoint(truth: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mamba2") / "model"
    truth.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("mamba2") / "out")


@pytest.fixture(scope="module")
def session(exported: Path) -> OrtSession:
    return OrtSession(exported, threads=1)


def error(found: np.ndarray, expected: torch.Tensor) -> float:
    wanted = expected.double().numpy()
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@torch.no_grad()
def test_one_file_at_every_length_equals_transformers(truth: Any, session: OrtSession) -> None:
    for length, batch in (*((n, 1) for n in LENGTHS), (17, 3), (65, 3)):
        ids = tokens(length, batch, 256)
        logits, _ = session.run(ids.numpy())
        assert error(logits, truth(ids).logits) < FP32_BOUND, (length, batch)


@torch.no_grad()
def test_any_split_equals_the_whole(truth: Any, session: OrtSession) -> None:
    ids = tokens(70, 2, 256)
    expected = truth(ids).logits
    for parts in ((1,) * 70, (64, 6), (33, 1, 36)):
        state, found = None, []
        for part in ids.split(parts, dim=1):
            logits, state = session.run(part.numpy(), state)
            found.append(logits)
        assert error(np.concatenate(found, 1), expected) < FP32_BOUND, parts


@torch.no_grad()
def test_greedy_text_equals_transformers_generate(truth: Any, session: OrtSession) -> None:
    prompt = "In the beginning"
    ids = torch.tensor([list(prompt.encode())])
    expected = truth.generate(ids, max_new_tokens=50, do_sample=False)[0, ids.shape[1] :].tolist()
    assert len(set(expected)) > 10
    (found,) = session.generate(prompt, max_new_tokens=50)
    assert found.tokens == expected


def test_graph_and_metadata(exported: Path) -> None:
    graph = onnx.load(exported / "model.onnx", load_external_data=False).graph
    assert our_nodes(exported) == {"Mamba2Layer": 2}
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read, "nothing is left over"
    metadata = read_metadata(exported)
    layout = {state.past.name: (state.past.dtype, state.past.shape) for state in metadata.states}
    assert layout["past_key_values.1.conv_state"] == ("fp32", ("batch", 48 + 2 * 2 * 8, 3))
    assert layout["past_key_values.1.recurrent_state"] == ("fp32", ("batch", 6, 8, 8))
    assert metadata.model is not None
    config = ModelConfig.from_fields(metadata.model)
    assert isinstance(config, Mamba2Config)
    assert (config.heads, config.n_groups, config.vocab_size) == (6, 2, 256)


def our_nodes(folder: Path) -> Counter[str]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return Counter(node.op_type for node in graph.node if node.domain == "mamba_export")


def test_inputs_of_a_layer_are_in_the_contracts_order(exported: Path) -> None:
    graph = onnx.load(exported / "model.onnx", load_external_data=False).graph
    layer = [node for node in graph.node if node.op_type == "Mamba2Layer"][1]
    prefix = "backbone.layers.1."
    assert dict(zip([row.name for row in MAMBA2_LAYER.inputs], layer.input, strict=True)) == {
        "hidden": layer.input[0],
        "norm_weight": prefix + "norm.weight",
        "in_proj_weight": prefix + "mixer.in_proj.weight",
        "conv_weight": prefix + "mixer.conv1d.weight",
        "conv_bias": prefix + "mixer.conv1d.bias",
        "dt_bias": prefix + "mixer.dt_bias",
        "A": prefix + "mixer.A",
        "D": prefix + "mixer.D",
        "gate_norm_weight": prefix + "mixer.norm.weight",
        "out_proj_weight": prefix + "mixer.out_proj.weight",
        "conv_state": "past_key_values.1.conv_state",
        "recurrent_state": "past_key_values.1.recurrent_state",
    }


@torch.no_grad()
def test_single_nodes_are_the_same_and_compute_no_sizes(
    truth: Any, checkpoint: Path, tmp_path: Path
) -> None:
    """Heads are cut out of channels by constant shapes: nothing is computed of sizes at every step."""
    folder = export(checkpoint, tmp_path / "out", fuse_layers=False)
    assert our_nodes(folder) == {"CausalConv1d": 2, "StateSpaceDual": 2, "GatedRmsNorm": 2}
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    assert {"Shape", "Concat"}.isdisjoint({node.op_type for node in graph.node})
    session = OrtSession(folder, threads=1)
    for length, batch in ((1, 1), (17, 3)):
        ids = tokens(length, batch, 256)
        assert error(session.run(ids.numpy())[0], truth(ids).logits) < FP32_BOUND


LAYERS: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({}, True),
    "no bias of the convolution": ({"conv_bias": False}, True),
    "skip of each channel": ({"skip_per_channel": True}, True),
    "limits": ({"dt_limit_min": 0.01, "dt_limit_max": 0.1}, True),
    "residual in the weights' dtype": ({"residual_in_fp32": False}, True),
    "projections with a bias": ({"bias": True}, False),
    "gate alone": ({"gated_norm": False}, False),
    "norm before the gate": ({"norm_before_gate": True}, False),
}


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_a_layer_as_a_node_is_the_module(case: str) -> None:
    options, fits = LAYERS[case]
    config = Mamba2Config(
        d_model=24, n_layer=2, vocab_size=64, d_state=8, head_dim=8, n_groups=2, **options
    )
    model = MambaLM(config).eval()
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    ids = tokens(9, 2, 64)
    past = [LayerState(*(torch.randn_like(t) for t in one)) for one in model.initial_state(2)]
    expected, from_zeros = model(ids, past), model(ids)
    with layers_as_nodes(model):
        assert all(layer.as_node == fits for layer in model.backbone.layers)
        torch.testing.assert_close(model(ids, past), expected)
        torch.testing.assert_close(model(ids), from_zeros)


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [("fp32", None), ("fp16", None), ("fp16", "fp16")],
    ids=str,
)
def test_verify_is_green(
    checkpoint: Path, tmp_path: Path, dtype: str, state_dtype: str | None
) -> None:
    folder = export(checkpoint, tmp_path / "out", dtype=dtype, state_dtype=state_dtype)
    states = {state.name: state.past.dtype for state in read_metadata(folder).states}
    assert states["past_key_values.0.recurrent_state"] == (state_dtype or "fp32")
    assert states["past_key_values.0.conv_state"] == dtype
    report = verify(folder, quick=True, backends=["cpu"])
    assert [check for check in report.checks if not check.passed] == []
    assert report.passed


def test_bf16_states(checkpoint: Path, tmp_path: Path) -> None:
    folder = export(checkpoint, tmp_path / "out", dtype="bf16", state_dtype="bf16")
    assert {state.past.dtype for state in read_metadata(folder).states} == {"bf16"}
    report = verify(folder, quick=True, backends=["native"])
    assert [check for check in report.checks if not check.passed] == []
    assert not any(name.endswith("whole model") for name in report.not_run)


def test_verify_finds_a_changed_weight_and_another_model(
    checkpoint: Path, truth: Any, exported: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"has mixer mamba and .* mamba2"):
        verify(exported, model=MambaLM(MambaConfig(d_model=24, n_layer=2, vocab_size=256)))
    other = make_truth(**BYTES)
    with torch.no_grad():
        other.backbone.layers[1].mixer.D[3] += 1e-3
    other.save_pretrained(tmp_path / "other")
    report = verify(exported, model=tmp_path / "other", quick=True, backends=["cpu"])
    failed = [check for check in report.checks if not check.passed]
    assert failed[0].check == "weights"
    assert failed[0].where.startswith("backbone.layers.1.mixer.D[3")


def test_state_dtypes_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    def refused(words: str, model: Any = checkpoint, **options: Any) -> None:
        with pytest.raises(MambaExportError, match=words) as caught:
            export(model, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    words = "--state-dtype is bf16: recurrent states of mamba2 in fp16 may be fp32 or fp16"
    refused(words, dtype="fp16", state_dtype="bf16")
    refused("--state-dtype is fp16: .* of mamba2 in fp32 may be fp32", state_dtype="fp16")
    refused("state_dtype 'int8' is unknown", state_dtype="int8")
    mamba1 = MambaLM(MambaConfig(d_model=8, n_layer=1, vocab_size=16))
    refused(
        "recurrent states of mamba in fp16 may be fp32", mamba1, dtype="fp16", state_dtype="fp16"
    )


def test_backbone_exports(tmp_path: Path) -> None:
    config = Mamba2Config(
        d_model=24, n_layer=1, head_dim=8, d_state=8, gated_norm=False, skip_per_channel=True,
        dt_limit_max=0.05,
    )  # fmt: skip
    backbone = MambaBackbone(config).eval()
    folder = export(backbone, tmp_path / "out")
    report = verify(folder, model=backbone, quick=True, backends=["cpu"])
    assert [check for check in report.checks if not check.passed] == []
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    assert "StateSpaceDualGated" in {node.op_type for node in graph.node}


def test_transformers_model_in_memory_exports(truth: Any, tmp_path: Path) -> None:
    folder = export(truth, tmp_path / "out")
    logits, _ = OrtSession(folder, threads=1).run(tokens(9, 1, 256).numpy())
    with torch.no_grad():
        assert error(logits, truth(tokens(9, 1, 256)).logits) < FP32_BOUND


def test_genais_generator_agrees(truth: Any, checkpoint: Path, tmp_path: Path) -> None:
    og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    folder = export(checkpoint, tmp_path / "out", last_logits_only=True)
    ids = tokens(7, 2, 256)
    expected = truth.generate(ids, max_new_tokens=20, do_sample=False)
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=27, batch_size=2)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids.tolist())
    while not generator.is_done():
        generator.generate_next_token()
    found = [[int(token) for token in generator.get_sequence(row)] for row in range(2)]
    assert found == expected.tolist()


def test_commands(checkpoint: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "out", CliRunner().invoke
    options = ["--dtype", "fp16", "--state-dtype", "fp16"]
    made = run(app, ["export", str(checkpoint), "-o", str(out), *options])
    assert made.exit_code == 0, made.output
    told = run(app, ["run", str(out), "--prompt", "In", "--max-new-tokens", "5", "--json"])
    assert told.exit_code == 0, told.output
    assert len(json.loads(told.stdout)["generations"][0]["tokens"]) == 5
    refused = run(app, ["export", str(checkpoint), "-o", str(out), "--state-dtype", "fp8"])
    assert refused.exit_code == 2


def test_state_spaces_folder_exports(tmp_path: Path) -> None:
    """As published: config.json with ssm_cfg, pytorch_model.bin with its names, no tokenizer."""
    truth = make_truth(tie_word_embeddings=True)
    names = {
        name.replace("backbone.embeddings.", "backbone.embedding."): tensor
        for name, tensor in truth.state_dict().items()
    }
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**PUBLISHED, "ssm_cfg": TINY_CFG}))
    torch.save(names, folder / "pytorch_model.bin")
    with pytest.warns(match=r"holds no tokenizer\.json"):
        out = export(folder, tmp_path / "out")
    logits, _ = OrtSession(out, threads=1).run(tokens(17).numpy())
    with torch.no_grad():
        assert error(logits, truth(tokens(17)).logits) < FP32_BOUND
    assert read_metadata(out).source["kind"] == "state-spaces"
