"""The TensorRT plugins on a GPU, with the harness in TensorRT's place: against float64, ten thousand times.

Needs neither TensorRT nor ONNX, so it runs on GPUs that no TensorRT at hand supports, with libraries built
elsewhere:

MAMBA_EXPORT_TRT_PLUGIN=libmamba_export_trt.so MAMBA_TRT_HARNESS=libmamba_trt_harness.so \\
    pytest -m gpu tests/test_tensorrt_plugin_gpu.py

``check_kernels`` of tests/cpp runs the plugins' kernels without Python, for compute-sanitizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from cases import Conv, Scan, bound, conv_case, error, low, low_conv, scan_case
from tensorrt_harness import described, driver
from tensorrt_harness.driver import Field, Harness, Tensor
from test_native_rows import arguments, reference

from mamba_export import contract
from mamba_export.contract.operators import GATED_RMS_NORM
from mamba_export.libraries import TRT_PLUGIN
from mamba_export.verify.bounds import allowed_of
from mamba_export.verify.cases import definition_of, dtype_of, grid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not driver.is_built(), reason=driver.NOT_BUILT),
]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TYPES = {DTYPES[name]: number for name, number in driver.TYPES.items()}
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)

LENGTHS, BATCHES, D_STATES = (1, 2, 63, 64, 65, 1000), (1, 3), (1, 8, 16, 64, 256)
SCANS = [
    *(Scan(batch, length) for batch, length in itertools.product(BATCHES, LENGTHS)),
    *(Scan(d_state=d_state, gate=gate) for d_state in D_STATES for gate in (True, False)),
    *(Scan(length=1, d_state=d_state) for d_state in D_STATES),
    Scan(groups=2),
    Scan(groups=4, reverse=True, softplus=False),
    Scan(gate=False, groups=3, reverse=True),
    Scan(shift=20.0),  # exp(dt A) underflows to 0
    Scan(shift=-20.0),  # dt vanishes, exp(dt A) is 1
    Scan(3, 5, d_inner=50, d_state=24),
    Scan(1, 1, d_inner=1536),
    Scan(1, 512, d_inner=1536),
    Scan(1, 130, d_inner=1000, reverse=True),
    Scan(2, 257, d_inner=264, d_state=128),
    *(Scan(length=length, gate=length > 1, exact_zoh=True) for length in (1, 2, 65)),
    Scan(shift=-16.0, exact_zoh=True),
    Scan(shift=20.0, exact_zoh=True, d_state=300),
    Scan(1, 4096, d_inner=64),  # few channels: the length is split, in workspace
]
CONVS = [
    *(Conv(batch, length) for batch, length in itertools.product(BATCHES, LENGTHS)),
    *(Conv(taps=taps) for taps in (1, 2, 3, 5)),
    Conv(silu=False),
    Conv(reverse=True),
    Conv(1, 512, channels=1536),
    Conv(2, 33, channels=1001),
]
CASES = [*SCANS, *CONVS]
OF_MAMBA2 = [form.name for op in (contract.STATE_SPACE_DUAL, GATED_RMS_NORM) for form in op.forms()]
Case = Scan | Conv


@pytest.fixture
def harness() -> Iterator[Harness]:
    plugin, library = TRT_PLUGIN.path(), driver.harness_path()
    assert plugin
    assert library
    opened = Harness(library, plugin)
    yield opened
    assert opened.log() == ""


def name_of(case: Case) -> str:
    if isinstance(case, Conv):
        return contract.CAUSAL_CONV1D.name
    [name] = [
        form.name
        for form in contract.SELECTIVE_SCAN.forms()
        if form.flags["exact_zoh"] == case.exact_zoh
        and ("z" in [tensor.name for tensor in form.inputs]) == case.gate
    ]
    return name


def drawn(
    case: Case, dtype: torch.dtype
) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Inputs on the device in the contract's order, and the truth in float64."""
    if isinstance(case, Conv):
        inputs, truth = conv_case(case)
        return low_conv(inputs, dtype), truth
    with_gate, truth = scan_case(case)
    return [tensor for tensor in low(with_gate, dtype) if tensor is not None], truth


def fields_of(case: Case) -> list[Field]:
    flag = "delta_softplus" if isinstance(case, Scan) else "silu"
    is_set = case.softplus if isinstance(case, Scan) else case.silu
    return [Field("reverse", int(case.reverse)), Field(flag, int(is_set))]


def node_of(harness: Harness, case: Case, inputs: list[torch.Tensor]) -> Node:
    return Node(harness, name_of(case), fields_of(case), inputs)


class Node:
    """A plugin as an engine in a context has it, with its inputs on the device and outputs full of NaN."""

    def __init__(
        self, harness: Harness, op: str, fields: list[Field], inputs: list[torch.Tensor]
    ) -> None:
        built = harness.create(op, fields)
        assert built, harness.log()
        loaded = built.reload()
        assert loaded, harness.log()
        attached = loaded.attach()
        assert attached, harness.log()
        self.plugin, self._harness = attached, harness
        self._inputs = [tensor.contiguous() for tensor in inputs]
        # y is like the first input, last_state like the last one.
        sources = (0, -1)[: len(described.SIGNATURES[op][1])]
        self.outputs = [torch.full_like(self._inputs[i], float("nan")) for i in sources]
        self._described = [
            [Tensor(tuple(tensor.shape), TYPES[tensor.dtype]) for tensor in tensors]
            for tensors in (self._inputs, self.outputs)
        ]
        assert self.plugin.configure(*self._described) == 0, harness.log()
        count = self.plugin.workspace(*self._described)
        self._workspace = torch.full((max(count, 1),), 255, dtype=torch.uint8, device="cuda")
        assert self.plugin.shape_change(*self._described) == 0, harness.log()

    def run(self) -> None:
        status = self.plugin.enqueue(
            *self._described,
            [tensor.data_ptr() for tensor in self._inputs],
            [tensor.data_ptr() for tensor in self.outputs],
            self._workspace.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
        assert status == 0, self._harness.log()

    def poison(self) -> None:
        for output in self.outputs:
            output.fill_(float("nan"))


@EVERY_DTYPE
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{name_of(case)}-{case}")
def test_parity(harness: Harness, case: Case, dtype: torch.dtype) -> None:
    inputs, truth = drawn(case, dtype)
    node = node_of(harness, case, inputs)
    node.run()
    for output, exact, source in zip(node.outputs, truth, (0, -1), strict=True):
        if exact.numel():  # a convolution of one tap has no state
            assert output.shape == exact.shape
            assert error(output, exact) <= bound(exact, inputs[source].dtype)


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("op", OF_MAMBA2)
def test_parity_grid_of_mamba2(harness: Harness, op: str, dtype: str) -> None:
    """Of state space duality and the gated norm, with states of both dtypes and lengths that are split."""
    for seed, case in enumerate(grid(op)):
        values = arguments(case, dtype, seed)
        spec, form = definition_of(op)
        on_gpu = [value.cuda() if isinstance(value, torch.Tensor) else value for value in values]
        truth = reference(op, on_gpu, torch.float64)
        rounding = [error(*pair) for pair in zip(reference(op, on_gpu), truth, strict=True)]
        by_name = dict(zip([row.name for row in spec.spec.inputs], on_gpu, strict=False))
        node = Node(
            harness,
            op,
            described.fields(op, **dict(case.attributes)),
            [by_name[row.name] for row in form.inputs],
        )
        node.run()
        for row, output, exact, of_T in zip(
            spec.spec.outputs, node.outputs, truth, rounding, strict=True
        ):
            allowed = allowed_of(row, dtype_of(row, case, dtype), dtype, of_T)
            assert error(output, exact) <= allowed, (case, row.name)


@EVERY_DTYPE
@pytest.mark.parametrize(
    "case",
    [Scan(groups=2), Scan(gate=False), Scan(1, 1000), Scan(1, 512, d_inner=1536), Conv()],
    ids=lambda case: f"{name_of(case)}-{case}",
)
def test_ten_thousand_repetitions_give_the_same_bits(
    harness: Harness, case: Case, dtype: torch.dtype
) -> None:
    """From a CUDA graph, which fills the outputs with NaN before every run and counts other bits after it."""
    node = node_of(harness, case, drawn(case, dtype)[0])
    node.run()
    torch.cuda.synchronize()
    first = [output.clone() for output in node.outputs]
    different = torch.zeros((), dtype=torch.int64, device="cuda")

    def compare() -> None:
        for output, expected in zip(node.outputs, first, strict=True):
            bits, expected_bits = output.view(torch.int16), expected.view(torch.int16)
            different.add_((bits != expected_bits).any())

    node.poison()
    compare()
    assert different.item() == 2, "the comparison sees NaN"
    different.zero_()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        node.poison()
        node.run()
        compare()
    for _ in range(10_000):
        graph.replay()
    torch.cuda.synchronize()
    assert different.item() == 0


def test_two_contexts_run_at_once(harness: Harness) -> None:
    """Two attached plugins on two streams, each with its own sizes and workspace."""
    cases = [Scan(1, 4096, d_inner=64), Scan(3, 63, d_inner=40)]
    nodes = [node_of(harness, case, drawn(case, torch.float16)[0]) for case in cases]
    expected = []
    for node in nodes:
        node.run()
        torch.cuda.synchronize()
        expected.append([output.clone() for output in node.outputs])
        node.poison()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in nodes]
    for _ in range(50):
        for node, stream in zip(nodes, streams, strict=True):
            with torch.cuda.stream(stream):
                node.run()
    torch.cuda.synchronize()
    for node, outputs in zip(nodes, expected, strict=True):
        for output, exact in zip(node.outputs, outputs, strict=True):
            assert torch.equal(output, exact)


@EVERY_DTYPE
@pytest.mark.parametrize("case", [Scan(length=2), Scan(length=65), Conv(length=2)], ids=str)
def test_nan_in_the_state_is_passed_on(harness: Harness, case: Case, dtype: torch.dtype) -> None:
    inputs, _ = drawn(case, dtype)
    inputs[-1] = inputs[-1].clone()
    inputs[-1][1, 3, -1] = float("nan")
    node = node_of(harness, case, inputs)
    node.run()
    y, last_state = (output.float().cpu() for output in node.outputs)
    assert torch.isnan(y[1, 0, 3])
    if isinstance(case, Scan):
        assert torch.isnan(last_state[1, 3]).any()
    assert torch.isfinite(y[0]).all()
    others = [channel for channel in range(y.shape[2]) if channel != 3]
    assert torch.isfinite(y[1][:, others]).all(), "other channels are not touched"
