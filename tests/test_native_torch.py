"""The compiled CPU kernels under PyTorch: parity with the float64 reference, and the same bits every time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from c_header import header_text
from cases import (
    CONV,
    FP32_BOUND,
    ROUNDING_FLOOR,
    SCAN,
    SEQUENCES,
    assert_split_equals_whole,
    conv_inputs,
    double,
    error,
    every_dtype,
    scan_inputs,
)
from torch import Tensor
from truths import last_state_truth, scan_truth

from mamba_export import contract
from mamba_export.operators import kernel_library, native
from mamba_export.operators.causal_conv1d import MAX_TAPS
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.operators.selective_scan.reference import selective_scan_reference

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"]
)
REVERSE = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
GATE = pytest.mark.parametrize("gate", [True, False], ids=["gate", "no gate"])
installed = pytest.mark.skipif(not native.available(), reason=native.why_absent())


@pytest.fixture
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "native")


uses_native = pytest.mark.usefixtures("_native")


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same_bits(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    """Whether all tensors are equal bit by bit (NaN equals NaN of the same bits)."""
    return all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(left, right, strict=True)
    )


def assert_scan_parity(inputs: list[Tensor | None], *flags: bool) -> None:
    """Hold the native scan to the project's bounds."""
    truth = selective_scan_reference(*double(inputs), *flags)
    y, last_state = SCAN(*inputs, *flags)
    assert y.dtype == inputs[0].dtype
    assert last_state.dtype == torch.float32
    assert torch.isfinite(y).all()
    allowed = FP32_BOUND
    if y.dtype != torch.float32:
        reference = selective_scan_reference(*inputs, *flags)[0]
        allowed = 2 * error(reference, truth[0]) + ROUNDING_FLOOR[y.dtype]
    assert error(y, truth[0]) <= allowed
    assert error(last_state, truth[1]) <= FP32_BOUND


@installed
@uses_native
@DTYPES
@pytest.mark.parametrize("length", [1, 3, 40])
def test_no_initial_state_is_zeros(length: int, dtype: torch.dtype) -> None:
    """Of lanes that are channels, and of lanes that are states."""
    for d_state in (5, 16, 64):
        inputs = scan_inputs(length=length, d_state=d_state, dtype=dtype)
        inputs[-1].zero_()
        assert same_bits(SCAN(*inputs[:-1], None, True, False), SCAN(*inputs, True, False))


def test_version_and_dtypes_mirror_the_header() -> None:
    text = header_text()
    assert f"#define MAMBA_KERNELS_VERSION {kernel_library.VERSION}\n" in text
    names = {torch.float32: "MAMBA_FP32", torch.float16: "MAMBA_FP16", torch.bfloat16: "MAMBA_BF16"}
    for dtype, number in native.DTYPES.items():
        assert f"{names[dtype]} = {number}" in text
    assert f"MAMBA_OK = {kernel_library.OK}" in text
    assert f"MAMBA_INVALID = {kernel_library.INVALID}" in text
    statuses = ("NO_CUDA = 2", "CUDA_ERROR = 3", "OUT_OF_MEMORY = 4", "INTERNAL = 5")
    assert all(f"MAMBA_{status}" in text for status in statuses), "part of the interface for ever"


@installed
@uses_native
@DTYPES
@REVERSE
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
def test_scan_lengths(length: int, batch: int, reverse: bool, dtype: torch.dtype) -> None:
    assert_scan_parity(scan_inputs(batch, length, dtype=dtype), True, reverse)


@installed
@uses_native
@DTYPES
@GATE
@pytest.mark.parametrize("n_groups", [1, 2])
@pytest.mark.parametrize("d_state", [1, 3, 8, 16, 64, 256])
def test_scan_states_and_groups(
    d_state: int, n_groups: int, gate: bool, dtype: torch.dtype
) -> None:
    assert_scan_parity(scan_inputs(2, 20, 24, d_state, n_groups, gate=gate, dtype=dtype))


@installed
@uses_native
@DTYPES
@pytest.mark.parametrize("length", [1, 33])
@pytest.mark.parametrize("d_inner", [1, 5, 16, 17, 40, 130])
def test_scan_channels(d_inner: int, length: int, dtype: torch.dtype) -> None:
    assert_scan_parity(scan_inputs(2, length, d_inner, dtype=dtype))


@installed
@uses_native
@pytest.mark.parametrize("d_state", [5, 16])
@pytest.mark.parametrize("n_groups", [3, 17, 51])
def test_scan_groups_that_cut_across_vectors(n_groups: int, d_state: int) -> None:
    assert_scan_parity(scan_inputs(2, 9, 51, d_state, n_groups))


@installed
@uses_native
@DTYPES
@pytest.mark.parametrize("shift", [-100.0, -30.0, -10.0, 10.0, 30.0, 100.0])
def test_scan_extreme_steps(shift: float, dtype: torch.dtype) -> None:
    assert_scan_parity(scan_inputs(2, 65, delta_shift=shift, dtype=dtype))


@installed
@uses_native
@pytest.mark.parametrize("at_once", [3001, 1])
def test_a_long_memory_keeps_its_digits(at_once: int) -> None:
    """Steps of few different numbers, as 16 bits have them: their decays round alike, again and again."""
    *inputs, state = scan_inputs(1, 3001, 24, delta_shift=-8)
    for index in SEQUENCES:
        inputs[index] = every_dtype(inputs[index])
    truth = scan_truth(*inputs, state)[1]
    for t in range(0, 3001, at_once):
        part = [one[:, t : t + at_once] if i in SEQUENCES else one for i, one in enumerate(inputs)]
        state = SCAN(*part, state)[1]
    assert error(state, truth) <= FP32_BOUND


@installed
@uses_native
@REVERSE
def test_scan_plain_steps(reverse: bool) -> None:
    inputs = scan_inputs(2, 65)
    inputs[1], inputs[7] = 0.1 * inputs[1].abs(), inputs[7].abs()
    assert_scan_parity(inputs, False, reverse)


@installed
@uses_native
@REVERSE
@DTYPES
def test_scan_reads_strided_inputs(dtype: torch.dtype, reverse: bool) -> None:
    """Slices of a projection, dense or not; expanded batches; parameters that are transposed."""
    inputs = scan_inputs(2, 33, 40, 8, 2, dtype=dtype)
    expected = SCAN(*inputs, True, reverse)
    joined = torch.cat([inputs[0], inputs[6], inputs[1]], -1)
    u, z, delta = joined.split(40, -1)
    B, C = torch.cat([inputs[3], inputs[4]], 2).split(2, 2)
    A = inputs[2].t().contiguous().t()
    state = inputs[8].transpose(1, 2).contiguous().transpose(1, 2)
    views = [u, delta, A, B, C, inputs[5], z, inputs[7], state]
    assert same_bits(SCAN(*views, True, reverse), expected)

    sparse = [t if t.dim() < 3 else t.repeat_interleave(2, -1)[..., ::2] for t in inputs]
    sparse[0] = inputs[0].transpose(1, 2).contiguous().transpose(1, 2)  # channels first
    sparse[1] = inputs[1].transpose(0, 1).contiguous().transpose(0, 1)  # length first
    assert same_bits(SCAN(*sparse, True, reverse), expected)

    one = [t if t.dim() < 3 else t[:1].expand(2, *t.shape[1:]) for t in inputs]
    assert same_bits(SCAN(*one, True, reverse), SCAN(*[t.contiguous() for t in one], True, reverse))


@installed
@uses_native
@DTYPES
@REVERSE
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "linear"])
@pytest.mark.parametrize("length", [1, 2, 5, 129])
@pytest.mark.parametrize("d_conv", [1, 2, 3, 4, 5, 16])
def test_conv(d_conv: int, length: int, silu: bool, reverse: bool, dtype: torch.dtype) -> None:
    for channels in (5, 40):
        inputs = conv_inputs(3, length, channels, d_conv, dtype)
        truth = causal_conv1d_reference(*double(inputs), silu, reverse)
        y, last_state = CONV(*inputs, silu, reverse)
        assert (y.dtype, last_state.dtype) == (dtype, dtype)
        allowed = FP32_BOUND
        if dtype != torch.float32:
            reference = causal_conv1d_reference(*inputs, silu, reverse)[0]
            allowed = 2 * error(reference, truth[0]) + ROUNDING_FLOOR[dtype]
        assert error(y, truth[0]) <= allowed
        assert torch.equal(last_state, truth[1].to(dtype))  # copied, so exact


@installed
@uses_native
@DTYPES
def test_conv_reads_strided_inputs(dtype: torch.dtype) -> None:
    x, weight, bias, state = conv_inputs(2, 33, 40, 4, dtype)
    expected = CONV(x, weight, bias, state)
    views = (
        torch.cat([x, x], -1)[..., :40],
        weight.t().contiguous().t(),
        bias,
        state.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert same_bits(CONV(*views), expected)
    channels_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert same_bits(CONV(channels_first, weight, bias, state), expected)


@installed
@uses_native
def test_taps_beyond_the_kernels_take_the_vectorised_path() -> None:
    inputs = conv_inputs(2, 40, 8, MAX_TAPS + 1)
    truth = causal_conv1d_reference(*double(inputs))
    for output, expected in zip(CONV(*inputs), truth, strict=True):
        assert error(output, expected) <= FP32_BOUND
    with pytest.raises(ValueError, match=r"causal_conv1d: d_conv 17 .* at most 16"):
        native.compiled(contract.CAUSAL_CONV1D)(*inputs, True, False)


@installed
@uses_native
@pytest.mark.usefixtures("_threads")
@DTYPES
def test_thread_count_does_not_change_a_bit(dtype: torch.dtype) -> None:
    scan = scan_inputs(2, 130, 100, 16, 2, dtype=dtype)
    conv = conv_inputs(2, 700, 100, 4, dtype)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append((*SCAN(*scan), *CONV(*conv)))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@installed
@uses_native
@pytest.mark.usefixtures("_threads")
@DTYPES
def test_a_thousand_runs_are_equal_bit_by_bit(dtype: torch.dtype) -> None:
    torch.set_num_threads(2)
    scan = scan_inputs(1, 40, 72, 16, dtype=dtype)
    conv = conv_inputs(1, 150, 72, 4, dtype)
    first = (*SCAN(*scan), *CONV(*conv))
    for _ in range(1000):
        assert same_bits((*SCAN(*scan), *CONV(*conv)), first)


@installed
@uses_native
@pytest.mark.usefixtures("_threads")
def test_flushing_subnormals_holds_on_every_thread() -> None:
    inputs = scan_inputs(1, 200, 100, 16)
    inputs[0], inputs[8] = inputs[0] * 1e-39, inputs[8] * 1e-39
    results = []
    torch.set_flush_denormal(True)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(SCAN(*inputs))
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(*results)


@installed
@uses_native
@DTYPES
@REVERSE
@pytest.mark.parametrize("parts", [(1,) * 40, (20, 20), (39, 1), (1, 38, 1)], ids=str)
def test_split_equals_whole(parts: tuple[int, ...], reverse: bool, dtype: torch.dtype) -> None:
    scan = scan_inputs(2, 40, 20, dtype=dtype)
    assert_split_equals_whole(scan, conv_inputs(2, 40, 20, 4, dtype), parts, reverse)


@installed
@uses_native
def test_nan_is_passed_on_and_stays_in_its_channel() -> None:
    inputs = scan_inputs(2, 20, 40)
    inputs[8][1, 7, 3] = float("nan")
    y, last_state = SCAN(*inputs)
    bad = torch.zeros(2, 40, dtype=torch.bool)
    bad[1, 7] = True
    assert torch.equal(y.isnan().all(1), bad)
    assert torch.equal(y.isnan().any(1), bad)
    assert torch.equal(last_state.isnan().any(-1), bad)
    for index in (0, 1, 3, 4, 6):
        inputs = scan_inputs(2, 20, 40)
        inputs[index][0, 5] = float("nan")
        assert SCAN(*inputs)[0][0, 5].isnan().all()
    conv = conv_inputs(2, 20, 40)
    conv[0][0, 5, 3] = float("nan")
    assert CONV(*conv)[0][0, 5:9, 3].isnan().all()
    assert CONV(*conv)[0].isnan().sum() == 4


@installed
@uses_native
def test_infinite_steps_follow_the_reference() -> None:
    inputs = scan_inputs(1, 6, 20)
    inputs[1][0, 2, 4] = float("inf")
    inputs[1][0, 3, 5] = -float("inf")
    truth = selective_scan_reference(*inputs)
    for output, expected in zip(SCAN(*inputs), truth, strict=True):
        torch.testing.assert_close(output, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@installed
@uses_native
def test_inputs_are_left_alone_and_outputs_share_no_memory() -> None:
    for op, inputs in ((SCAN, scan_inputs(2, 33)), (CONV, conv_inputs(2, 33))):
        before = [t.clone() for t in inputs]
        outputs = op(*inputs)
        assert same_bits(tuple(inputs), tuple(before))
        addresses = {t.untyped_storage().data_ptr() for t in (*inputs, *outputs)}
        assert len(addresses) == len(inputs) + len(outputs)
        assert all(t.is_contiguous() for t in outputs)


@installed
@uses_native
@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 5, 0)], ids=["no batch", "no channels"])
def test_empty_tensors_give_empty_tensors(shape: tuple[int, int, int]) -> None:
    batch, length, d_inner = shape
    y, last_state = SCAN(*scan_inputs(batch, length, d_inner))
    assert (y.shape, last_state.shape) == (shape, (batch, d_inner, 16))
    y, last_state = CONV(*conv_inputs(batch, length, d_inner))
    assert (y.shape, last_state.shape) == (shape, (batch, d_inner, 3))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_truths_of_the_gpu_tests_are_the_references(reverse: bool) -> None:
    for inputs in (scan_inputs(2, 45, 6, 4, 2), scan_inputs(1, 1, 4, 3, gate=False)):
        truth = selective_scan_reference(*double(inputs), True, reverse)
        for found, expected in zip(scan_truth(*inputs, True, reverse), truth, strict=True):
            assert error(found, expected) < 1e-14
    u, delta, A, B, _, _, _, bias, state = inputs = scan_inputs(2, 45, 6)
    truth = selective_scan_reference(*double(inputs))[1]
    assert error(last_state_truth(u, delta, A, B, bias, state, chunk=7), truth) < 1e-12


@installed
@uses_native
def test_gradients_are_the_vectorised_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [t.requires_grad_() for t in scan_inputs(2, 20)]
    conv = [t.requires_grad_() for t in conv_inputs(2, 20)]

    def gradients() -> list[Tensor]:
        outputs = (*SCAN(*inputs), *CONV(*conv))
        return list(torch.autograd.grad(sum(t.sum() for t in outputs), inputs + conv))

    found = gradients()
    monkeypatch.setenv(BACKEND_VARIABLE, "cpu")
    for a, b in zip(found, gradients(), strict=True):
        assert error(a, b) <= FP32_BOUND


CONCURRENT = """
import os, sys, threading, torch
from mamba_export import contract
from mamba_export.operators import native

torch.manual_seed(0)
u, delta, z = torch.randn(3, 1, 200, 96).unbind(0)
A, D, bias, state = -torch.rand(96, 16), torch.randn(96), torch.randn(96), torch.randn(1, 96, 16)
B, C = torch.randn(2, 1, 200, 1, 16).unbind(0)
torch.set_num_threads(3)

def run():
    return native.compiled(contract.SELECTIVE_SCAN)(u, delta, A, B, C, D, z, bias, state, True, False, False)

expected = run()

def same():
    return all(torch.equal(a, b) for a, b in zip(run(), expected))

results = []
threads = [
    threading.Thread(target=lambda: results.append(all(same() for _ in range(200)))) for _ in range(4)
]
for thread in threads: thread.start()
child = os.fork()  # the others are in the middle of their calls
if child == 0:
    os._exit(0 if all(same() for _ in range(20)) else 1)
for thread in threads: thread.join()
assert results == [True] * 4, results
assert os.waitpid(child, 0)[1] == 0
print("fine")
"""


@installed
def test_threads_and_forked_processes_share_the_pool() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CONCURRENT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout == "fine\n", result.stderr
