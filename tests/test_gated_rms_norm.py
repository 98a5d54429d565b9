"""The gated RMSNorm on a CPU: the operator and its function against its definition in numpy's float64."""

from __future__ import annotations

import adapter_definitions as definitions
import numpy as np
import onnxruntime
import pytest
import torch
from cases import FP32_BOUND, ROUNDING_FLOOR, error
from torch import Tensor

from mamba_export.export.functions import function_proto
from mamba_export.operators import find, gated_rms_norm, gated_rms_norm_reference
from mamba_export.operators.dispatch import forced
from mamba_export.operators.gated_rms_norm import DEFINITION
from mamba_export.verify.cases import Case
from mamba_export.verify.operators import one_node_model

NORM = torch.ops.mamba_export.gated_rms_norm
ORDERS = pytest.mark.parametrize("before", [False, True], ids=["gate first", "norm first"])


def wide(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().double().numpy() for t in tensors]


def exact(
    x: Tensor, z: Tensor, weight: Tensor, groups: int, epsilon: float, before: bool
) -> Tensor:
    found = definitions.gated_rms(*wide(x, z, weight), epsilon, groups, before)
    return torch.from_numpy(found)


@ORDERS
@pytest.mark.parametrize(
    ("batch", "length", "groups", "width"),
    [(1, 1, 1, 1), (2, 5, 1, 24), (3, 7, 4, 8), (1, 65, 3, 130), (2, 2, 8, 1)],
)
def test_any_shape(batch: int, length: int, groups: int, width: int, before: bool) -> None:
    x, z = torch.randn(2, batch, length, groups * width).unbind(0)
    weight = torch.randn(groups * width)
    y = gated_rms_norm(x, z, weight, groups=groups, epsilon=1e-3, norm_before_gate=before)
    truth = exact(x, z, weight, groups, 1e-3, before)
    assert y.shape == truth.shape
    assert error(y, truth) <= FP32_BOUND
    split = (groups, width)
    with forced("reference"):
        found = NORM(
            x.unflatten(-1, split), z.unflatten(-1, split), weight.view(split), 1e-3, before
        )
    assert error(found.flatten(-2), truth) <= FP32_BOUND


@ORDERS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_low_precision(dtype: torch.dtype, before: bool) -> None:
    x, z = torch.randn(2, 2, 9, 48).to(dtype).unbind(0)
    weight = torch.randn(48)
    y = gated_rms_norm(x, z, weight, groups=2, norm_before_gate=before)
    truth = exact(x, z, weight, 2, 1e-5, before)
    assert y.dtype == dtype
    assert error(y, truth) <= 2 * error(truth.to(dtype), truth) + ROUNDING_FLOOR[dtype]


@ORDERS
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-3, 1e3, 1e15])
def test_extremes(scale: float, before: bool) -> None:
    """Zeros stay zeros; what is tiny is divided by the root of epsilon; squares in fp32 reach 1e30."""
    x, z, weight = scale * torch.randn(2, 5, 16), torch.randn(2, 5, 16), torch.randn(16)
    z[0, 0] = 80.0 * z[0, 0].sign()  # the gate is open, or shut
    y = gated_rms_norm(x, z, weight, norm_before_gate=before)
    assert torch.isfinite(y).all()
    if scale == 0.0:
        assert not y.any()
    else:
        assert error(y, exact(x, z, weight, 1, 1e-5, before)) <= FP32_BOUND


@ORDERS
def test_gradcheck(before: bool) -> None:
    x, z = torch.randn(2, 2, 3, 6, dtype=torch.float64).unbind(0)
    weight = torch.randn(6, dtype=torch.float64)

    def call(x: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        return gated_rms_norm(x, z, weight, groups=2, epsilon=0.1, norm_before_gate=before)

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in (x, z, weight)])


def test_opcheck() -> None:
    x, z = torch.randn(2, 2, 3, 2, 4).unbind(0)
    torch.library.opcheck(
        NORM.default, tuple(t.requires_grad_() for t in (x, z, torch.randn(2, 4)))
    )


def test_autocast_keeps_the_weight() -> None:
    inputs = (*torch.randn(2, 2, 9, 16).unbind(0), torch.randn(16))
    x, z, weight = (t.requires_grad_() for t in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = gated_rms_norm(x, z, weight)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert error(y, exact(x, z, weight, 1, 1e-5, False)) <= 4 * ROUNDING_FLOOR[torch.bfloat16]


def test_strided_inputs() -> None:
    both, weight = torch.randn(2, 9, 32), torch.randn(16)
    x, z = both.chunk(2, dim=-1)
    y = gated_rms_norm(x, z, weight, groups=4)
    assert error(y, gated_rms_norm(x.contiguous(), z.contiguous(), weight, groups=4)) <= FP32_BOUND


def test_float64_is_computed_in_float64() -> None:
    x, z = torch.randn(2, 2, 3, 1, 6, dtype=torch.float64).unbind(0)
    weight = torch.randn(1, 6, dtype=torch.float64)
    y = gated_rms_norm_reference(x, z, weight)
    truth = exact(*(t.flatten(-2) for t in (x, z, weight)), 1, 1e-5, False)
    assert error(y.flatten(-2), truth) < 1e-15


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"groups": 5}, "groups 5 does not divide the width 16"),
        ({"groups": 0}, "groups 0 does not divide"),
        ({"z": torch.randn(2, 4, 16)}, "z has shape"),
        ({"z": torch.randn(2, 3, 16).half()}, "z is torch.float16, expected torch.float32"),
        ({"weight": torch.randn(16).half()}, "weight is torch.float16"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"epsilon": -1.0}, "epsilon is -1.0"),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)
def test_bad_inputs_are_named(changed: dict, message: str) -> None:
    call = {"x": torch.randn(2, 3, 16), "z": torch.randn(2, 3, 16), "weight": torch.randn(16)}
    with pytest.raises(ValueError, match=message) as caught:
        gated_rms_norm(**call | changed)
    assert "\n" not in str(caught.value)


@ORDERS
@pytest.mark.parametrize("opset", range(18, 27))
def test_function_body(opset: int, before: bool) -> None:
    """In ONNX Runtime without our library, in groups."""
    name = DEFINITION.spec.name
    case = Case.of(name, epsilon=1e-3, norm_before_gate=before)
    model = one_node_model(case, "fp32", [function_proto(DEFINITION, find(name)[1], opset)], opset)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x, z, weight = torch.randn(2, 7, 3, 10), torch.randn(2, 7, 3, 10), torch.randn(3, 10)
    (y,) = session.run(None, {"x": x.numpy(), "z": z.numpy(), "weight": weight.numpy()})
    truth = exact(x.flatten(-2), z.flatten(-2), weight.flatten(), 3, 1e-3, before)
    assert error(torch.from_numpy(y).flatten(-2), truth) <= FP32_BOUND
