"""The compiled CUDA kernels under PyTorch: parity with float64, the same bits every time, graphs, bad input.

MAMBA_EXPORT_KERNELS=build/libmamba_export_kernels.so pytest -m gpu tests/test_native_torch_cuda.py
"""

from __future__ import annotations

import ctypes
import threading

import pytest
import torch
from c_header import Sequence, mirror
from cases import (
    CONV,
    FP32_BOUND,
    ROUNDING_FLOOR,
    SCAN,
    SEQUENCES,
    Conv,
    Scan,
    assert_split_equals_whole,
    bound,
    conv_case,
    conv_inputs,
    error,
    low,
    low_conv,
    scan_case,
    scan_inputs,
)
from torch import Tensor
from truths import last_state_truth, poisoned

from mamba_export.operators import native
from mamba_export.operators.causal_conv1d import MAX_TAPS
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.dispatch import BACKEND_VARIABLE, choose_backend
from mamba_export.operators.selective_scan.reference import selective_scan_reference

ScanParams = mirror("mamba_selective_scan_params")
ConvParams = mirror("mamba_causal_conv1d_params")

GPU = torch.device("cuda", 0)
WHY_NOT = native.why_not_on(GPU) if torch.cuda.is_available() else ""
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing falls back to another implementation unseen."""
    monkeypatch.setenv(BACKEND_VARIABLE, "native")


def assert_scan(
    outputs: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    y, last_state = outputs
    assert (y.dtype, last_state.dtype) == (dtype, torch.float32)
    assert torch.isfinite(y).all()
    assert torch.isfinite(last_state).all()
    assert error(y, truth[0]) <= bound(truth[0], dtype)
    assert error(last_state, truth[1]) <= FP32_BOUND


def same_bits(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> Tensor:
    """Whether all are equal bit by bit, as a tensor: nothing waits for the GPU."""
    pairs = zip(left, right, strict=True)
    equal = [a.contiguous().view(torch.uint8) == b.contiguous().view(torch.uint8) for a, b in pairs]
    return torch.stack([bits.all() for bits in equal]).all()


LENGTHS = (1, 2, 3, 8, 9, 63, 64, 65, 1000)
STATES = (1, 8, 16, 64, 128, 256, 300)
CHANNELS = (1, 7, 24, 130, 1536)
SCANS = [
    *(Scan(batch, length, reverse=r) for length in LENGTHS for batch in (1, 3) for r in (False, True)),
    *(
        Scan(2, length, 24, n, groups, gate, reverse=gate)
        for n in STATES for groups in (1, 2) for gate in (True, False) for length in (1, 65)
    ),
    *(Scan(2, length, d) for d in CHANNELS for length in (1, 2, 65, 300)),
    *(Scan(3, length, 51, 5, groups) for groups in (3, 17, 51) for length in (1, 9)),
    *(Scan(2, length, shift=s) for s in (-100, -30, -10, 10, 30, 100) for length in (1, 65)),
    *(
        Scan(2, length, gate=gate, reverse=r, softplus=False)
        for length in (1, 8, 65) for gate in (True, False) for r in (True, False)
    ),
    # Few states: few channels; more of them; so many that a block has fewer warps; split lengths.
    *(
        Scan(2, length, 24, n, 4, gate=n % 2 == 0, reverse=length % 2 == 1)
        for n in (1, 2, 3, 4) for length in (1, 2, 49, 63, 64, 65, 196, 1000)
    ),
    *(Scan(8, 1000, d, n, 4, gate=n == 1) for n in (1, 2, 3, 4) for d in (256, 384)),
    *(Scan(64, 49, d, 1, 4, gate, reverse=gate) for d in (384, 1536) for gate in (True, False)),
    *(Scan(64, 65, 136, n, 4, gate=n == 3, reverse=n == 4) for n in (2, 3, 4)),
    *(Scan(1, 6144 // n + extra, 24, n, 2, reverse=n == 4) for n in (1, 4) for extra in (0, 1)),
    # Few channels and many steps, where the length is split over the GPU; then shapes that fill it.
    *(Scan(1, 20000, 64, reverse=r) for r in (False, True)),
    *(Scan(2, 4097, d, n) for d, n in ((1, 16), (7, 64), (32, 128), (64, 8), (16, 300))),
    Scan(1, 5000, 64, 16, 2, gate=False, shift=-6),
    Scan(1, 2048, 1536), Scan(8, 300, 1024), Scan(64, 64, 1536), Scan(64, 1, 1536), Scan(8, 1, 1536, 128),
    # On tensor cores, blocks that have a multiprocessor each or share one, the last one not full;
    # the widths between; states that fill half a product.
    *(
        Scan(8, length, d, n, gate=d < 700, reverse=length == 100)
        for d in (504, 640, 1000) for n, length in ((16, 65), (16, 100), (8, 33))
    ),
    *(Scan(1, 300, d) for d in (2048, 4096)),
    *(
        Scan(8, length, d, reverse=length % 2 == 0)
        for d in (504, 1000) for length in (9, 31, 32, 95, 96, 97, 129)
    ),
    # Long memories: split, pipelined, on tensor cores; few states, groups, very many states.
    *(Scan(1, 3001, d, shift=-8) for d in (64, 1536, 4096)),
    Scan(8, 3001, 384, 2, shift=-8), Scan(8, 3001, 384, 16, 2, shift=-8), Scan(1, 3001, 24, 300, shift=-8),
    *(
        Scan(2, length, d, n, groups, reverse=length == 2, shift=s, exact_zoh=True)
        for length in (1, 2, 65, 1000) for s in (-16, 0, 20)
        for d, n, groups in ((24, 16, 1), (130, 6, 2), (24, 300, 1))
    ),
    *(Scan(2, 65, gate=gate, softplus=False, exact_zoh=True) for gate in (True, False)),
    Scan(1, 5000, 64, exact_zoh=True),  # a length that is split without it
    Scan(2, 1, 1536, 16, 2), Scan(4, 300, 512, 128), Scan(2, 300, 512, 64, 8, reverse=True),
]  # fmt: skip
CONVS = [
    *(
        Conv(batch, length, reverse=r)
        for length in LENGTHS for batch in (1, 3) for r in (False, True)
    ),
    *(Conv(2, length, d) for d in CHANNELS for length in (1, 65)),
    *(
        Conv(2, length, 24, taps, silu, reverse)
        for taps in (1, 2, 3, 4, 5, 16) for length in (1, 2, 65)
        for silu in (True, False) for reverse in (True, False)
    ),
    Conv(1, 20000, 64), Conv(64, 64, 1536), Conv(1, 2048, 1536), Conv(64, 1, 1536),
    *(Conv(8, 1001, 1536, reverse=r) for r in (False, True)),  # several chunks a thread
]  # fmt: skip


def each(cases: list) -> pytest.MarkDecorator:
    """Every case in every dtype, dtypes side by side: they share the case's truth."""
    pairs = [
        pytest.param(case, dtype, id=f"{case}-{name}")
        for case in dict.fromkeys(cases)
        for name, dtype in DTYPES.items()
    ]
    return pytest.mark.parametrize(("case", "dtype"), pairs)


@each(SCANS)
def test_scan(case: Scan, dtype: torch.dtype) -> None:
    inputs, truth = scan_case(case)
    with poisoned():
        outputs = SCAN(*low(inputs, dtype), case.softplus, case.reverse, case.exact_zoh)
    assert_scan(outputs, truth, dtype)


@each(CONVS)
def test_conv(case: Conv, dtype: torch.dtype) -> None:
    inputs, truth = conv_case(case)
    with poisoned():
        y, last_state = CONV(*low_conv(inputs, dtype), case.silu, case.reverse)
    assert (y.dtype, last_state.dtype) == (dtype, dtype)
    assert error(y, truth[0]) <= bound(truth[0], dtype)
    assert torch.equal(last_state, truth[1].to(dtype))  # copied, so exact


@EVERY_DTYPE
@pytest.mark.parametrize("d_inner", [24, 40, 7])
@pytest.mark.parametrize("length", [1, 2, 33, 300])
@pytest.mark.parametrize("rank", [0, 1, 3, 8])
def test_strided_inputs(rank: int, length: int, d_inner: int, dtype: torch.dtype) -> None:
    """Slices of projections, as a model has them; with an odd rank, no load of B and C is aligned."""
    case = Scan(2, length, d_inner, 16, shift=-1)
    inputs, truth = scan_case(case)
    u, delta, A, B, C, D, z, bias, state = low(inputs, dtype)
    xz = torch.cat([u, z], -1)
    projected = torch.cat([delta.new_zeros(2, length, rank), B[:, :, 0], C[:, :, 0], delta], -1)
    _, B, C, delta = projected.split([rank, 16, 16, d_inner], -1)
    views = [
        xz[..., :d_inner], delta, A.t().contiguous().t(), B.unsqueeze(2), C.unsqueeze(2), D,
        xz[..., d_inner:], bias, state.transpose(1, 2).contiguous().transpose(1, 2),
    ]  # fmt: skip
    with poisoned():
        assert_scan(SCAN(*views), truth, dtype)
        x, weight, conv_bias, conv_state = conv_inputs(2, length, d_inner, 4)
        conv = [t.cuda() for t in (x.to(dtype), weight, conv_bias, conv_state.to(dtype))]
        expected = CONV(*conv)
        wide = torch.cat([conv[0][..., :rank], conv[0], conv[0]], -1)
        conv[0] = wide[..., min(rank, d_inner) :][..., :d_inner]
        assert same_bits(CONV(*conv), expected)


@EVERY_DTYPE
def test_other_layouts_are_read_or_copied(dtype: torch.dtype) -> None:
    case = Scan(3, 33, 40, 8, 2)
    inputs, truth = scan_case(case)
    inputs = low(inputs, dtype)
    every_second = [t if t.dim() < 3 else t.repeat_interleave(2, -1)[..., ::2] for t in inputs]
    every_second[0] = inputs[0].transpose(1, 2).contiguous().transpose(1, 2)  # channels first
    every_second[1] = inputs[1].transpose(0, 1).contiguous().transpose(0, 1)  # length first
    with poisoned():
        assert_scan(SCAN(*every_second), truth, dtype)
        one = [t if t.dim() < 3 else t[:1].expand(3, *t.shape[1:]) for t in inputs]
        assert same_bits(SCAN(*one), SCAN(*[t.contiguous() for t in one]))


@EVERY_DTYPE
def test_a_long_memory_keeps_its_digits_token_by_token(dtype: torch.dtype) -> None:
    inputs, truth = scan_case(Scan(1, 3001, 24, shift=-8))
    *sequences, state = low(inputs, dtype)
    for t in range(3001):
        token = [one[:, t : t + 1] if i in SEQUENCES else one for i, one in enumerate(sequences)]
        state = SCAN(*token, state)[1]
    assert error(state, truth[1]) <= FP32_BOUND


@EVERY_DTYPE
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "parts",
    [(1,) * 40, (20, 20), (39, 1), (1, 38, 1), (2,) * 8 + (8, 16), (4000, 1000), (1, 4999)],
    ids=lambda parts: f"{len(parts)} parts from {parts[0]} to {parts[-1]}",
)
def test_split_equals_whole(parts: tuple[int, ...], reverse: bool, dtype: torch.dtype) -> None:
    length = sum(parts)
    inputs = low([t.cuda() for t in scan_inputs(2, length, 20)], dtype)
    conv = [t.cuda() for t in conv_inputs(2, length, 20, 4, dtype)]
    with poisoned():
        assert_split_equals_whole(inputs, conv, parts, reverse)


@EVERY_DTYPE
@pytest.mark.parametrize(
    ("case", "times"),
    [
        (Scan(8, 196, 256, 1, 4), 1000),
        (Scan(8, 196, 96, 4), 1000),
        (Scan(64, 65, 136, 1), 1000),
        (Scan(4, 1, 256), 1000),
        (Scan(4, 7, 256), 1000),
        (Scan(2, 300, 64), 10_000),
        (Scan(32, 64, 512), 1000),
        (Scan(8, 300, 512), 1000),
        (Scan(8, 300, 1024), 1000),
        (Scan(1, 5000, 64), 1000),
        (Scan(1, 700, 40, 128, 2, reverse=True), 1000),
        (Scan(1, 100, 24, 300), 1000),
    ],
    ids=str,
)
def test_repetitions_are_equal_bit_by_bit(case: Scan, times: int, dtype: torch.dtype) -> None:
    scan = low(scan_case(case)[0], dtype)
    conv = [t.cuda() for t in conv_inputs(case.batch, case.length, case.d_inner, 4, dtype)]
    first = (*SCAN(*scan, True, case.reverse), *CONV(*conv))
    same = torch.ones((), dtype=torch.bool, device=GPU)
    for _ in range(times):
        same &= same_bits((*SCAN(*scan, True, case.reverse), *CONV(*conv)), first)
    assert same


def raw_scan(inputs: list[Tensor | None], y: Tensor, last_state: Tensor) -> None:
    """Call the C function as a program without PyTorch would, on CUDA's default stream."""
    u, delta, A, B, C, D, z, bias, state = inputs

    def sequence(tensor: Tensor | None) -> Sequence:
        if tensor is None:
            return Sequence()
        return Sequence(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))

    params = ScanParams(
        *u.shape, A.shape[1], B.shape[2], native.DTYPES[u.dtype], True, False, False,
        sequence(u), sequence(delta), sequence(B), sequence(C), sequence(z),
        A.data_ptr(), D.data_ptr(), bias.data_ptr(), state.data_ptr(), y.data_ptr(), last_state.data_ptr(),
    )  # fmt: skip
    functions = native.library().functions
    size = functions.mamba_selective_scan_cuda_workspace(ctypes.byref(params))
    workspace = torch.full((max(size, 1),), 255, dtype=torch.uint8, device=GPU)
    torch.cuda.synchronize()
    status = functions.mamba_selective_scan_cuda(ctypes.byref(params), workspace.data_ptr(), None)
    assert status == 0, functions.mamba_last_error()
    torch.cuda.synchronize()


@EVERY_DTYPE
@pytest.mark.parametrize(
    "case",
    [
        *(Scan(3, 1), Scan(3, 5), Scan(), Scan(1, 5000, 64), Scan(2, 65, 24, 300)),
        *(Scan(2, 65, 24, 1, 4), Scan(64, 65, 136, 1), Scan(2, 65, 24, 3)),
    ],
    ids=str,
)
def test_state_in_place(case: Scan, dtype: torch.dtype) -> None:
    """last_state may be initial_state, in the scan and in the convolution."""
    inputs = low(scan_case(case)[0], dtype)
    expected = SCAN(*inputs)
    y = torch.full_like(inputs[0], torch.nan)
    raw_scan(inputs, y, inputs[8])
    assert same_bits((y, inputs[8]), expected)

    x, weight, bias, state = (
        t.cuda() for t in conv_inputs(case.batch, case.length, case.d_inner, 4, dtype)
    )
    expected = CONV(x, weight, bias, state)
    params = ConvParams(
        *x.shape, 4, native.DTYPES[dtype], True, False,
        Sequence(x.data_ptr(), x.stride(0), x.stride(1)),
        weight.data_ptr(), bias.data_ptr(), state.data_ptr(), y.data_ptr(), state.data_ptr(),
    )  # fmt: skip
    torch.cuda.synchronize()
    functions = native.library().functions
    assert functions.mamba_causal_conv1d_cuda(ctypes.byref(params), None) == 0
    torch.cuda.synchronize()
    assert same_bits((y, state), expected)


@EVERY_DTYPE
@pytest.mark.parametrize("d_state", [1, 16, 128, 300])
@pytest.mark.parametrize("shape", [(2, 1, 24), (3, 65, 24), (64, 65, 1536), (1, 5000, 64)], ids=str)
def test_no_initial_state_is_zeros(
    shape: tuple[int, int, int], d_state: int, dtype: torch.dtype
) -> None:
    """In every form that a shape picks."""
    inputs = [t.cuda() for t in scan_inputs(*shape, d_state, dtype=dtype)]
    inputs[-1].zero_()
    assert same_bits(SCAN(*inputs[:-1], None), SCAN(*inputs))


@EVERY_DTYPE
@pytest.mark.parametrize("case", [Scan(1, 1, 512), Scan(), Scan(1, 5000, 64)], ids=str)
def test_cuda_graph(case: Scan, dtype: torch.dtype) -> None:
    """Captured once, replayed with other inputs: nothing is allocated and nothing waits."""
    scan = low(scan_case(case)[0], dtype)
    conv = [t.cuda() for t in conv_inputs(case.batch, case.length, case.d_inner, 4, dtype)]

    def run() -> tuple[Tensor, ...]:
        return (*SCAN(*scan), *CONV(*conv))

    run()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(3):
        for tensor in (scan[0], scan[8], conv[0], conv[3]):
            tensor.copy_(torch.randn_like(tensor))
        for output in captured:
            output.fill_(torch.nan)
        graph.replay()
        assert same_bits(captured, run())


def test_work_follows_the_current_stream() -> None:
    inputs = [t.cuda() for t in scan_inputs(2, 65, 24)]
    conv = [t.cuda() for t in conv_inputs(2, 65, 24)]
    later = torch.randn_like(inputs[0])
    expected = (*SCAN(later, *inputs[1:]), *CONV(later, *conv[1:]))
    u = torch.zeros_like(later)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # 25 ms: another stream would read the zeros
        u.copy_(later)
        found = (*SCAN(u, *inputs[1:]), *CONV(u, *conv[1:]))
    stream.synchronize()
    assert same_bits(found, expected)


def test_threads_with_streams_of_their_own() -> None:
    cases = [Scan(2, 65, 24), Scan(1, 5000, 64), Scan(4, 1, 256), Scan(1, 100, 24, 300)]
    inputs = [low(scan_case(case)[0], torch.bfloat16) for case in cases]
    expected = [SCAN(*each) for each in inputs]
    torch.cuda.synchronize()
    results: list[bool] = []

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            runs = [same_bits(SCAN(*inputs[index]), expected[index]) for _ in range(100)]
            results.append(bool(torch.stack(runs).all()))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * len(cases)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_gpu_that_is_not_the_current_one() -> None:
    inputs = [t.cuda(1) for t in scan_inputs(2, 65)]
    conv = [t.cuda(1) for t in conv_inputs(2, 65)]
    assert torch.cuda.current_device() == 0
    found = (*SCAN(*inputs), *CONV(*conv))
    assert torch.cuda.current_device() == 0
    expected = (*SCAN(*[t.cuda(0) for t in inputs]), *CONV(*[t.cuda(0) for t in conv]))
    assert same_bits(tuple(t.cuda(0) for t in found), expected)


def test_autocast() -> None:
    scan, conv = [t.cuda() for t in scan_inputs()], [t.cuda() for t in conv_inputs()]
    with torch.autocast("cuda", torch.bfloat16):
        found = (*SCAN(*scan), *CONV(*conv))
    expected = (*SCAN(*low(scan, torch.bfloat16)), *CONV(*low_conv(conv, torch.bfloat16)))
    assert same_bits(found, expected)


def test_nan_is_passed_on_and_stays_in_its_channel() -> None:
    for length in (1, 20, 5000):
        inputs = [t.cuda() for t in scan_inputs(2, length, 40)]
        inputs[8][1, 7, 3] = torch.nan
        y, last_state = SCAN(*inputs)
        bad = torch.zeros(2, 40, dtype=torch.bool, device=GPU)
        bad[1, 7] = True
        first = y[:, :20]  # a NaN state may not outlive a decay to 0: 0 * NaN is NaN, so it does
        assert torch.equal(first.isnan().all(1), bad)
        assert torch.equal(y.isnan().any(1), bad)
        assert torch.equal(last_state.isnan().any(-1), bad)
    for index in SEQUENCES:
        inputs = [t.cuda() for t in scan_inputs(2, 20, 40)]
        inputs[index][0, 5] = torch.nan
        assert SCAN(*inputs)[0][0, 5].isnan().all()
        assert SCAN(*inputs)[0][1].isfinite().all()
    conv = [t.cuda() for t in conv_inputs(2, 20, 40)]
    conv[0][0, 5, 3] = torch.nan
    y = CONV(*conv)[0]
    assert y[0, 5:9, 3].isnan().all()
    assert y.isnan().sum() == 4


@EVERY_DTYPE
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("step", [40, 43])
@pytest.mark.parametrize("d_inner", [40, 2048])
def test_what_is_not_finite_reaches_no_earlier_step(
    d_inner: int, step: int, value: float, dtype: torch.dtype
) -> None:
    for index in SEQUENCES:
        inputs = low([t.cuda() for t in scan_inputs(2, 70, d_inner)], dtype)
        clean = SCAN(*inputs)[0]
        inputs[index][0, step] = value
        y = SCAN(*inputs)[0]
        assert not y[0, step].isfinite().all()
        assert torch.equal(y[0, :step].isfinite(), clean[0, :step].isfinite())
        assert error(y[0, :step], clean[0, :step]) <= ROUNDING_FLOOR.get(dtype, FP32_BOUND)
        assert torch.equal(y[1], clean[1])


def test_infinite_steps_follow_the_reference() -> None:
    inputs = [t.cuda() for t in scan_inputs(1, 6, 20)]
    inputs[1][0, 2, 4] = torch.inf
    inputs[1][0, 3, 5] = -torch.inf
    truth = selective_scan_reference(*inputs)
    for output, expected in zip(SCAN(*inputs), truth, strict=True):
        torch.testing.assert_close(output, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 5, 0)], ids=["no batch", "no channels"])
def test_empty_tensors_give_empty_tensors(shape: tuple[int, int, int]) -> None:
    batch, length, d_inner = shape
    y, last_state = SCAN(*[t.cuda() for t in scan_inputs(batch, length, d_inner)])
    assert (y.shape, last_state.shape) == (shape, (batch, d_inner, 16))
    y, last_state = CONV(*[t.cuda() for t in conv_inputs(batch, length, d_inner)])
    assert (y.shape, last_state.shape) == (shape, (batch, d_inner, 3))


def test_bad_input_is_one_line() -> None:
    inputs = [t.cuda() for t in scan_inputs()]
    for index, bad, message in [
        (0, inputs[0][:, :0], "u has length 0"),
        (0, inputs[0][0], "u has 2 dimensions"),
        (2, inputs[2].cpu(), "A is on cpu and the sequence on cuda:0: move them to one device"),
        (8, inputs[8].cpu(), "initial_state is on cpu and the sequence on cuda:0"),
        (3, inputs[3].half(), "B is torch.float16, expected torch.float32"),
        (8, inputs[8][:1], "initial_state has shape"),
    ]:
        wrong = list(inputs)
        wrong[index] = bad
        with pytest.raises(ValueError, match=message) as raised:
            SCAN(*wrong)
        assert "\n" not in str(raised.value)
    conv = [t.cuda() for t in conv_inputs()]
    with pytest.raises(ValueError, match="weight is on cpu and the sequence on cuda:0"):
        CONV(conv[0], conv[1].cpu(), *conv[2:])
    assert torch.isfinite(SCAN(*inputs)[0]).all(), "the process goes on"


def test_out_of_memory_is_torchs_own_error() -> None:
    inputs = [t.cuda() for t in scan_inputs(1, 5, 8)]
    length = 1 << 40  # no memory behind it: one step, seen again and again
    for index in SEQUENCES:
        inputs[index] = inputs[index][:, :1].expand(-1, length, *inputs[index].shape[2:])
    with pytest.raises(torch.OutOfMemoryError):
        SCAN(*inputs)
    assert torch.isfinite(SCAN(*[t.cuda() for t in scan_inputs()])[0]).all(), "the process goes on"


def test_native_is_the_default_and_triton_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BACKEND_VARIABLE)
    for dtype in DTYPES.values():
        assert choose_backend(torch.zeros(1, dtype=dtype, device=GPU)) == "native"
    assert choose_backend(torch.zeros(1, dtype=torch.float64, device=GPU)) == "cpu"
    pytest.importorskip("triton")
    taps = MAX_TAPS + 1
    inputs = [t.cuda() for t in conv_inputs(2, 40, 8, taps)]
    truth = causal_conv1d_reference(*[t.double() for t in inputs])
    assert error(CONV(*inputs)[0], truth[0]) <= FP32_BOUND
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")
    assert choose_backend(torch.zeros(1, device=GPU)) == "triton"
    monkeypatch.setenv(BACKEND_VARIABLE, "native")
    with pytest.raises(ValueError, match="switched off by MAMBA_EXPORT_KERNELS=none"):
        SCAN(*[t.cuda() for t in scan_inputs()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_training_runs_native_forward_and_triton_backward(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    scan = [t.requires_grad_() for t in low(scan_case(Scan(2, 300, 64))[0], dtype)]
    conv = [t.cuda().requires_grad_() for t in conv_inputs(2, 300, 64, 4, dtype)]

    def run() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        outputs = (*SCAN(*scan), *CONV(*conv))
        torch.manual_seed(0)
        loss = sum((t.float() * torch.randn_like(t, dtype=torch.float32)).sum() for t in outputs)
        return outputs, torch.autograd.grad(loss, [*scan, *conv])

    outputs, gradients = run()
    monkeypatch.setenv(BACKEND_VARIABLE, "triton")
    triton_outputs, triton_gradients = run()
    assert not same_bits(outputs[:2], triton_outputs[:2]), "the forwards are two implementations"
    assert same_bits(gradients, triton_gradients), "the backward is one, of the same inputs"


@pytest.mark.slow
def test_a_million_tokens() -> None:
    """With the step sizes and decays that Mamba starts from: memories of 1 to 1000 steps."""
    length, d_inner, d_state = 1_000_000, 256, 16
    step = torch.logspace(-3, -1, d_inner, device=GPU)
    bias = step + torch.log(-torch.expm1(-step))  # softplus(bias) == step
    A = -torch.arange(1.0, d_state + 1, device=GPU).repeat(d_inner, 1)
    u = torch.randn(1, length, d_inner, device=GPU)
    delta = torch.randn(1, length, d_inner, device=GPU).mul_(0.3)
    B, C = torch.randn(2, 1, length, 1, d_state, device=GPU).unbind(0)
    D, state = torch.ones(d_inner, device=GPU), torch.randn(1, d_inner, d_state, device=GPU)
    truth = last_state_truth(u, delta, A, B, bias, state)
    y, last_state = SCAN(u, delta, A, B, C, D, None, bias, state)
    assert error(last_state, truth) <= FP32_BOUND
    for start in range(0, length, length // 10):
        cut = slice(start, start + length // 10)
        part, state = SCAN(u[:, cut], delta[:, cut], A, B[:, cut], C[:, cut], D, None, bias, state)
        assert error(part, y[:, cut]) <= FP32_BOUND
    assert error(state, truth) <= FP32_BOUND
