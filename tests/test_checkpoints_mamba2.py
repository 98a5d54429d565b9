"""Mamba-2's checkpoints: transformers', state-spaces' and Mistral's own, against transformers' Mamba2."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from mamba_export.errors import CheckpointError
from mamba_export.models import Mamba2Config, MambaLM, checkpoints
from mamba_export.models.checkpoints.families import read_config

TINY = {
    "hidden_size": 24, "num_heads": 6, "head_dim": 8, "n_groups": 2, "num_hidden_layers": 2,
    "vocab_size": 96, "state_size": 8, "chunk_size": 32,
}  # fmt: skip
LENGTHS = (1, 7, 17, 64, 300)  # beside chunks of 32: below one, between, on the grid, many
FP32_BOUND = 1e-5


@pytest.fixture(autouse=True)
def _quiet_transformers() -> Iterator[None]:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    transformers.utils.logging.set_verbosity_warning()


@torch.no_grad()
def make_truth(**options: Any) -> nn.Module:
    """A random model of transformers, every parameter of which matters; its own PyTorch code is the truth."""
    torch.manual_seed(0)
    model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**{**TINY, **options})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm_f.weight", ".D")):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("dt_bias"):
            parameter += torch.randn_like(parameter)
        elif not name.endswith("A_log"):
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def tokens(length: int, batch: int = 2, vocabulary: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(vocabulary, (batch, length), generator=generator)


def difference(found: Tensor, expected: Tensor) -> float:
    assert expected.abs().max() > 0.1
    return float((found - expected).abs().max() / expected.abs().max())


def in_parts(model: MambaLM, ids: Tensor, parts: Sequence[int]) -> Tensor:
    state, logits = None, []
    for part in ids.split(list(parts), dim=1):
        found, state = model(part, state)
        logits.append(found)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def assert_equal(model: MambaLM, truth: nn.Module, lengths: Sequence[int] = LENGTHS) -> None:
    for length in lengths:
        ids = tokens(length)
        assert difference(model(ids)[0], truth(ids).logits) < FP32_BOUND, length


OPTIONS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "one group, tied": {"n_groups": 1, "tie_word_embeddings": True},
    "a group a head": {"n_groups": 6},
    "biases": {"use_bias": True, "use_conv_bias": False},
    "conv3, state 5": {"conv_kernel": 3, "state_size": 5},
    "epsilon": {"layer_norm_epsilon": 0.1},
    "residual in the weights' dtype": {"residual_in_fp32": False},
    "limits": {"time_step_limit": (0.05, 0.5)},
    "upper limit": {"time_step_limit": (0.0, 0.1)},
    "lower limit": {"time_step_limit": (0.3, math.inf)},
    # Mamba-Codestral's options and proportions: 8 groups, heads of 64 channels, states of 128, its own head.
    "codestral": {
        "hidden_size": 256, "num_heads": 8, "head_dim": 64, "n_groups": 8, "state_size": 128,
        "chunk_size": 256, "num_hidden_layers": 1, "tie_word_embeddings": False,
    },
    "state-spaces": {
        "hidden_size": 128, "num_heads": 4, "head_dim": 64, "n_groups": 1, "state_size": 128,
        "chunk_size": 256, "num_hidden_layers": 1, "tie_word_embeddings": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@torch.no_grad()
def test_logits_equal_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    truth = make_truth(**options)
    truth.save_pretrained(tmp_path / "theirs")
    checkpoint = checkpoints.load(tmp_path / "theirs")
    assert (checkpoint.format, checkpoint.architecture) == ("transformers", "mamba2")
    assert checkpoint.eos_token_id == 2
    assert_equal(checkpoint.model, truth)
    ids = tokens(17)
    for parts in ((1,) * 17, (9, 1, 1, 6)):
        found = in_parts(checkpoint.model, ids, parts)
        assert difference(found, truth(ids).logits) < FP32_BOUND, parts
    checkpoints.save(checkpoint.model, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert_equal(checkpoint.model, again, (17,))
    assert checkpoints.load(tmp_path / "ours").config == checkpoint.config


@pytest.mark.parametrize("options", [{}, {"n_groups": 1, "tie_word_embeddings": True}], ids=str)
@torch.no_grad()
def test_greedy_tokens_equal_transformers_generate(options: dict[str, Any]) -> None:
    truth = make_truth(**options)
    truth.generation_config.eos_token_id = None
    model, _ = checkpoints.load_module(truth)
    ids = tokens(7, batch=1)
    expected = truth.generate(ids, max_new_tokens=40, do_sample=False)[0, 7:].tolist()
    assert len(set(expected)) > 10
    found: list[int] = []
    logits, state = model(ids)
    while len(found) < 40:
        found.append(int(logits[0, -1].argmax()))
        logits, state = model(torch.tensor([found[-1:]]), state)
    assert found == expected


@torch.no_grad()
def test_limits_of_the_step_size_hold_at_single_tokens_too() -> None:
    """transformers and mamba_ssm leave them out there; the whole sequence is the definition."""
    truth = make_truth(time_step_limit=(0.0, 0.05))
    model, _ = checkpoints.load_module(truth)
    ids = tokens(12, batch=1)
    whole, cache, theirs = truth(ids).logits, None, []
    for part in ids.split([6, *[1] * 6], dim=1):
        output = truth(part, cache=cache, use_cache=True)
        cache = output.cache
        theirs.append(output.logits)
    assert difference(torch.cat(theirs, 1), whole) > 0.01, (
        "transformers has changed: say so in docs"
    )
    assert difference(in_parts(model, ids, (6, *[1] * 6)), whole) < FP32_BOUND


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@torch.no_grad()
def test_low_precision_is_as_close_to_fp32_as_transformers(dtype: torch.dtype) -> None:
    truth = make_truth()
    ids = tokens(65)
    expected = truth(ids).logits
    model, _ = checkpoints.load_module(truth, dtype=dtype)
    theirs = truth.to(dtype)(ids).logits.float()
    ours = model(ids)[0].float()
    assert (ours - expected).norm() < 1.5 * (theirs - expected).norm()


# ---- the state-spaces format, and Mistral's ----------------------------------------------------


def original_names(truth: nn.Module, holder: str = "") -> dict[str, Tensor]:
    """mamba_ssm's names of transformers' tensors."""
    return {
        holder + name.replace("backbone.embeddings.", "backbone.embedding."): tensor.clone()
        for name, tensor in truth.state_dict().items()
    }


PUBLISHED = {  # state-spaces/mamba2-130m, but for the sizes
    "d_model": 24, "d_intermediate": 0, "n_layer": 2, "vocab_size": 90,
    "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True,
    "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}  # fmt: skip
TINY_CFG = {"layer": "Mamba2", "headdim": 8, "ngroups": 2, "d_state": 8}


def write_original(folder: Path, truth: nn.Module, ssm_cfg: dict[str, Any], **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    content = {**PUBLISHED, "ssm_cfg": ssm_cfg, **fields}
    (folder / "config.json").write_text(json.dumps(content))
    torch.save(original_names(truth), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    ("options", "ssm_cfg"),
    [
        ({}, {}),
        ({"n_groups": 1}, {"ngroups": 1, "chunk_size": 128, "use_mem_eff_path": False}),
        ({"time_step_limit": (0.01, 0.2)}, {"dt_limit": [0.01, 0.2]}),
        ({}, {"dt_limit": [0.0, math.inf], "D_has_hdim": False, "d_ssm": None, "rmsnorm": True}),
        ({"use_bias": True, "use_conv_bias": False}, {"bias": True, "conv_bias": False}),
        ({"conv_kernel": 3, "state_size": 5}, {"d_conv": 3, "d_state": 5, "A_init_range": [1, 4]}),
    ],
    ids=["published", "one group", "limits", "defaults", "biases", "shapes"],
)
def test_state_spaces_equals_transformers(
    tmp_path: Path, options: dict[str, Any], ssm_cfg: dict[str, Any]
) -> None:
    truth = make_truth(tie_word_embeddings=True, **options)
    write_original(tmp_path, truth, {**TINY_CFG, **ssm_cfg})
    checkpoint = checkpoints.load(tmp_path)
    assert (checkpoint.format, checkpoint.architecture) == ("state-spaces", "mamba2")
    assert checkpoint.config.vocab_size == 96  # 90, padded to a multiple of 16
    assert_equal(checkpoint.model, truth)
    checkpoints.save(checkpoint.model, tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert_equal(checkpoint.model, again, (17,))


def test_the_published_configurations(tmp_path: Path) -> None:
    for size, (d_model, n_layer) in {"130m": (768, 24), "2.7b": (2560, 64)}.items():
        content = {**PUBLISHED, "d_model": d_model, "n_layer": n_layer, "vocab_size": 50277}
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert read_config(tmp_path)[1].config == Mamba2Config.published(size)


def test_mamba2s_parameters_that_transformers_has_no_place_for(tmp_path: Path) -> None:
    cases = {
        "gated norm": ({"rmsnorm": False}, {"gated_norm": False}),
        "norm before the gate": ({"norm_before_gate": True}, {"norm_before_gate": True}),
        "D of each channel": ({"D_has_hdim": True}, {"skip_per_channel": True}),
    }
    for what, (ssm_cfg, changes) in cases.items():
        model = MambaLM(
            Mamba2Config(
                d_model=24, n_layer=2, vocab_size=96, head_dim=8, n_groups=2, d_state=8, **changes
            )
        )
        folder = tmp_path / what
        folder.mkdir()
        fields = {**PUBLISHED, "ssm_cfg": {**TINY_CFG, **ssm_cfg}}
        (folder / "config.json").write_text(json.dumps(fields))
        state = {
            name.replace("embeddings.weight", "backbone.embedding.weight"): tensor
            for name, tensor in model.state_dict().items()
        }
        torch.save(state, folder / "pytorch_model.bin")
        loaded = checkpoints.load(folder)
        assert loaded.config == model.config
        assert torch.equal(loaded.model(tokens(9))[0], model(tokens(9))[0])
        with pytest.raises(
            CheckpointError, match=r"Mamba2 has no place for a .*: it cannot be saved"
        ):
            checkpoints.save(loaded.model, tmp_path / "never")


def test_mistrals_own_folder(tmp_path: Path) -> None:
    truth = make_truth(**OPTIONS["codestral"])
    parameters = {
        "dim": 256, "n_layers": 1, "vocab_size": 96, "n_groups": 8, "rms_norm": True,
        "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 1,
        "tie_embeddings": False, "model_type": "mamba",
    }  # fmt: skip
    (tmp_path / "params.json").write_text(json.dumps(parameters))
    save_file(original_names(truth, holder="model."), tmp_path / "consolidated.safetensors")
    checkpoint = checkpoints.load(tmp_path)
    assert (checkpoint.format, checkpoint.architecture) == ("mistral", "mamba2")
    assert (checkpoint.bos_token_id, checkpoint.eos_token_id) == (1, 2)
    assert_equal(checkpoint.model, truth, (17,))
    # Beside transformers' own files, as the published repository has them, those are read.
    truth.save_pretrained(tmp_path)
    assert checkpoints.load(tmp_path).format == "transformers"


# ---- bad input -----------------------------------------------------------------------------------

BAD = {
    "heads": ({"num_heads": 5}, r"num_heads is 5: hidden_size 24 times expand is 48, 6 heads"),
    "groups": ({"n_groups": 4}, r"config: n_groups 4 does not divide the 6 heads"),
    "head_dim": ({"head_dim": 7}, r"config: head_dim 7 does not divide the width d_inner 48"),
    "chunk": ({"chunk_size": 0}, r"chunk_size is 0, expected an integer from 1"),
    "one limit": ({"time_step_limit": [0.1]}, r"time_step_limit is \[0\.1\], expected a list of"),
    "limits turned": ({"time_step_limit": [0.2, 0.1]}, r"the second not below the first"),
    "limit of text": ({"time_step_limit": [0, "inf"]}, r"expected two numbers of at least 0"),
    "gelu": ({"hidden_act": "gelu"}, r"hidden_act is 'gelu': only silu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_fields_are_one_line_that_names_file_and_field(case: str, tmp_path: Path) -> None:
    fields, words = BAD[case]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mamba2", **TINY, **fields}))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ssm_cfg", "words"),
    [
        ({"layer": "Mamba3"}, r"layer 'Mamba3' is not supported, only Mamba1 and Mamba2"),
        ({"chunk_size": 0}, r"chunk_size is 0, expected an integer from 1"),
        ({"d_ssm": 24}, r"d_ssm is 24: a gated MLP beside the scan is not supported"),
        ({"dt_rank": 4}, r"unknown option dt_rank"),
        ({"headdim": 7}, r"head_dim 7 does not divide the width d_inner 48"),
        ({"ngroups": 5}, r"n_groups 5 does not divide the 6 heads"),
    ],
    ids=str,
)
def test_bad_options_of_the_block(ssm_cfg: dict[str, Any], words: str, tmp_path: Path) -> None:
    content = {**PUBLISHED, "ssm_cfg": {**TINY_CFG, **ssm_cfg}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")


def test_tensors_of_other_shapes_are_named(tmp_path: Path) -> None:
    truth = make_truth()
    truth.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_groups": 3}))
    with pytest.raises(CheckpointError, match=r"in_proj.weight has shape \(134, 24\), expected"):
        checkpoints.load(tmp_path)
