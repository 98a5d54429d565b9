"""Third-party models that cannot be exported as asked: one line that names the place and what to do."""

from __future__ import annotations

import importlib
import random
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from third_party.cross_scans import AtrousSS2D, VMambaLike
from third_party.exported import Exported
from third_party.restoration import MambaIRv2Like
from torch import Tensor, nn

import mamba_export
from mamba_export import adapters
from mamba_export.errors import ExportError, MambaExportWarning, SessionError

with adapters.installed():
    from mamba_ssm import Mamba
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

WIDTH = 8
X = torch.randn(2, 5, WIDTH)
DYNAMIC = {"x": {0: "batch", 1: "length"}}


class Branching(nn.Module):
    """Another path for a loud input."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mamba(WIDTH, d_state=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(x)
        if y.abs().max() > 10:
            y = y / 10
        return y


class ComplexA(nn.Module):
    """What selective_scan_fn of mamba_ssm takes and no published model has."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(-torch.rand(WIDTH, 2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        u = x.transpose(1, 2)
        return selective_scan_fn(u, u, self.A, u[:, :2], u[:, 2:4])


@torch.library.custom_op("somebody::smooth", mutates_args=())
def smooth(x: Tensor) -> Tensor:
    """An operator of somebody else's."""
    return x.cumsum(1)


@smooth.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("somebody::half_done", mutates_args=())
def half_done(x: Tensor) -> Tensor:
    """One that PyTorch cannot trace: it has no fake."""
    return x.cumsum(1)


class Smoothed(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.mixer = name, Mamba(WIDTH, d_state=2)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(torch.ops.somebody, self.name)(self.mixer(x))


class Positions(nn.Module):
    """A table of positions that a longer sequence does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.mixer = Mamba(WIDTH, d_state=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x + self.positions)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(),
         r"control flow depends on the values of a tensor \(.*line \d+: if y.abs\(\).max\(\) > 10:\)"),
        (ComplexA(), r"selective_scan_fn with a complex A is not there: .*line \d+: return selective_scan_fn"),
        (Smoothed("smooth"), r"no translation of the operator somebody.smooth"),
        (Smoothed("half_done"), r"no fake impl registered for <CustomOpDef\(somebody::half_done\)>"),
        (Positions(), r"fixes the axis length to 5 \(.*line \d+: return self.mixer\(x \+ self.positions\)\)"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else "",
)  # fmt: skip
def test_the_place_is_named(model: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message) as raised:
        mamba_export.export(model, (X,), output=tmp_path / "out", dynamic_shapes=DYNAMIC)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_sizes_in_multiples_alone_are_named_with_their_line(tmp_path: Path) -> None:
    """The branch that pads an odd image is not in the graph of an even one."""
    with pytest.raises(
        ExportError,
        match=r"the axis height in multiples of 4 alone \(cross_scans.py, line \d+: if .* % step != 0:\): "
        r'give it as 4 \* torch.export.Dim\("height_by_4"\)',
    ):
        mamba_export.export(
            VMambaLike(AtrousSS2D),
            (torch.randn(1, 3, 16, 24),),
            output=tmp_path / "out",
            dynamic_shapes={"image": {2: "height", 3: "width"}},
        )


def test_multiples_are_checked_and_verified(third_party: Callable[[str], Exported]) -> None:
    one = third_party("EfficientVMamba")
    session = mamba_export.OrtSession(one.folder)
    assert session.metadata.inputs[0].shape == ("batch", 3, "4*rows", "4*columns")
    with pytest.raises(SessionError, match="4 does not divide 18: pad it"):
        session.run(torch.randn(1, 3, 16, 18).numpy())
    report = mamba_export.verify(one.folder, model=one.model, quick=True, backends=["cpu"])
    assert report.passed, [check for check in report.checks if not check.passed]


def test_devices(tmp_path: Path) -> None:
    mixed = Branching()
    mixed.mixer.D = nn.Parameter(mixed.mixer.D.to("meta"))
    for model, x, message in (
        (
            mixed,
            X,
            r"several devices \(mixer.A_log is on cpu, mixer.D is on meta\): move them to one",
        ),
        (Branching(), X.to("meta"), r"several devices .*argument x is on meta"),
        (Branching().to("meta"), X.to("meta"), r"on the meta device, which holds no values"),
    ):
        with pytest.raises(ExportError, match=message):
            mamba_export.export(model, (x,), output=tmp_path / "out")


def test_a_model_that_asserts_fp32_is_verified_in_fp32(
    third_party: Callable[[str], Exported],
) -> None:
    one = third_party("MambaIR")
    report = mamba_export.verify(one.folder, model=one.model, quick=True, backends=["cpu"])
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.truth.startswith("PyTorch in fp32 (the module does not run in float64: ")


def test_random_draws_are_said_and_are_no_error_of_the_file(tmp_path: Path) -> None:
    model = MambaIRv2Like(gumbel=True)
    said = pytest.warns(
        MambaExportWarning, match=r"draws random numbers .*restoration.py, line \d+:.*gumbel"
    )
    with said:
        out = mamba_export.export(model, (torch.randn(1, 3, 6, 8),), output=tmp_path / "out")
    report = mamba_export.verify(out, model=model, quick=True, backends=["cpu"])
    assert report.passed, [check for check in report.checks if not check.passed]
    assert "it draws random numbers in eval mode" in report.not_run["whole model"]


class Jittered(nn.Module):
    """Its draw is Python's own: the file holds the number of the day that it was traced."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mamba(WIDTH, d_state=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x) * random.random()


def test_draws_that_no_graph_shows_are_said_by_verify(tmp_path: Path) -> None:
    model = Jittered()
    out = mamba_export.export(model, (X,), output=tmp_path / "out", dynamic_shapes=DYNAMIC)
    report = mamba_export.verify(out, model=model, quick=True, backends=["cpu"])
    assert report.passed
    assert "it draws random numbers in eval mode" in report.not_run["whole model"]


FALLBACK = """
import torch
from torch import nn

WITH_SELECTIVESCAN_OFLEX = True
try:
    import selective_scan_cuda_oflex
except ImportError:
    WITH_SELECTIVESCAN_OFLEX = False


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(-torch.rand(4, 1))

    def forward(self, x):  # (batch, 4, length)
        B = C = x[:, :1]
        if WITH_SELECTIVESCAN_OFLEX:
            return selective_scan_cuda_oflex.fwd(x, x, self.A, B, C, None, None, True, 1, True)[0]
        state, ys = torch.zeros(x.shape[0], 4), []
        for t in range(x.shape[2]):
            delta = nn.functional.softplus(x[:, :, t])
            state = torch.exp(delta * self.A[:, 0]) * state + delta * B[:, :, t] * x[:, :, t]
            ys.append(state * C[:, :, t])
        return torch.stack(ys, -1)
"""


def test_the_adapters_after_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said twice, with what to do; and that works."""
    (tmp_path / "early_fallback.py").write_text(FALLBACK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    early = importlib.import_module("early_fallback")
    x = torch.randn(2, 4, 9)
    with warnings.catch_warnings(record=True) as said, adapters.installed():
        unrolled = early.Model().eval()
        expected = unrolled(x)
        mamba_export.export(unrolled, (x,), output=tmp_path / "unrolled")
        early = importlib.reload(early)
    words = " ".join(str(one.message) for one in said)
    assert re.search("early_fallback was imported before the adapters .*importlib.reload", words)
    assert "the graph of Model holds no scan of ours" in words
    model = early.Model().eval()
    model.load_state_dict(unrolled.state_dict())
    out = mamba_export.export(model, (x,), output=tmp_path / "out", dynamic_shapes=({2: "length"},))
    found, _ = mamba_export.OrtSession(out).run(x.numpy())
    torch.testing.assert_close(torch.from_numpy(found), expected.detach())
    del sys.modules["early_fallback"]


def test_a_model_without_draws_is_exported_without_a_word(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MambaExportWarning)
        mamba_export.export(MambaIRv2Like(), (torch.randn(1, 3, 6, 8),), output=tmp_path / "out")
