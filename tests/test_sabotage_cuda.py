"""verify finds faults planted into every family of CUDA kernels, and names the operator or the layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cuda_faults import FAULTS, INT4, SUPPORT
from cuda_provider import NEEDS_CUDA
from planted_faults import EXACT, VARIABLE, build, built_file, exports, failing

from mamba_export import export, libraries, verify
from mamba_export.models import Mamba2Config, MambaConfig

pytestmark = NEEDS_CUDA


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The patched custom-op library, compiled for this GPU alone."""
    major, minor = torch.cuda.get_device_capability()
    options = [
        "-DMAMBA_CUDA=ON",
        f"-DMAMBA_CUDA_ARCHITECTURES={major}{minor}",
        "-DMAMBA_INSTRUCTION_SETS=",
    ]
    folder = tmp_path_factory.mktemp("variant")
    return built_file(
        build(folder, FAULTS, SUPPORT, ["mamba_export_ort"], options), libraries.CUSTOM_OPS.file
    )


@pytest.fixture(autouse=True)
def _installed(variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(libraries.CUSTOM_OPS.variable, str(variant))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The files by mixer and dtype."""
    sizes = {"n_layer": 2, "vocab_size": 64}
    configs = {
        "mamba": MambaConfig(d_model=68, **sizes),
        "mamba2": Mamba2Config(d_model=64, head_dim=16, **sizes),
        EXACT: MambaConfig(d_model=68, exact_zoh=True, **sizes),
    }
    bases = {mixer: tmp_path_factory.mktemp("exported") for mixer in configs}
    found = {
        (mixer, dtype): folder
        for mixer, config in configs.items()
        for dtype, folder in exports(bases[mixer], config).items()
    }
    base = bases["mamba2"]
    found["mamba2", INT4] = export(base / "source", base / INT4, dtype="fp16", weights=INT4)
    return found


@pytest.mark.parametrize(
    ("mixer", "dtype"),
    [
        *(
            (mixer, dtype)
            for mixer in ("mamba", "mamba2", EXACT)
            for dtype in ("fp32", "fp16", "bf16")
        ),
        ("mamba2", INT4),
    ],
)
def test_without_a_fault_the_variant_passes(
    exported: dict[tuple[str, str], Path], dtype: str, mixer: str
) -> None:
    assert failing(verify(exported[mixer, dtype], backends=["cuda-native"], quick=True)) == []


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[fault.name for fault in FAULTS])
def test_a_planted_fault_is_found_and_named(
    exported: dict[tuple[str, str], Path], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[number - 1]
    monkeypatch.setenv(VARIABLE, str(number))
    report = verify(exported[fault.mixer, fault.dtype], backends=["cuda-native"], quick=True)
    assert fault.check in failing(report)
