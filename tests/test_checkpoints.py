"""Checkpoints: what transformers saves, we load, and the logits agree; what is broken is refused."""

from __future__ import annotations

import functools
import http.server
import json
import os
import pickle
import resource
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_export.errors import CheckpointError
from mamba_export.models import Mamba, MambaConfig, MambaLM, checkpoints

TINY = {"hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 96}

# Bound on the largest logits difference, relative to the largest logit. The project promises 1e-4.
FP32_BOUND = 1e-5


@pytest.fixture(autouse=True)
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, and no advice to install kernels: the slow path is the truth here."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    transformers.utils.logging.set_verbosity_warning()


@torch.no_grad()
def transformers_model(falcon: bool = False, seed: int = 0, **options: Any) -> torch.nn.Module:
    """Random model of transformers: every parameter matters, logits are of order 1.

    Well conditioned too: with gains of 1.5 in place of 1 transformers' own fp32 logits at the 130M
    shape are 2e-4 away from float64's, and agreement would say little.
    """
    torch.manual_seed(seed)
    config_class = transformers.FalconMambaConfig if falcon else transformers.MambaConfig
    model_class = transformers.FalconMambaForCausalLM if falcon else transformers.MambaForCausalLM
    model = model_class(config_class(**{**TINY, **options})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm_f.weight", ".D")):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("A_log"):
            parameter += 0.3 * torch.randn_like(parameter)
        elif name.endswith("dt_proj.bias"):
            parameter += 2.0  # steps of 0.01 to 0.5 rather than 0.001 to 0.1
        elif name.endswith(("conv1d.weight", ".bias")):
            parameter.normal_(std=0.5)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def save_transformers(folder: Path, **options: Any) -> torch.nn.Module:
    """Save a random model with transformers itself; its model is the truth."""
    shard = options.pop("max_shard_size", "5GB")
    model = transformers_model(**options)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def save_state_spaces(folder: Path, model: torch.nn.Module, **config: Any) -> None:
    """Write a model of transformers as the state-spaces authors publish theirs."""
    folder.mkdir()
    state = {
        name.replace("embeddings.", "embedding."): tensor.clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    state["lm_head.weight"] = state["backbone.embedding.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    fields = {
        "d_model": model.config.hidden_size,
        "n_layer": model.config.num_hidden_layers,
        "vocab_size": model.config.vocab_size - 3,  # padded up to a multiple of 8
        "ssm_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    (folder / "config.json").write_text(json.dumps({**fields, **config}))


def tokens(vocab: int = 96, batch: int = 2, length: int = 17) -> Tensor:
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(ours: Tensor, truth: Tensor) -> float:
    """Largest difference, relative to the largest value; never less than it is for NaN."""
    assert ours.shape == truth.shape
    assert truth.abs().max() > 0.5, "the logits are too small to compare anything"
    assert ours.isfinite().all()
    return ((ours - truth).abs().max() / truth.abs().max()).item()


@torch.no_grad()
def stepped(model: MambaLM, input_ids: Tensor, parts: list[int]) -> Tensor:
    """Logits of a sequence fed in parts, the state handed on."""
    state, outputs = None, []
    for part in input_ids.split(parts, dim=1):
        logits, state = model(part, state)
        outputs.append(logits)
    return torch.cat(outputs, dim=1)


# ---- agreement with transformers -------------------------------------------------------------

OPTIONS = {
    "default": {},
    "use_bias": {"use_bias": True},
    "no_conv_bias": {"use_conv_bias": False},
    "untied": {"tie_word_embeddings": False},
    "state8_conv3_expand3": {"state_size": 8, "conv_kernel": 3, "expand": 3},
    "state1_conv2_expand1": {"state_size": 1, "conv_kernel": 2, "expand": 1},
    "intermediate_size": {"expand": 16, "intermediate_size": 40},
    "rank5": {"time_step_rank": 5},
    "epsilon": {"layer_norm_epsilon": 0.1},
    "residual_in_weights_dtype": {"residual_in_fp32": False},
    "sharded": {"max_shard_size": "20KB"},
    "falcon": {"falcon": True},
    "falcon_untied_bias_eps": {
        "falcon": True, "tie_word_embeddings": False, "use_bias": True, "mixer_rms_eps": 0.1,
    },
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_logits_equal_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    truth = save_transformers(tmp_path, **options)
    checkpoint = checkpoints.load(tmp_path)
    input_ids = tokens()
    with torch.no_grad():
        expected = truth(input_ids).logits
        whole, _ = checkpoint.model(input_ids)
    assert checkpoint.architecture == ("falcon_mamba" if options.get("falcon") else "mamba")
    assert checkpoint.format == "transformers"
    assert difference(whole, expected) < FP32_BOUND
    assert difference(stepped(checkpoint.model, input_ids, [1] * 17), expected) < FP32_BOUND
    assert difference(stepped(checkpoint.model, input_ids, [9, 1, 1, 6]), expected) < FP32_BOUND


@torch.no_grad()
def test_decoding_equals_transformers_cached_decoding(tmp_path: Path) -> None:
    truth = save_transformers(tmp_path)
    input_ids, cache, expected = tokens(), None, []
    for part in input_ids.split([12, 1, 1, 1, 1, 1], dim=1):
        output = truth(part, cache_params=cache, use_cache=True)
        cache = output.cache_params
        expected.append(output.logits)
    ours = stepped(checkpoints.load(tmp_path).model, input_ids, [12, 1, 1, 1, 1, 1])
    assert difference(ours, torch.cat(expected, dim=1)) < FP32_BOUND


@pytest.mark.parametrize("in_fp32", [True, False], ids=["residual_fp32", "residual_bf16"])
@pytest.mark.parametrize("falcon", [False, True], ids=["mamba", "falcon"])
@torch.no_grad()
def test_bf16_is_as_close_to_fp32_as_transformers_bf16(
    tmp_path: Path, falcon: bool, in_fp32: bool
) -> None:
    truth = save_transformers(tmp_path, falcon=falcon, residual_in_fp32=in_fp32)
    input_ids = tokens()
    expected = truth(input_ids).logits
    theirs = truth.to(torch.bfloat16)(input_ids).logits
    checkpoint = checkpoints.load(tmp_path, dtype=torch.bfloat16)
    assert checkpoint.config.residual_in_fp32 == in_fp32
    ours = checkpoint.model(input_ids)[0].float()
    assert (ours - expected).norm() < 1.5 * (theirs - expected).norm()


@pytest.mark.slow
@torch.no_grad()
def test_130m_shape_equals_transformers(tmp_path: Path) -> None:
    truth = save_transformers(tmp_path, hidden_size=768, num_hidden_layers=24, vocab_size=50280)
    input_ids = tokens(50280, batch=1, length=6)
    expected = truth(input_ids).logits
    del truth
    checkpoint = checkpoints.load(tmp_path)
    assert checkpoint.config == MambaConfig.published("130m").replace(d_inner=1536, dt_rank=48)
    whole, _ = checkpoint.model(input_ids)
    assert difference(whole, expected) < FP32_BOUND
    assert difference(stepped(checkpoint.model, input_ids, [3, 1, 1, 1]), expected) < FP32_BOUND


def test_absent_fields_take_transformers_defaults(tmp_path: Path) -> None:
    for model_type, config_class in (
        ("mamba", transformers.MambaConfig),
        ("falcon_mamba", transformers.FalconMambaConfig),
    ):
        theirs = config_class()
        folder = tmp_path / model_type
        folder.mkdir()
        edit_config(folder, model_type=model_type)
        _, ours = checkpoints.families.read_config(folder)
        _, written = checkpoints.families.write_config(ours.config, torch.float32)
        for name, value in written.items():
            # Special tokens of the class are not what its generate uses (tests/test_end_of_text.py).
            if name not in ("architectures", "dtype") and not name.endswith("_token_id"):
                assert getattr(theirs, name) == value, name


def test_pytorch_model_bin_of_transformers(tmp_path: Path) -> None:
    truth = save_transformers(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(truth.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_logits(checkpoints.load(tmp_path).model, truth)


def test_sharded_pytorch_model_bin(tmp_path: Path) -> None:
    truth = save_transformers(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = list(truth.state_dict().items())
    weight_map = {}
    for number, part in enumerate((state[:7], state[7:])):
        torch.save(dict(part), tmp_path / f"pytorch_model-{number}.bin")
        weight_map |= {name: f"pytorch_model-{number}.bin" for name, _ in part}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same_logits(checkpoints.load(tmp_path).model, truth)


def test_pickle_from_before_the_zip_format(tmp_path: Path) -> None:
    truth = save_transformers(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save(truth.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_same_logits(checkpoints.load(tmp_path).model, truth)


def test_head_that_differs_from_the_embedding_is_not_tied_whatever_the_config_says(
    tmp_path: Path,
) -> None:
    truth = save_transformers(tmp_path, tie_word_embeddings=False)
    edit_config(tmp_path, tie_word_embeddings=True)
    checkpoint = checkpoints.load(tmp_path)
    assert not checkpoint.config.tie_embeddings
    assert_same_logits(checkpoint.model, truth)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_logits(checkpoint.model, again)


@pytest.mark.parametrize("names", ["head_alone", "both_equal", "old_embedding", "no_prefix"])
def test_tied_checkpoints_under_other_names(tmp_path: Path, names: str) -> None:
    truth = save_transformers(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    embedding = state.pop("backbone.embeddings.weight")
    if names == "head_alone":
        state["lm_head.weight"] = embedding
    elif names == "both_equal":
        state |= {"lm_head.weight": embedding.clone(), "backbone.embeddings.weight": embedding}
    elif names == "old_embedding":
        state["backbone.embedding.weight"] = embedding
    else:
        state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
        state["embeddings.weight"] = embedding
    save_file(state, path, metadata={"format": "pt"})
    checkpoint = checkpoints.load(tmp_path)
    assert checkpoint.config.tie_embeddings
    assert_same_logits(checkpoint.model, truth)


# ---- the state-spaces format -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "ssm_cfg"),
    [
        ({}, {}),
        ({}, None),
        ({}, {"layer": "Mamba1"}),
        (
            {"state_size": 8, "conv_kernel": 3, "expand": 3, "time_step_rank": 5},
            {"d_state": 8, "d_conv": 3, "expand": 3, "dt_rank": 5, "dt_min": 0.01},
        ),
        ({"use_bias": True, "use_conv_bias": False}, {"bias": True, "conv_bias": False}),
    ],
    ids=["empty", "null", "mamba1", "shapes", "biases"],
)
def test_state_spaces_equals_transformers(
    tmp_path: Path, options: dict[str, Any], ssm_cfg: dict[str, Any] | None
) -> None:
    truth = transformers_model(**options)
    save_state_spaces(tmp_path / "original", truth, ssm_cfg=ssm_cfg)
    truth.save_pretrained(tmp_path / "transformers")
    original = checkpoints.load(tmp_path / "original")
    converted = checkpoints.load(tmp_path / "transformers")
    assert (original.format, converted.format) == ("state-spaces", "transformers")
    assert original.config.vocab_size == 96
    assert original.tokenizer_files == []
    with torch.no_grad():
        assert torch.equal(original.model(tokens())[0], converted.model(tokens())[0])
    assert_same_logits(original.model, truth)


def test_end_of_text_of_the_published_state_spaces_models(tmp_path: Path) -> None:
    edit_config(tmp_path, d_model=768, n_layer=24, vocab_size=50277, ssm_cfg={})
    _, description = checkpoints.families.read_config(tmp_path)
    assert description.config == MambaConfig.published("130m")
    edit_config(tmp_path, vocab_size=256)
    _, description = checkpoints.families.read_config(tmp_path)
    assert description.config.eos_token_id is None


# ---- dtypes, determinism, silence ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_of_the_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    save_transformers(tmp_path, use_bias=True, tie_word_embeddings=False)
    stored = load_file(tmp_path / "model.safetensors")
    model = checkpoints.load(tmp_path, dtype=dtype).model
    channel = {
        id(parameter)
        for mixer in model.modules()
        if isinstance(mixer, Mamba)
        for parameter in mixer.channel_parameters()
    }
    assert len(channel) == 3 * 5
    assert not model.training
    for name, parameter in model.named_parameters():
        expected = (
            dtype if id(parameter) not in channel or dtype == torch.float64 else torch.float32
        )
        source = stored["backbone." + name if name == "embeddings.weight" else name]
        assert parameter.dtype == expected, name
        assert parameter.device.type == "cpu"
        assert torch.equal(parameter, source.to(expected)), name
    with torch.no_grad():
        assert model(tokens())[0].isfinite().all()


def test_loading_is_deterministic_and_silent(tmp_path: Path, capfd: Any) -> None:
    save_transformers(tmp_path, max_shard_size="20KB")
    capfd.readouterr()
    state_of_the_generator = torch.get_rng_state()
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = checkpoints.load(tmp_path).model
        second = checkpoints.load(str(tmp_path), progress=lines.append).model
    assert capfd.readouterr() == ("", "")
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(state_of_the_generator, torch.get_rng_state())
    shards = len(list(tmp_path.glob("*.safetensors")))
    assert shards > 2
    assert len(lines) == shards
    assert lines[0] == f"reading model-00001-of-{shards:05}.safetensors (1 of {shards})"


def test_model_does_not_depend_on_the_file_after_loading(tmp_path: Path) -> None:
    truth = save_transformers(tmp_path)
    checkpoint = checkpoints.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert_same_logits(checkpoint.model, truth)


def test_nan_weights_load(tmp_path: Path) -> None:
    save_transformers(tmp_path)
    edit_tensors(tmp_path, lambda state: state["backbone.norm_f.weight"].fill_(float("nan")))
    assert checkpoints.load(tmp_path).model.backbone.norm_f.weight.isnan().all()


def test_what_a_checkpoint_says_of_itself(tmp_path: Path) -> None:
    save_transformers(tmp_path, eos_token_id=[7, 8])
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    checkpoint = checkpoints.load(str(tmp_path))
    assert checkpoint.eos_token_id == (7, 8)
    assert checkpoint.folder == tmp_path
    assert checkpoint.source == str(tmp_path)
    names = [path.name for path in checkpoint.tokenizer_files]
    assert names == ["tokenizer.json", "generation_config.json", "merges.txt"]
    edit_config(tmp_path, eos_token_id=None)
    assert checkpoints.load(tmp_path).eos_token_id == (7, 8)  # generation_config.json is above it
    (tmp_path / "generation_config.json").unlink()
    assert checkpoints.load(tmp_path).eos_token_id is None


def test_dtype_that_is_no_floating_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torch\.int8"):
        checkpoints.load(tmp_path, dtype=torch.int8)


# ---- saving ----------------------------------------------------------------------------------

SAVED = {
    "default": MambaConfig(24, 2, 96, eos_token_id=3),
    "untied_bias": MambaConfig(24, 2, 96, tie_embeddings=False, bias=True, conv_bias=False),
    "shapes": MambaConfig(24, 2, 96, d_state=8, d_conv=3, d_inner=40, dt_rank=5),
    "falcon": MambaConfig(24, 2, 96, bcdt_norm_epsilon=0.1, norm_epsilon=0.01),
}


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["own", "fp16"])
@pytest.mark.parametrize("config", SAVED.values(), ids=SAVED.keys())
@torch.no_grad()
def test_saved_is_what_transformers_and_we_load(
    tmp_path: Path, config: MambaConfig, dtype: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    model = MambaLM(config).eval()
    model.embeddings.weight.normal_()
    folder = tmp_path / "new" / "folder"
    checkpoints.save(model, folder, dtype=dtype, extra={"note": "ours"})

    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    written = json.loads((folder / "config.json").read_text())
    assert written["note"] == "ours"
    assert written["dtype"] == ("float32" if dtype is None else "float16")
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1, "safetensors writes for the owner alone: nobody else could read it"

    again = checkpoints.load(folder)
    assert again.config == config.replace(d_inner=config.inner, dt_rank=config.rank)
    for (name, a), (_, b) in zip(
        model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        bound = 0 if dtype is None else 1e-3
        torch.testing.assert_close(a, b, rtol=bound, atol=bound, msg=name)
    stored = load_file(folder / "model.safetensors")
    assert stored["backbone.layers.0.mixer.A_log"].dtype == torch.float32
    assert stored["backbone.layers.0.mixer.in_proj.weight"].dtype == (dtype or torch.float32)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert theirs.config.eos_token_id == config.eos_token_id
    assert_same_logits(again.model, theirs)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    truth = save_transformers(tmp_path / "theirs", falcon=True, tie_word_embeddings=False)
    checkpoints.save(checkpoints.load(tmp_path / "theirs").model, tmp_path / "ours")
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(theirs(tokens()).logits, truth(tokens()).logits)


def test_what_stood_there_stays_when_the_disk_is_full(tmp_path: Path) -> None:
    model = MambaLM(MambaConfig(24, 2, 96))
    checkpoints.save(model, tmp_path / "old")
    before = {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # a write beyond it fails
    try:
        for name in ("old", "new"):
            with pytest.raises(
                CheckpointError, match=rf"cannot write the checkpoint to .*{name}: "
            ):
                checkpoints.save(MambaLM(MambaConfig(24, 2, 96)), tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert before == {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    assert not (tmp_path / "new").exists()


def test_saving_to_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint to .*file: "):
        checkpoints.save(MambaLM(MambaConfig(24, 1, 96)), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


# ---- what is refused -------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**fields, **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def truncate(path: Path, kept: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


NORM = "backbone.norm_f.weight"

DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no_config": (
        lambda f: (f / "config.json").unlink(),
        r"holds no config\.json: pass the folder of a checkpoint",
    ),
    "config_not_json": (
        lambda f: write(f, "config.json", '{"model_type": '),
        r"config\.json is not valid JSON",
    ),
    "config_not_utf8": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"),
        r"config\.json is not valid JSON",
    ),
    "config_is_a_list": (
        lambda f: write(f, "config.json", "[]"),
        r"config\.json holds a JSON list, expected an object",
    ),
    "llama": (
        lambda f: edit_config(f, model_type="llama"),
        r"config\.json is of architecture 'llama'; supported are mamba, falcon_mamba .* state-spaces",
    ),
    "gpt2": (
        lambda f: edit_config(f, model_type="gpt2"),
        r"architecture 'gpt2'; supported are",
    ),
    "no_model_type": (
        lambda f: write(f, "config.json", "{}"),
        r"config\.json is of an unnamed architecture; supported are",
    ),
    "gelu": (lambda f: edit_config(f, hidden_act="gelu"), r"hidden_act is 'gelu': only silu"),
    "quantised": (
        lambda f: edit_config(f, quantization_config={"bits": 4}),
        r"quantised weights are not supported",
    ),
    "size_is_text": (
        lambda f: edit_config(f, hidden_size="24"),
        r"config\.json: hidden_size is '24', expected an integer",
    ),
    "size_is_negative": (
        lambda f: edit_config(f, state_size=-1),
        r"config\.json: state_size is -1, expected an integer from 1 to 2147483647$",
    ),
    "no_tokens": (
        lambda f: edit_config(f, vocab_size=0),
        r"vocab_size is 0, expected an integer from 1",
    ),
    "huge": (
        lambda f: edit_config(f, hidden_size=10**18),
        r"hidden_size is 1000000000000000000, expected an integer from 1 to 2147483647",
    ),
    "billion_layers": (
        lambda f: edit_config(f, num_hidden_layers=10**9),
        r"lacks tensors that its config\.json asks for: backbone\.layers\.3\.norm\.weight",
    ),
    "flag_is_a_number": (
        lambda f: edit_config(f, use_bias=1),
        r"use_bias is 1, expected true or false",
    ),
    "no_weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"holds no weights: expected one of model\.safetensors",
    ),
    "truncated_header": (
        lambda f: truncate(f / "model.safetensors", 0.01),
        r"model\.safetensors is truncated or damaged \(.+\) and was not loaded: fetch it again",
    ),
    "truncated_data": (
        lambda f: truncate(f / "model.safetensors", 0.9),
        r"model\.safetensors is truncated or damaged",
    ),
    "empty_file": (
        lambda f: truncate(f / "model.safetensors", 0),
        r"model\.safetensors is truncated or damaged",
    ),
    "git_lfs_pointer": (
        lambda f: write(f, "model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        r"model\.safetensors is a Git LFS pointer",
    ),
    "missing_tensor": (
        lambda f: edit_tensors(f, lambda state: state.pop(NORM)),
        rf"lacks tensors that its config\.json asks for: {NORM};",
    ),
    "missing_embedding": (
        lambda f: edit_tensors(f, lambda state: state.pop("backbone.embeddings.weight")),
        r"asks for: backbone\.embeddings\.weight;",
    ),
    "missing_head": (
        lambda f: edit_config(f, tie_word_embeddings=False),
        r"asks for: lm_head\.weight;",
    ),
    "unexpected_tensors": (
        lambda f: edit_config(f, num_hidden_layers=2),
        r"has no place for: backbone\.layers\.2\.\S+, backbone\S+, backbone\S+ and 7 more",
    ),
    "mis_shaped": (
        lambda f: edit_tensors(f, lambda state: state.update({NORM: torch.ones(25)})),
        rf"model\.safetensors: tensor {NORM} has shape \(25,\), expected \(24,\)",
    ),
    "integer_tensor": (
        lambda f: edit_tensors(
            f, lambda state: state.update({NORM: torch.ones(24, dtype=torch.int8)})
        ),
        rf"tensor {NORM} is I8, expected fp32.*; quantised weights are not supported",
    ),
}


@pytest.fixture(scope="session")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    transformers.utils.logging.disable_progress_bar()
    save_transformers(folder)
    return folder


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folder_is_refused_in_one_line(
    tmp_path: Path, intact: Path, damage: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(intact, folder)
    damage(folder)
    refused(folder, message)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    save_transformers(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path, f"shard .*{shard.name} is missing, though model.safetensors.index.json names")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "index.json is not valid JSON"),
        ("{}", "index.json holds no weight_map"),
        ('{"weight_map": {"a": "../a.safetensors"}}', r"names the shard '\.\./a\.safetensors'"),
        ('{"weight_map": {"a": "model.bin"}}', "names the shard 'model.bin'"),
    ],
    ids=["not_json", "empty", "path_out_of_the_folder", "pickle"],
)
def test_bad_index(tmp_path: Path, intact: Path, text: str, message: str) -> None:
    shutil.copy(intact / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ssm_cfg": {"layer": "Mamba3"}},
            r"layer 'Mamba3' is not supported, only Mamba1 and Mamba2",
        ),
        ({"ssm_cfg": {"headdim": 64}}, r"unknown option headdim"),
        ({"ssm_cfg": [1]}, r"ssm_cfg is \[1\]: expected an object"),
        ({"rms_norm": False}, r"rms_norm is False: LayerNorm is not supported"),
        ({"attn_layer_idx": [1]}, r"attn_layer_idx is \[1\]: attention layers"),
        ({"d_intermediate": 64}, r"d_intermediate is 64: MLP layers"),
        ({"d_model": None}, r"config\.json: d_model is None, expected an integer from 1"),
    ],
    ids=["mamba3", "unknown", "no_object", "layer_norm", "attention", "mlp", "no_width"],
)
def test_state_spaces_options_that_we_lack(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_state_spaces(tmp_path / "original", transformers_model(), **changes)
    refused(tmp_path / "original", message)


class Malicious:
    """Creates a file when a careless loader unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.marker}",))


def write_pickle(path: Path, content: object, how: str) -> None:
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(how[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle2", "pickle4"])
def test_pickle_with_code_is_refused_and_never_runs(tmp_path: Path, intact: Path, how: str) -> None:
    shutil.copy(intact / "config.json", tmp_path)
    marker, path = tmp_path / "marker", tmp_path / "pytorch_model.bin"
    content = {"payload": Malicious(marker), "backbone.norm_f.weight": torch.ones(24)}
    write_pickle(path, content, how)
    reason = r"is refused and was not loaded: it holds code or objects \(posix\.system\)"
    if how == "pickle4":  # weights_only knows protocol 2 alone
        reason = r"no file of torch\.save \(Unsupported operand \d+\) and was not loaded"
    refused(tmp_path, reason)
    assert not marker.exists()
    if how == "zip":  # the payload works: a careless loader is caught by this test
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_torchscript_is_refused(tmp_path: Path, intact: Path) -> None:
    shutil.copy(intact / "config.json", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
        torch.jit.save(module, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "is refused and was not loaded: it holds code or objects .TorchScript")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_truncated_pickle(tmp_path: Path, intact: Path, how: str, kept: float) -> None:
    shutil.copy(intact / "config.json", tmp_path)
    path = tmp_path / "pytorch_model.bin"
    write_pickle(path, load_file(intact / "model.safetensors"), how)
    truncate(path, kept)
    refused(tmp_path, r"pytorch_model\.bin is truncated or damaged")


@pytest.mark.parametrize(
    "content",
    [{"model": {"weight": torch.ones(2)}}, [torch.ones(2)], {"step": 3}, {"a": torch.eye(2).to_sparse()}],
    ids=["nested", "list", "number", "sparse"],
)  # fmt: skip
def test_pickle_that_is_no_state_dict(tmp_path: Path, intact: Path, content: object) -> None:
    shutil.copy(intact / "config.json", tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    refused(tmp_path, r"pytorch_model\.bin holds something other than tensors by name")


def test_unreadable_file(tmp_path: Path, intact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied", str(intact / "config.json"))

    monkeypatch.setattr(os, "open", denied)  # root may read any file: pretend
    refused(intact, r"config\.json cannot be read \(Permission denied\)")


def refused(source: str | Path, message: str) -> None:
    """Loading fails with one line that matches ``message``."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoints.load(source)
    assert "\n" not in str(caught.value)


# ---- where a checkpoint comes from -----------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int, str], None]]:
    """A hub on this machine that answers every request with one error; a cache of its own."""
    answer: list[Any] = [404, "RepoNotFound"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer[0])
            self.send_header("X-Error-Code", answer[1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, tmp_path, f"http://127.0.0.1:{server.server_port}")

    def answer_with(status: int, code: str) -> None:
        answer[:] = [status, code]

    yield answer_with
    server.shutdown()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, cache: Path, endpoint: str) -> None:
    real = huggingface_hub.snapshot_download
    redirected = functools.partial(real, endpoint=endpoint, cache_dir=cache, token=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", redirected)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", "no such repository, or it is private"),
        (403, "GatedRepo", "the repository is gated"),
        (500, "", "the Hub cannot be reached"),
    ],
    ids=["not_found", "gated", "down"],
)
def test_download_that_the_hub_refuses(
    hub: Callable[[int, str], None], capfd: Any, status: int, code: str, reason: str
) -> None:
    hub(status, code)
    refused(
        "nobody/nothing", f"download of 'nobody/nothing' .* failed: {reason}.*: pass the path of"
    )
    assert capfd.readouterr() == ("", "")


def test_download_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, tmp_path, "http://127.0.0.1:9")  # nothing listens there
    refused("nobody/nothing", "failed: the Hub cannot be reached and the local cache lacks it")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("nobody/nothing", "failed: HF_HUB_OFFLINE is set and the local cache lacks it")


@pytest.mark.parametrize("weights", ["safetensors", "pickle"])
def test_download_fetches_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    truth = save_transformers(repository)
    torch.save(truth.state_dict(), repository / "pytorch_model.bin")
    for name in ("README.md", "tokenizer.json", "model.onnx", "flax_model.msgpack"):
        (repository / name).write_text("{}")
    if weights == "pickle":
        (repository / "model.safetensors").unlink()
    cache.mkdir()

    def snapshot_download(hub_id: str, *, allow_patterns: list[str]) -> str:
        names = [path.name for path in repository.iterdir()]
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            shutil.copy(repository / name, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    lines: list[str] = []
    checkpoint = checkpoints.load("owner/name", progress=lines.append)
    assert checkpoint.source == "owner/name"
    assert checkpoint.folder == cache
    assert lines[0] == "downloading owner/name from the Hugging Face Hub"
    fetched = "model.safetensors" if weights == "safetensors" else "pytorch_model.bin"
    assert {path.name for path in cache.iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", fetched,
    }  # fmt: skip
    assert_same_logits(checkpoint.model, truth)


@pytest.mark.parametrize(
    "source",
    [
        "./owner/name", "../name", "/owner/name", "~/no-such-folder", "~nobody-of-that-name/x",
        "a/b/c", "name", "owner/", "owner\\name", "", Path("owner/name"), "x" * 5000, "a\0b",
    ],
    ids=lambda source: repr(source)[:24],
)  # fmt: skip
def test_what_looks_local_never_reaches_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str | Path
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: calls.append(name))
    monkeypatch.chdir(tmp_path)
    refused(source, "no such folder|is empty|cannot be read|has a NUL character")
    assert calls == []


def test_existing_folder_wins_over_a_hub_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, intact: Path
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    shutil.copytree(intact, tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert checkpoints.load("owner/name").folder == Path("owner/name")


def test_file_in_place_of_a_folder(intact: Path) -> None:
    refused(intact / "model.safetensors", r"is a file: pass the folder that holds config\.json")


@torch.no_grad()
def assert_same_logits(ours: MambaLM, truth: torch.nn.Module) -> None:
    input_ids = tokens()
    assert difference(ours(input_ids)[0], truth(input_ids).logits) < FP32_BOUND
