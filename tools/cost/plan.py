"""What is measured where: models, lengths, batches and limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import peers
from bench.cases import Cases, Progress, whole_folder
from bench.published import config_of
from cost import job as forms
from cost.job import Job
from cost.transformer import FILE, like_mamba, write_transformer
from mamba_export.export import export
from mamba_export.models import Mamba2Config, MambaConfig, ModelConfig
from mixers.attention import AttentionConfig, AttentionLM, attention_program

MAMBA, MAMBA2, TRANSFORMER = "Mamba", "Mamba-2", "Transformer"
CAPTURED, STANDARD = f"{TRANSFORMER}, CUDA graph", f"{TRANSFORMER}, standard ONNX"
THEIRS = f"{peers.MAMBA_SSM}, "
"""What the names of mamba_ssm's series start with."""
SCANS = "scans"


@dataclass(frozen=True)
class Plan:
    """A run.

    Args:
        device: "cpu" or "cuda".
        dtype: of the models.
        name, name2: of the shapes; where mamba_ssm is timed, published sizes.
        mamba, mamba2: shapes; the Transformer is as large as ``mamba``.
        lengths: of texts.
        batches, context: of throughput, and the tokens before it.
        steps: tokens that are written to time one.
        limit: seconds that reading one text may take.
        d_inner, scan_dtype, scan_lengths, scan_limit: of the scan by itself, with 16 states a channel.
        peers: whether mamba_ssm is timed.
        standard: whether the Transformer is timed as ``mamba_export`` exports it, too.
    """

    device: str
    dtype: str
    name: str
    mamba: ModelConfig
    name2: str
    mamba2: ModelConfig
    lengths: Sequence[int]
    batches: Sequence[int]
    context: int
    steps: int
    limit: float
    d_inner: int
    scan_dtype: str
    scan_lengths: Sequence[int]
    scan_limit: float
    peers: bool = False
    standard: bool = False

    @property
    def transformer(self) -> AttentionConfig:
        """Its shape."""
        longest = max(max(self.lengths), self.context) + 2 * self.steps + 16
        return like_mamba(self.mamba, longest)


D_STATE = 16
"""States a channel of the scan by itself."""
_SIZE, _SIZE2 = "130m", "mamba2-130m"
_SMALL: dict[str, Any] = {"d_model": 256, "n_layer": 4, "vocab_size": 256}
_TINY: dict[str, Any] = {"d_model": 64, "n_layer": 2, "vocab_size": 64}
_K = 1024
_TO_A_MILLION = tuple(_K * 4**power for power in range(6))

PLANS = {
    "cuda": Plan(
        device="cuda",
        dtype="fp16",
        name=_SIZE,
        mamba=config_of(_SIZE),
        name2=_SIZE2,
        mamba2=config_of(_SIZE2),
        lengths=_TO_A_MILLION,
        batches=tuple(2**power for power in range(8)),
        context=2 * _K,
        steps=32,
        limit=8,
        d_inner=1024,
        scan_dtype="bf16",
        scan_lengths=tuple(512 * 4**power for power in range(6)),
        scan_limit=1.5,
        peers=True,
    ),
    "cpu": Plan(
        device="cpu",
        dtype="fp32",
        name="small",
        mamba=MambaConfig(**_SMALL),
        name2="small2",
        mamba2=Mamba2Config(**_SMALL),
        lengths=_TO_A_MILLION,
        batches=(1, 2, 4, 8, 16, 32, 64, 128),
        context=2 * _K,
        steps=16,
        limit=90,
        d_inner=512,
        scan_dtype="fp32",
        scan_lengths=tuple(128 * 4**power for power in range(5)),
        scan_limit=3,
        standard=True,
    ),
    "quick": Plan(
        device="cpu",
        dtype="fp32",
        name="tiny",
        mamba=MambaConfig(**_TINY),
        name2="tiny2",
        mamba2=Mamba2Config(**_TINY),
        lengths=(512, 2 * _K, 8 * _K),
        batches=(1, 8),
        context=_K,
        steps=4,
        limit=1,
        d_inner=64,
        scan_dtype="fp32",
        scan_lengths=(64, 256, _K),
        scan_limit=0.5,
        standard=True,
    ),
}
"""By the name of the run."""


def jobs(
    plan: Plan, folder: Path, graphs: Path | None, progress: Progress
) -> Iterator[tuple[str, Callable[[], Job]]]:
    """Names of what is to be run, one after the other, and what makes each job and writes its model.

    Args:
        plan: of the run.
        folder: for models.
        graphs: of tools/benchmark.py --prepare, whose tracing is then spared; None to trace here.
        progress: is told what is being made.
    """
    common = Job("", "", plan.device, plan.dtype, plan.lengths, plan.limit, steps=plan.steps)
    common = replace(common, batches=plan.batches, context=plan.context)
    cases = Cases(dtype=plan.dtype, graphs=graphs)
    for who, name, config in (
        (MAMBA, plan.name, plan.mamba),
        (MAMBA2, plan.name2, plan.mamba2),
    ):

        def exported(who: str = who, name: str = name, config: ModelConfig = config) -> Job:
            path = whole_folder(config, name, cases, folder, progress)
            return replace(common, form=forms.EXPORTED, who=who, path=str(path))

        yield who, exported

    def transformer() -> Job:
        progress("writing the Transformer")
        torch.manual_seed(0)
        path = write_transformer(AttentionLM(plan.transformer), folder, plan.dtype)
        return replace(common, form=forms.TRANSFORMER, who=TRANSFORMER, path=str(path))

    yield TRANSFORMER, transformer
    if plan.standard:

        def standard() -> Job:
            progress("exporting the Transformer")
            torch.manual_seed(0)
            program = attention_program(AttentionLM(plan.transformer), last_logits_only=True)
            path = export(program, folder / "attention")
            return replace(common, form=forms.EXPORTED, who=STANDARD, path=str(path))

        yield STANDARD, standard
    if plan.device == "cuda":
        again = replace(common, form=forms.CAPTURED, who=CAPTURED, path=str(folder / FILE))
        yield CAPTURED, lambda: replace(again, reads=False)
    scans = replace(common, form=forms.SCANS, who=SCANS, dtype=plan.scan_dtype)
    scans = replace(scans, lengths=plan.scan_lengths, limit=plan.scan_limit, batches=())
    yield SCANS, lambda: replace(scans, config={"d_inner": plan.d_inner, "d_state": D_STATE})
    if plan.peers:
        for who, size in ((MAMBA, plan.name), (MAMBA2, plan.name2)):
            theirs = replace(common, form=forms.MAMBA_SSM, who=THEIRS + who, size=size)
            yield theirs.who, lambda theirs=theirs: theirs  # type: ignore[misc]
