"""Names in checkpoints: wrappers' prefixes, the first ports' fields, fractions where integers are usual."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from mamba_export.errors import CheckpointError
from mamba_export.models import checkpoints
from mamba_export.models.checkpoints.families import read_config

IDS = torch.randint(96, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def make_truth(**options: Any) -> nn.Module:
    """A random model of transformers, every parameter of which matters."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        **{"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 96, **options}
    )
    model = transformers.MambaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if not name.endswith("A_log"):
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def truth() -> nn.Module:
    return make_truth()


def write(folder: Path, truth: nn.Module, state: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    truth.config.save_pretrained(folder)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tied(truth: nn.Module) -> dict[str, Tensor]:
    """Its tensors as transformers saves them: the tied head is not among them."""
    return {k: v for k, v in truth.state_dict().items() if k != "lm_head.weight"}


@torch.no_grad()
def assert_equal(folder: Path, truth: nn.Module) -> checkpoints.Checkpoint:
    checkpoint = checkpoints.load(folder)
    ours, theirs = checkpoint.model(IDS)[0], truth(IDS).logits
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    return checkpoint


class Holder(nn.Module):
    """As trainers hold a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def compiled_layers(model: nn.Module) -> dict[str, Tensor]:
    """torch.compile of each layer, as "regional compilation" does."""
    return {re.sub(r"(\.layers\.\d+)", r"\1._orig_mod", k): v for k, v in tied(model).items()}


WRAPPED = {
    "compile": lambda model: torch.compile(model).state_dict(),
    "data parallel": lambda model: nn.DataParallel(model).state_dict(),
    "holder": lambda model: Holder(model).state_dict(),
    "compile of data parallel": lambda model: torch.compile(nn.DataParallel(model)).state_dict(),
    "all three": lambda model: Holder(nn.DataParallel(torch.compile(model))).state_dict(),
    "twice": lambda model: torch.compile(Holder(torch.compile(model))).state_dict(),
    "compiled backbone": lambda model: {
        k.replace("backbone.", "backbone._orig_mod."): v for k, v in tied(model).items()
    },
    "compiled layers": compiled_layers,
    "first port": lambda model: {
        k.replace("backbone.embeddings", "model.embedding").replace("backbone.", "model."): v
        for k, v in model.state_dict().items()
    },
    "checkpointed layers": lambda model: {
        k.replace(".mixer.", "._checkpoint_wrapped_module.mixer."): v
        for k, v in tied(model).items()
    },
}  # fmt: skip


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_names_are_taken_off(how: str, truth: nn.Module, tmp_path: Path) -> None:
    state = WRAPPED[how](truth)
    assert set(state) & set(tied(truth)) != set(tied(truth)), "nothing is wrapped"
    assert_equal(write(tmp_path, truth, state), truth)


def test_two_tensors_of_one_parameter_are_named(truth: nn.Module, tmp_path: Path) -> None:
    """An average of the weights beside them, say: which one is meant is not ours to guess."""
    state = tied(truth)
    norm = state["backbone.norm_f.weight"]
    write(tmp_path, truth, {**state, "module.backbone.norm_f.weight": norm})
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'model.safetensors'}: tensors backbone.norm_f.weight and "
        "module.backbone.norm_f.weight both stand for backbone.norm_f.weight: leave one of them out"
    )


def test_other_prefixes_are_shown_as_they_stand(truth: nn.Module, tmp_path: Path) -> None:
    state = tied(truth)
    write(tmp_path, truth, {**state, "ema.module.\x1b[31m\nx": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"has no place for: ema\.module\.\\x1b\[31m\\nx; "):
        checkpoints.load(tmp_path)


# ---- fields of config.json ---------------------------------------------------------------------

FIRST_PORT = {
    "model_type": "mamba",
    "d_model": 24,
    "n_layer": 2,
    "vocab_size": 93,  # padded up to a multiple of 8
    "pad_vocab_size_multiple": 8,
    "d_state": 8,
    "d_conv": 3,
    "expand": 3,
    "dt_rank": 5,
    "bias": True,
    "conv_bias": False,
    "initializer_range": 0.02,
}


def with_config(folder: Path, content: dict[str, Any], bom: bool = False) -> Path:
    data = json.dumps(content).encode()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + data if bom else data)
    return folder


@pytest.mark.parametrize(
    "changes",
    [{}, {"d_inner": 72, "expand": 2}, {"model_type": None}, {"layer_norm_epsilon": 1e-5}],
    ids=["port", "d_inner", "no model_type", "epsilon"],
)
def test_the_first_ports_names_load(changes: dict[str, Any], tmp_path: Path) -> None:
    truth = make_truth(
        state_size=8, conv_kernel=3, expand=3, time_step_rank=5, use_bias=True, use_conv_bias=False
    )
    with_config(write(tmp_path, truth, tied(truth)), {**FIRST_PORT, **changes})
    checkpoint = assert_equal(tmp_path, truth)
    assert (checkpoint.format, checkpoint.architecture) == ("state-spaces", "mamba")


def test_transformers_names_win_over_the_ports(truth: nn.Module, tmp_path: Path) -> None:
    """The published mamba-130m-hf says both; what was changed since is transformers'."""
    write(tmp_path, truth, tied(truth))
    stale = {"d_model": 768, "n_layer": 24, "d_inner": 1536, "ssm_cfg": {}, "rms_norm": True}
    with_config(tmp_path, {**truth.config.to_dict(), **stale})
    assert assert_equal(tmp_path, truth).format == "transformers"


@pytest.mark.parametrize("expand", [2.0, 1.5, 0.7])
@pytest.mark.parametrize("original", [False, True], ids=["transformers", "state-spaces"])
def test_expand_that_is_a_float(expand: float, original: bool, tmp_path: Path) -> None:
    """mamba_ssm computes d_inner = int(expand * d_model): 0.7 * 24 is 16.8."""
    truth = make_truth(intermediate_size=int(expand * 24))
    write(tmp_path, truth, tied(truth))
    content: dict[str, Any] = {"d_model": 24, "n_layer": 2, "vocab_size": 96}
    if original:
        content["ssm_cfg"] = {"expand": expand}
    else:
        content = {**truth.config.to_dict(), "expand": expand}
        del content["intermediate_size"]
    with_config(tmp_path, content)
    assert assert_equal(tmp_path, truth).config.inner == int(expand * 24)


def test_a_byte_order_mark(truth: nn.Module, tmp_path: Path) -> None:
    write(tmp_path, truth, tied(truth))
    with_config(tmp_path, truth.config.to_dict(), bom=True)
    assert_equal(tmp_path, truth)


TRANSFORMERS_NUMBERS = {
    "hidden_size", "num_hidden_layers", "vocab_size", "state_size", "conv_kernel", "expand",
    "intermediate_size", "time_step_rank", "layer_norm_epsilon", "mixer_rms_eps",
    "time_step_min", "time_step_max", "time_step_floor",
}  # fmt: skip
ORIGINAL_NUMBERS = {
    "d_model", "n_layer", "vocab_size", "d_state", "d_conv", "expand", "d_inner", "dt_rank",
    "pad_vocab_size_multiple", "d_intermediate", "layer_norm_epsilon",
}  # fmt: skip
MAMBA2 = {"model_type": "mamba2", "hidden_size": 64, "num_heads": 2, "n_groups": 2}
MAMBA2_NUMBERS = TRANSFORMERS_NUMBERS - {"mixer_rms_eps", "intermediate_size", "time_step_rank"}
MAMBA2_NUMBERS |= {"num_heads", "head_dim", "n_groups", "chunk_size", "time_step_limit"}
MISTRALS_NUMBERS = {"dim", "n_layers", "n_groups", "vocab_size", "pad_vocab_size_multiple"}
ABSURD = [
    "NaN",
    "Infinity",
    "-Infinity",
    "-1",
    "1e39",
    "1e999",
    f"1{'0' * 400}",
    "true",
    '"2"',
    "[2]",
    "{}",
]


@pytest.mark.parametrize(
    ("basis", "names"),
    [
        ({"model_type": "falcon_mamba"}, TRANSFORMERS_NUMBERS),
        ({"model_type": "mamba"}, TRANSFORMERS_NUMBERS - {"mixer_rms_eps"}),
        ({"model_type": "mamba", "d_model": 24, "n_layer": 2}, ORIGINAL_NUMBERS),
        ({"d_model": 24, "n_layer": 2}, ORIGINAL_NUMBERS),
        (MAMBA2, MAMBA2_NUMBERS),
        ({"dim": 64, "n_layers": 2, "n_groups": 2}, MISTRALS_NUMBERS),
    ],
    ids=["falcon", "transformers", "first port", "state-spaces", "mamba2", "mistral"],
)
def test_absurd_numbers_are_named_with_file_and_field(
    basis: dict[str, Any], names: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    with_config(tmp_path, basis)
    read_config(tmp_path)
    for name in sorted(names):
        for value in ABSURD:
            content = json.dumps({**basis, name: "HERE"}).replace('"HERE"', value)
            path.write_text(content)
            with pytest.raises(CheckpointError) as caught:
                read_config(tmp_path)
            message = str(caught.value)
            assert message.startswith(f"{path}: {name} is "), (name, value, message)
            assert "\n" not in message
            assert len(message) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", 2**31), ("intermediate_size", 2**40), ("num_hidden_layers", 2**63)],
)
def test_sizes_beyond_32_bits(name: str, value: int, tmp_path: Path) -> None:
    with_config(tmp_path, {"model_type": "mamba", name: value})
    message = f"config.json: {name} is {value}, expected an integer from 1 to 2147483647"
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path)


def test_infinity_in_a_field_that_is_not_read(truth: nn.Module, tmp_path: Path) -> None:
    """As Mamba-2's time_step_limit holds in published files."""
    write(tmp_path, truth, tied(truth))
    with_config(tmp_path, {**truth.config.to_dict(), "time_step_limit": [0.0, float("inf")]})
    assert_equal(tmp_path, truth)
