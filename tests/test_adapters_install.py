"""Where the adapters are found, what they leave behind, and the classes against the forks' own layouts."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mamba_export import adapters
from mamba_export.adapters import triton_stand_in
from mamba_export.adapters.mamba import Mamba
from mamba_export.adapters.names import MODULES
from mamba_export.errors import MambaExportWarning
from mamba_export.models import MambaConfig, MambaLM
from mamba_export.operators.dispatch import forced


def written(folder: Path, name: str, code: str) -> str:
    """A module's file on a path; its name."""
    path = folder / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code), encoding="utf-8")
    return name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()


def test_every_name_is_importable_and_nothing_stays() -> None:
    before = dict(sys.modules)
    guard = torch.cuda.device
    with adapters.installed():
        for module, contents in MODULES.items():
            found = importlib.import_module(module)
            assert importlib.util.find_spec(module) is not None
            for name, value in contents.items():
                assert getattr(found, name) is value
    assert {name for name in sys.modules if name in MODULES} == {
        name for name in before if name in MODULES
    }
    assert torch.cuda.device is guard
    assert not adapters.is_active()


def test_import_installs_for_the_process() -> None:
    code = """
        import mamba_export.adapters.mamba_ssm
        import torch
        from mamba_ssm import Mamba
        from causal_conv1d import causal_conv1d_fn
        assert Mamba(8)(torch.randn(1, 3, 8)).shape == (1, 3, 8)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_installed_packages_are_patched_and_restored(folder: Path) -> None:
    written(folder, "causal_conv1d.__init__", "def causal_conv1d_fn(x):\n    return 'theirs'\n")
    written(folder, "model", "from causal_conv1d import causal_conv1d_fn as convolve\n")
    model: Any = importlib.import_module("model")
    theirs: Any = importlib.import_module("causal_conv1d")
    x, weight = torch.randn(1, 2, 5), torch.randn(2, 4)
    with adapters.installed():
        assert model.convolve(x, weight).shape == x.shape  # taken before, and replaced too
        assert importlib.import_module("causal_conv1d") is theirs
        assert theirs.causal_conv1d_update is not None
    assert model.convolve(None) == theirs.causal_conv1d_fn(None) == "theirs"
    assert not hasattr(theirs, "causal_conv1d_update")


def test_a_package_that_does_not_load_is_replaced(folder: Path) -> None:
    written(folder, "selective_scan_cuda", "raise OSError('libcudart.so: cannot open')\n")
    with adapters.installed():
        assert importlib.import_module("selective_scan_cuda").fwd is not None
    assert "selective_scan_cuda" not in sys.modules


@pytest.mark.parametrize(
    "code", ["selective_scan_fn = None\n", "WITH_SELECTIVESCAN_OFLEX = False\n"]
)
def test_a_module_that_fell_back_before_is_named(folder: Path, code: str) -> None:
    importlib.import_module(written(folder, "early", code))
    said = pytest.warns(MambaExportWarning, match="early was imported before the adapters")
    with said, adapters.installed():
        pass


def test_triton_is_there_for_a_plain_import_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another name, for triton itself may be installed."""
    monkeypatch.setattr(triton_stand_in, "_NAME", "absent_triton")
    written(
        folder,
        "kernels",
        """
        import absent_triton as triton
        import absent_triton.language as tl

        @triton.autotune(configs=[triton.Config({"BLOCK": 64})], key=["n"])
        @triton.jit
        def kernel(x_ptr, n, BLOCK: tl.constexpr):
            tl.store(x_ptr, tl.load(x_ptr))
        """,
    )
    written(
        folder,
        "guarded",
        """
        try:
            import absent_triton
            WITH_TRITON = True
        except ImportError:
            WITH_TRITON = False
        """,
    )
    with adapters.installed():
        assert importlib.import_module("guarded").WITH_TRITON is False
        assert importlib.util.find_spec("absent_triton") is None
        kernels: Any = importlib.import_module("kernels")
        with pytest.raises(NotImplementedError, match="Triton is not installed"):
            kernels.kernel[(1,)](torch.zeros(4), 4)
    assert "absent_triton" not in sys.modules
    assert importlib.util.find_spec("absent_triton") is None


def test_a_cpu_tensor_passes_a_cuda_guard() -> None:
    with adapters.installed(), torch.cuda.device(torch.zeros(1).device):
        pass


FORK_NAMES = {
    "none": set(),
    "v1": {"A_b_log"},
    "v2": {"A_b_log", "D_b", "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight",
           "dt_proj_b.bias"},
}  # fmt: skip
FORK_NAMES["v3"] = FORK_NAMES["v2"] | {name.replace("_b", "_s") for name in FORK_NAMES["v2"]}


@pytest.mark.parametrize("kind", FORK_NAMES)
def test_parameters_have_the_names_of_the_forks_files(kind: str) -> None:
    plain = {name for name, _ in Mamba(8).named_parameters()}
    names = {name for name, _ in Mamba(8, bimamba_type=kind).named_parameters()}
    assert names - plain == FORK_NAMES[kind]
    assert plain == {
        "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias",
        "A_log", "D", "out_proj.weight",
    }  # fmt: skip


def one_direction(mixer: Mamba, suffix: str) -> Mamba:
    """A plain mixer with the parameters of one direction, whose output projection is the identity."""
    plain = Mamba(mixer.d_model, d_state=mixer.d_state)
    plain.out_proj = nn.Linear(mixer.d_inner, mixer.d_inner, bias=False)
    own = dict(mixer.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name == "out_proj.weight":
                parameter.copy_(torch.eye(mixer.d_inner))
            elif name == "in_proj.weight":
                parameter.copy_(own[name])
            else:
                layer, _, rest = name.partition(".")
                parts = layer.split("_log")
                found = f"{parts[0]}{suffix}_log" if len(parts) == 2 else f"{layer}{suffix}"
                parameter.copy_(own[f"{found}.{rest}" if rest else found])
    return plain


@pytest.mark.parametrize(
    ("options", "divisor"),
    [
        ({"bimamba_type": "v2"}, 1),
        ({"bimamba": True}, 1),
        ({"bimamba_type": "v2", "if_divide_out": True}, 2),
        ({"bimamba_type": "v2", "if_devide_out": True}, 2),
        ({"bimamba_type": "v3", "nslices": 4}, 1),
        ({"bimamba_type": "v3", "nframes": 4}, 3),
    ],
    ids=str,
)
def test_directions_are_plain_mixers_on_reordered_sequences(
    options: dict[str, Any], divisor: int
) -> None:
    """Backwards is a flip before and after; over slices, step i of each slice and then step i + 1."""
    mixer = Mamba(8, d_state=3, **options)
    x = torch.randn(2, 12, 8)
    total = one_direction(mixer, "")(x) + one_direction(mixer, "_b")(x.flip(1)).flip(1)
    if options.get("bimamba_type") == "v3":
        order = torch.arange(12).reshape(4, 3).t().reshape(-1)
        woven = one_direction(mixer, "_s")(x[:, order])
        total = total + woven[:, torch.argsort(order)]
    torch.testing.assert_close(mixer(x), mixer.out_proj(total / divisor))


def test_layer_scale() -> None:
    mixer = Mamba(8, init_layer_scale=0.25)
    plain = Mamba(8)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    x = torch.randn(1, 5, 8)
    torch.testing.assert_close(mixer(x), 0.25 * plain(x))


def test_the_language_model_is_ours_with_other_names(tiny_config: MambaConfig) -> None:
    """Logits, states token by token and greedy text against the package's own model."""
    with adapters.installed():
        from mamba_ssm.models.config_mamba import MambaConfig as Config
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    config = tiny_config
    theirs = MambaLMHeadModel(
        Config(d_model=config.d_model, n_layer=config.n_layer, vocab_size=config.vocab_size)
    ).eval()
    ours = MambaLM(config).eval()
    renamed = {
        name.replace("backbone.embedding.", "embeddings."): value
        for name, value in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    missing = ours.load_state_dict(renamed, strict=False)
    assert not missing.unexpected_keys, missing
    ids = torch.randint(0, config.vocab_size, (2, 9))
    with torch.no_grad(), forced("reference"):
        expected, _ = ours(ids)
        torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-4, atol=1e-5)
        tokens = theirs.generate(ids, max_length=15)
        for length in range(9, 15):
            logits, _ = ours(tokens[:, :length])
            assert torch.equal(logits[:, -1].argmax(-1), tokens[:, length])


def test_checkpoints_are_written_and_read(tmp_path: Path) -> None:
    with adapters.installed():
        from mamba_ssm import MambaLMHeadModel
        from mamba_ssm.models.config_mamba import MambaConfig as Config
    model = MambaLMHeadModel(Config(d_model=16, n_layer=1, vocab_size=20, d_intermediate=24))
    model.save_pretrained(tmp_path / "out")
    again = MambaLMHeadModel.from_pretrained(str(tmp_path / "out"))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids).logits, again(ids).logits)
    last = again(ids, num_last_tokens=1).logits
    torch.testing.assert_close(last, model(ids).logits[:, -1:])
