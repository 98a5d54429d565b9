"""Models in the style of third-party projects: exported with dynamic sizes, and compared at other ones."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from third_party.catalogue import STYLES, Sizes
from third_party.exported import Exported
from torch import Tensor

import mamba_export
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.export.module_program import trace_module
from mamba_export.operators.dispatch import forced


@torch.no_grad()
def truth(one: Exported, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The model on the reference scan, in float64 unless it asserts fp32."""
    exact = one.style.exact
    wide = {
        name: tensor.to(exact) if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }
    with forced("reference"):
        found = copy.deepcopy(one.model).to(exact)(**wide)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", STYLES)
def test_agrees_at_sizes_that_were_not_traced(
    name: str, third_party: Callable[[str], Exported]
) -> None:
    one = third_party(name)
    sessions = [OrtSession(one.folder, threads=1, native=native) for native in (None, False)]
    for sizes in (one.style.traced, *one.style.others):
        inputs = one.style.inputs(*sizes)
        expected = truth(one, inputs)
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        for session in sessions:
            found, state = session.run(arrays)
            results = list(found.values()) if isinstance(found, dict) else [found]
            for result, exact in zip(results, expected, strict=True):
                np.testing.assert_allclose(result, exact.numpy(), rtol=1e-4, atol=1e-5)
            assert state.tensors == ()


@pytest.mark.parametrize("name", STYLES)
def test_the_file_holds_its_scans_under_the_users_names(
    name: str, third_party: Callable[[str], Exported]
) -> None:
    one = third_party(name)
    graph = onnx.load(one.folder / "model.onnx", load_external_data=False).graph
    ours = Counter(node.op_type for node in graph.node if node.domain == "mamba_export")
    assert ours == one.style.nodes
    assert not [node.op_type for node in graph.node if node.op_type in ("Loop", "Scan", "If")]
    assert [value.name for value in graph.input] == list(one.style.inputs(*one.style.traced))
    assert tuple(value.name for value in graph.output) == one.style.outputs


@pytest.mark.parametrize("name", STYLES)
def test_no_loop_is_unrolled(name: str) -> None:
    """PyTorch's graphs of two fixed sizes have the same nodes."""
    style = STYLES[name]
    model = style.make().eval()

    def nodes(sizes: Sizes) -> Counter[str]:
        traced = trace_module(model, style.inputs(*sizes))
        return Counter(str(node.target) for node in traced.exported.graph.nodes)

    assert nodes(style.traced) == nodes(style.others[-1])


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("Mamba4Rec", {}),  # it counts items: 0 of them is no sequence
        ("PointMamba", {}),  # an axis of one input is twice an axis of another
        ("SEMamba", {"extreme: inputs of 0": "rounding decides"}),  # a norm of a constant image
    ],
)
def test_verify_asks_what_the_model_takes(
    name: str, left_out: dict[str, str], third_party: Callable[[str], Exported]
) -> None:
    one = third_party(name)
    report = mamba_export.verify(one.folder, model=one.model, quick=True, backends=["cpu"])
    assert report.passed, [check for check in report.checks if not check.passed]
    for check, reason in left_out.items():
        assert report.not_run[check].startswith(reason)


def test_gradients_through_a_wrapper_of_their_own() -> None:
    """VMamba's autograd.Function over the compiled modules: gradients against a difference of losses."""
    torch.manual_seed(0)
    model = STYLES["VMamba"].make().double().eval()
    image, weight = torch.randn(2, 3, 8, 12).double(), torch.randn(2, 5).double()

    def loss() -> Tensor:
        return (model(image) * weight).sum()

    loss().backward()
    rounded = ("A_logs", "Ds", "dt_projs_bias")  # to fp32, by the model
    parameters = [one for name, one in model.named_parameters() if not name.endswith(rounded)]
    steps = [1e-5 * torch.randn_like(one) for one in parameters]
    slope = sum((one.grad * step).sum() for one, step in zip(parameters, steps, strict=True))
    with torch.no_grad():
        for one, step in zip(parameters, steps, strict=True):
            one += step
        ahead = loss()
        for one, step in zip(parameters, steps, strict=True):
            one -= 2 * step
        difference = (ahead - loss()) / 2
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=0)
