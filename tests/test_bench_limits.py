"""Benchmarks: the limits that rows are compared with, and the models with random weights that are timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bench import gpu_operators, limits
from bench.limits import Ceilings
from bench.random_folder import fill_weights, write_graph
from mamba_export import contract
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.contract.weights import Weights
from mamba_export.errors import MambaExportError
from mamba_export.models import Mamba2Config, MambaConfig, MambaLM, ModelConfig

H100 = Ceilings(3.018e12, limits.special_function_rate(132, 1.98e9), {"fp16": 8e14})


def test_special_function_rate() -> None:
    assert H100.special_rate == 132 * 16 * 1.98e9


def test_scan_bytes_are_those_of_the_tensors() -> None:
    for batch, d_inner, length, d_state, dtype in ((2, 32, 5, 16, "bf16"), (1, 8, 3, 4, "fp32")):
        [inputs] = gpu_operators.scan_inputs(1, batch, d_inner, length, d_state, dtype, "cpu")
        y, last = torch.ops.mamba_export.selective_scan(**inputs)
        moved = sum(tensor.nbytes for tensor in (*inputs.values(), y, last))
        assert limits.scan_bytes(batch, d_inner, length, d_state, dtype) == moved


def test_conv_bytes_are_those_of_the_tensors() -> None:
    [inputs] = gpu_operators.conv_inputs(1, 2, 32, 5, "bf16", "cpu")
    y, last = torch.ops.mamba_export.causal_conv1d(**inputs)
    moved = sum(tensor.nbytes for tensor in (*inputs.values(), y, last))
    assert limits.conv_bytes(2, 32, 5, 4, "bf16") == moved


def test_scan_limit() -> None:
    limit = limits.scan(H100, 64, 1536, 512, 16, "bf16")
    assert limit.bound == "exponentials"
    # 20 special functions an element at 4.18e12 a second: 4.8 ps an element.
    assert limit.milliseconds == pytest.approx(64 * 1536 * 512 * 4.783e-12 * 1e3, rel=1e-3)
    assert limits.scan(H100, 1, 1536, 512, 1, "fp32").bound == "memory"


def test_bytes_by_hand() -> None:
    """Batch 2, 4 steps, 8 channels, 3 states, bf16: counted tensor by tensor."""
    sequences = 4 * (2 * 4 * 8) + 2 * (2 * 4 * 3)  # u, delta, z, y; B, C
    parameters = 8 * 3 + 8 + 8  # A, D, delta_bias
    states = 2 * (2 * 8 * 3)
    assert (
        limits.scan_bytes(2, 8, 4, 3, "bf16") == 2 * sequences + 4 * (parameters + states) == 1152
    )
    # x, y, both states of 3 steps; weight of 4 taps and bias
    assert limits.conv_bytes(2, 8, 4, 4, "bf16") == 2 * (2 * 64 + 2 * 48) + 4 * (32 + 8) == 608


def test_step_limit_is_mostly_the_state_once_each_way() -> None:
    limit = limits.scan(H100, 64, 5120, 1, 16, "bf16")
    state = 1e3 * 2 * 64 * 5120 * 16 * 4 / 3.018e12
    assert limit.bound == "memory"
    assert state < limit.milliseconds < 1.1 * state


SMALL = (
    MambaConfig(d_model=32, n_layer=3, vocab_size=96, d_state=8),
    Mamba2Config(d_model=32, n_layer=3, vocab_size=96, d_state=8, head_dim=16),
)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.mixer)
def test_weight_bytes_are_those_of_the_model(config: ModelConfig) -> None:
    model = MambaLM(config)
    final_norm = 4 * config.d_model
    parameters = sum(p.nbytes for p in model.parameters())
    assert limits.weight_bytes(config, "fp32") == parameters - final_norm
    packed = limits.weight_bytes(config, "fp16", Weights("int4"))
    half = limits.weight_bytes(config, "fp16")
    others = 2 * half - limits.weight_bytes(config, "fp32")  # fp32 in either
    assert packed - others == pytest.approx((half - others) * (4 + 16 / 32) / 16)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.mixer)
def test_state_bytes_are_those_of_the_model(config: ModelConfig) -> None:
    states = [t for layer in MambaLM(config).initial_state(5) for t in layer]
    assert limits.state_bytes(config, 5, "fp32") == sum(t.nbytes for t in states)
    half = limits.state_bytes(config, 5, "fp16", state="fp16")
    assert 2 * half == limits.state_bytes(config, 5, "fp32")


@pytest.mark.parametrize(
    ("size", "milliseconds"), [("130m", 0.09), ("370m", 0.25), ("1.4b", 0.92), ("2.8b", 1.85)]
)
def test_decode_limit_at_published_sizes(size: str, milliseconds: float) -> None:
    limit = limits.decode(H100, MambaConfig.published(size), 1, "fp16")
    assert limit.bound == "weights"
    assert limit.milliseconds == pytest.approx(milliseconds, abs=0.02)


def test_decode_limit_of_many_sequences_is_their_states() -> None:
    assert limits.decode(H100, MambaConfig.published("130m"), 64, "fp16").bound == "states"


def test_prefill_limit_counts_products() -> None:
    config = MambaConfig.published("2.8b")
    limit = limits.prefill(H100, config, 1, 8192, "fp16")
    assert limit.bound == "products"
    matrices = sum(
        p.numel()
        for layer in _meta(config).backbone.layers
        for name, p in layer.mixer.named_parameters()
        if "proj.weight" in name
    )
    operations = 2 * 8192 * matrices + 2 * config.vocab_size * config.d_model
    assert limit.milliseconds == pytest.approx(1e3 * operations / 8e14)
    assert limits.prefill(H100, config, 1, 1, "fp16").bound == "weights"


def _meta(config: MambaConfig) -> MambaLM:
    with torch.device("meta"):
        return MambaLM(config)


# Models with random weights


@pytest.mark.parametrize("last_logits_only", [True, False])
def test_random_folder_runs(
    tmp_path: Path, tiny_config: MambaConfig, last_logits_only: bool
) -> None:
    folder = tmp_path / "m"
    write_graph(tiny_config, folder, dtype="fp32", last_logits_only=last_logits_only)
    assert not (folder / contract.WEIGHTS_FILE).exists()
    size = fill_weights(folder)
    assert size == (folder / contract.WEIGHTS_FILE).stat().st_size
    onnx.checker.check_model(str(folder / contract.MODEL_FILE))
    session = OrtSession(folder, providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(0).integers(0, 256, (2, 40))
    logits, state = session.run(tokens)
    assert logits.shape == (2, 1 if last_logits_only else 40, 256)
    assert np.isfinite(logits).all()
    assert logits.std() > 1e-3
    assert all(np.isfinite(tensor).all() for tensor in state.numpy())


def test_random_folder_fills_every_parameter(tmp_path: Path, tiny_config: MambaConfig) -> None:
    write_graph(tiny_config, tmp_path / "m", dtype="fp16")
    fill_weights(tmp_path / "m")
    model = onnx.load(tmp_path / "m" / contract.MODEL_FILE)
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    names = {n.replace(".A_log", ".A") for n, _ in MambaLM(tiny_config).named_parameters()}
    assert names <= set(arrays)
    assert all(
        np.isfinite(a).all() and np.abs(a).max() > 0 for n, a in arrays.items() if n in names
    )
    A = arrays["backbone.layers.1.mixer.A"]
    np.testing.assert_array_equal(A, np.tile(-np.arange(1.0, 17), (64, 1)))


def test_random_folder_dtype_is_checked(tmp_path: Path, tiny_config: MambaConfig) -> None:
    with pytest.raises(MambaExportError, match="dtype 'int8' is unknown"):
        write_graph(tiny_config, tmp_path / "m", dtype="int8")
