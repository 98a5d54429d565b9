"""The operators on a GPU through PyTorch's own machinery: opcheck, autocast, torch.compile, a whole model.

Each runs twice: with the compiled kernels and Triton's gradients, and with Triton alone.
"""

from __future__ import annotations

import copy

import pytest
import torch

from mamba_export.models import Mamba2Config, MambaLM
from mamba_export.operators import native

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, params=["native", "triton"])
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "native":
        if why := native.why_not_on(torch.device("cuda", 0)):
            pytest.skip(why)
    else:
        pytest.importorskip("triton")
        monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")


@pytest.fixture(params=["mamba", "mamba2"])
def either_model(request: pytest.FixtureRequest) -> MambaLM:
    """A small language model of either kind, with logits spread enough that an argmax means something."""
    if request.param == "mamba":
        return request.getfixturevalue("tiny_model")
    config = Mamba2Config(
        d_model=32, n_layer=2, vocab_size=256, d_state=16, head_dim=16, n_groups=2
    )
    model = MambaLM(config).eval()
    with torch.no_grad():
        model.embeddings.weight.mul_(20)
    return model


def scan_inputs() -> list[torch.Tensor]:
    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda")

    return [
        randn(2, 20, 32), randn(2, 20, 32), -torch.rand(32, 16, device="cuda"), randn(2, 20, 1, 16),
        randn(2, 20, 1, 16), randn(32), randn(2, 20, 32), randn(32), randn(2, 32, 16),
    ]  # fmt: skip


def conv_inputs() -> list[torch.Tensor]:
    shapes = (2, 20, 32), (32, 4), (32,), (2, 32, 3)
    return [torch.randn(*shape, device="cuda") for shape in shapes]


def dual_inputs() -> list[torch.Tensor]:
    shapes = (
        (2, 20, 4, 16), (2, 20, 4), (4,), (2, 20, 2, 16), (2, 20, 2, 16), (4, 16), (2, 20, 4, 16),
        (2, 20, 4), (4,), (2, 4, 16, 16),
    )  # fmt: skip
    inputs = [torch.randn(*shape, device="cuda") for shape in shapes]
    inputs[2], inputs[7] = -inputs[2].abs(), -inputs[7].abs()  # A and log_decay
    return inputs


def norm_inputs() -> list[torch.Tensor]:
    return [
        torch.randn(*shape, device="cuda") for shape in ((2, 20, 2, 16), (2, 20, 2, 16), (2, 16))
    ]


INPUTS = {
    "selective_scan": scan_inputs,
    "causal_conv1d": conv_inputs,
    "state_space_dual": dual_inputs,
    "gated_rms_norm": norm_inputs,
}


@pytest.mark.parametrize("name", INPUTS)
def test_opcheck(name: str) -> None:
    inputs = INPUTS[name]()
    op = getattr(torch.ops.mamba_export, name).default
    torch.library.opcheck(op, tuple(t.requires_grad_() for t in inputs))


def test_float64_runs_without_triton() -> None:
    inputs = [t.double().requires_grad_() for t in conv_inputs()]
    small = [inputs[0][:1, :4, :2], inputs[1][:2], inputs[2][:2], inputs[3][:1, :2]]
    leaves = [t.detach().clone().requires_grad_() for t in small]
    assert torch.autograd.gradcheck(lambda *t: torch.ops.mamba_export.causal_conv1d(*t), leaves)


def test_model_compiled_under_autocast(either_model: MambaLM) -> None:
    model = copy.deepcopy(either_model).cuda()
    ids = torch.randint(0, 256, (2, 65), device="cuda")

    def loss(m: torch.nn.Module) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits, _ = m(ids[:, :-1])
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    plain = loss(model)
    plain.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = loss(torch.compile(model, fullgraph=True))
    compiled.backward()
    torch.testing.assert_close(compiled, plain, rtol=2e-2, atol=0)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        error = (parameter.grad - gradient).norm() / gradient.norm()
        assert error < 0.05, "two bf16 roundings apart"


@torch.no_grad()
def test_compiled_model_replays_a_graph(either_model: MambaLM) -> None:
    """torch.compile's CUDA graphs, with one token a call as a decoder would."""
    model = copy.deepcopy(either_model).cuda()
    ids = torch.randint(0, 256, (1, 6), device="cuda")
    step = torch.compile(lambda token, state: model(token, state), mode="reduce-overhead")
    _, state = model(ids[:, :1])
    expected_state = state
    for index in range(1, 6):
        token = ids[:, index : index + 1]
        expected, expected_state = model(token, expected_state)
        torch.compiler.cudagraph_mark_step_begin()
        found, state = step(token, state)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        state = torch.utils._pytree.tree_map(torch.clone, state)  # the next replay overwrites it


@torch.no_grad()
def test_model_is_the_cpus(either_model: MambaLM) -> None:
    ids = torch.randint(0, 256, (3, 65))
    expected, state = either_model(ids)
    found, gpu_state = copy.deepcopy(either_model).cuda()(ids.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        gpu_state[1].recurrent.cpu(), state[1].recurrent, rtol=1e-3, atol=1e-4
    )
