"""What a token costs against length: the models that are compared compute what they should, series end with a
reason, and the points of a run become a record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import run_cost
from bench.gpu_operators import scan_inputs
from cost import job as forms
from cost.findings import Findings
from cost.growth import Growth
from cost.job import Job
from cost.plan import MAMBA, PLANS, STANDARD, TRANSFORMER, jobs
from cost.point import DECODE, MEMORY, PREFILL, SCAN, THROUGHPUT, Point
from cost.processes import run_apart, run_job
from cost.scan_points import OURS, PARALLEL
from cost.scans import attention, parallel_scan, sequential_scan
from cost.transformer import like_mamba, parameters, write_transformer
from cost.transformer_session import Cache, TransformerSession
from mamba_export.errors import MambaExportError
from mamba_export.models import MambaLM
from mixers.attention import AttentionConfig, AttentionLM
from report.record import new_record, read_record, write_record

CONFIG = AttentionConfig(64, 2, 97, 2, longest=64)


@pytest.fixture(scope="module")
def model() -> AttentionLM:
    torch.manual_seed(0)
    made = AttentionLM(CONFIG).eval()
    with torch.no_grad():
        made.embeddings.weight.mul_(20)
    return made


@pytest.fixture(scope="module")
def session(model: AttentionLM, tmp_path_factory: pytest.TempPathFactory) -> TransformerSession:
    return TransformerSession(
        write_transformer(model, tmp_path_factory.mktemp("graph"), "fp32"), "cpu"
    )


def llama(model: AttentionLM) -> transformers.LlamaForCausalLM:
    """transformers' own model with the same weights, in fp64."""
    config = model.config
    shape = transformers.LlamaConfig(
        hidden_size=config.d_model,
        num_hidden_layers=config.n_layer,
        vocab_size=config.vocab_size,
        intermediate_size=config.inner,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.key_heads,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    ours = model.state_dict()
    renamed = {
        "model.embed_tokens.weight": "embeddings.weight",
        "model.norm.weight": "norm_f.weight",
    }
    theirs = {new: ours[old] for new, old in renamed.items()}
    theirs["lm_head.weight"] = ours["embeddings.weight"]
    for layer in range(config.n_layer):
        here, there = f"layers.{layer}", f"model.layers.{layer}"
        projections = ours[f"{here}.attention.in_proj.weight"].chunk(3)
        for name, weight in zip("qkv", projections, strict=True):
            theirs[f"{there}.self_attn.{name}_proj.weight"] = weight
        theirs[f"{there}.self_attn.o_proj.weight"] = ours[f"{here}.attention.out_proj.weight"]
        gate, up = ours[f"{here}.mlp.in_proj.weight"].chunk(2)
        theirs |= {f"{there}.mlp.gate_proj.weight": gate, f"{there}.mlp.up_proj.weight": up}
        theirs[f"{there}.mlp.down_proj.weight"] = ours[f"{here}.mlp.out_proj.weight"]
        theirs[f"{there}.input_layernorm.weight"] = ours[f"{here}.norm.weight"]
        theirs[f"{there}.post_attention_layernorm.weight"] = ours[f"{here}.mlp_norm.weight"]
    made = transformers.LlamaForCausalLM(shape).eval()
    made.load_state_dict(theirs)
    return made.double()


def test_transformer_is_transformers_own(model: AttentionLM, session: TransformerSession) -> None:
    """Whole, in parts, and token by token: the cache in place holds what it should."""
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (1, 45))
    truth = llama(model)
    with torch.no_grad():
        expected = truth(torch.from_numpy(tokens)).logits[:, -1].numpy()
        continued = truth.generate(torch.from_numpy(tokens), max_new_tokens=9, do_sample=False)
    for part in (45, 16):
        cache = Cache(session, 1, 64)
        cache.read(tokens, part)
        np.testing.assert_allclose(cache.logits(), expected, rtol=1e-4, atol=1e-4)
    chosen = [int(cache.step()[0, 0]) for _ in range(8)]
    assert chosen == continued[0, 46:54].tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [False, True])
def test_transformer_on_a_gpu(model: AttentionLM, tmp_path: Path, captured: bool) -> None:
    """In fp16, as it is timed; a captured step is always the one at the same place."""
    file = write_transformer(model, tmp_path, "fp16")
    cache = Cache(TransformerSession(file, "cuda", captured=captured), 1, 64)
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (1, 45))
    truth = llama(model)
    with torch.no_grad():
        expected = truth(torch.from_numpy(tokens)).logits[:, -1].numpy()
        continued = truth.generate(torch.from_numpy(tokens), max_new_tokens=6, do_sample=False)
    cache.read(tokens, 16)
    error = np.linalg.norm(cache.logits() - expected) / np.linalg.norm(expected)
    assert error < 1e-2
    chosen = [int(cache.step()[0, 0]) for _ in range(1 if captured else 5)]
    assert chosen == continued[0, 46 : 46 + len(chosen)].tolist()


def test_transformer_is_as_large_as_mamba() -> None:
    mamba = PLANS["cuda"].mamba
    with torch.device("meta"):
        ours = sum(one.numel() for one in MambaLM(mamba).parameters())
    theirs = parameters(like_mamba(mamba, 1024))
    assert abs(theirs / ours - 1) < 0.06


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 133])
def test_scans_of_pytorch_are_the_scan(length: int) -> None:
    """Against the recurrence in float64, written out here."""
    inputs = scan_inputs(1, 2, 6, length, 4, "fp32", "cpu")[0]
    u, delta, A, B, C, D, z, bias, state = (
        inputs[name].double()
        for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    )
    dt = torch.log1p(torch.exp(delta + bias))
    y = torch.empty_like(u)
    for step in range(length):
        added = (dt * u)[:, step, :, None] * B[:, step]
        state = torch.exp(dt[:, step, :, None] * A) * state + added
        y[:, step] = (state * C[:, step]).sum(-1) + D * u[:, step]
    y = y * z / (1 + torch.exp(-z))
    for scan in (sequential_scan, parallel_scan):
        found, last = scan(**inputs)
        torch.testing.assert_close(found.double(), y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(last.double(), state, rtol=1e-4, atol=1e-4)
    assert attention(**inputs).shape[2] == length


def test_a_series_ends_before_the_limit() -> None:
    growth = Growth(10)
    assert growth.why_not(1 << 20) == ""  # nothing is known
    growth.add(1024, 0.1)
    assert growth.why_not(10_240) == ""  # as attention would grow: 10 s
    assert "limit of time: about 10.2 s expected, more than 10 s" in growth.why_not(10_340)
    growth.add(4096, 0.4)
    assert growth.expected(1 << 20) == pytest.approx(102.4)  # linear, as measured
    growth.add(16384, 0.1)
    assert growth.expected(1 << 20) == pytest.approx(6.4)  # never less than linear


def test_processes_measure_models(tmp_path: Path) -> None:
    """Each length of a CPU's series in its own process, and the end of a series goes over to the next."""
    plan = replace(PLANS["quick"], lengths=(8, 16), batches=(2,), context=8, steps=2)
    made = dict(jobs(plan, tmp_path, None, lambda _: None))
    expected = [(kind, at) for at in (8, 16) for kind in (PREFILL, DECODE, MEMORY)]
    for who, run in ((TRANSFORMER, run_apart), (STANDARD, run_job)):
        found = list(run(made[who](), 60))
        assert [(one.kind, one.at) for one in found] == [*expected, (THROUGHPUT, 2)]
        assert all(one.value and one.who == who for one in found), found

    short = replace(made[TRANSFORMER](), limit=1e-9, lengths=(8, 16), batches=())
    reading = [one for one in run_apart(short, 60) if one.kind == PREFILL]
    assert [one.at for one in reading] == [8, 16]
    assert reading[1].value is None
    assert reading[1].note.startswith("limit of time: about ")

    broken = replace(made[TRANSFORMER](), path=str(tmp_path / "absent.onnx"))
    (ended,) = run_job(broken, 60)
    assert (ended.kind, ended.at, ended.value) == (PREFILL, 8, None)
    assert "absent.onnx" in ended.note


def test_points_become_a_record(tmp_path: Path) -> None:
    points = [
        *(Point(DECODE, MAMBA, at, 0.4) for at in (1024, 1 << 16, 1 << 20)),
        *(Point(DECODE, TRANSFORMER, at, at / 1024) for at in (1024, 1 << 16)),
        Point(DECODE, f"{TRANSFORMER}, CUDA graph", 1 << 16, 20.0),
        Point(DECODE, TRANSFORMER, 1 << 18, None, "out of memory"),
        Point(MEMORY, MAMBA, 1024, 2e9),  # less than a part
        *(Point(MEMORY, MAMBA, at, 4e9) for at in (1 << 14, 1 << 20)),
        Point(SCAN, OURS, 512, 0.1),
        Point(SCAN, PARALLEL, 512, 2.5),
        *(Point(THROUGHPUT, MAMBA, batch, 100.0 * batch) for batch in (1, 128)),
        *(Point(THROUGHPUT, TRANSFORMER, batch, 50.0 * batch**0.8) for batch in (1, 128)),
    ]
    found = Findings(PLANS["cuda"], points)
    begun = new_record("cost", "Cost", "python t.py", commit="abc")
    record = replace(begun, tables=found.tables(), plots=found.plots(), claims=found.claims())
    read = read_record(write_record(tmp_path, record))
    assert {plot.x.scale for plot in read.plots} == {"log2"}
    assert {plot.y.scale for plot in read.plots} == {"log"}
    ours = {claim.claim: claim.ours for claim in read.claims}
    assert ours["Mamba: time of a written token after 1,048,576 tokens over that after 1,024"] == 1
    assert ours["Mamba: memory after 1,048,576 tokens over that after 16,384"] == 1
    assert ours["Transformer over Mamba: time of a written token at 65,536 tokens"] == 50
    assert ours["Scan: a parallel scan in PyTorch over ours, at 512 steps where it is most"] == 25
    (ended,) = [table for table in read.tables if table.title.startswith("Where a series ends")]
    assert [list(row) for row in ended.rows] == [
        [TRANSFORMER, "Writing after a text", 1 << 18, "out of memory"]
    ]
    assert "4 to 5" in [claim.published for claim in read.claims]


def test_job_is_told_to_its_process() -> None:
    job = Job(
        forms.SCANS, "scans", "cpu", "fp32", (1, 2), 3.0, config={"d_inner": 4}, times=[(1, 0.5)]
    )
    assert json.loads(Job.from_text(job.to_text()).to_text()) == json.loads(job.to_text())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "tpu"}, "--device 'tpu' is unknown: use cpu, cuda"),
        ({"device": "cuda", "quick": True}, "--quick is of a CPU: leave --device cuda out"),
        ({"graphs": Path("g")}, "--graphs needs --device cuda"),
        ({"longest": 3}, "--longest 3: the shortest text has 1024"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], told: str) -> None:
    given = {"device": "cpu", "quick": False, "budget": None, "graphs": None, "longest": None}
    with pytest.raises(MambaExportError) as caught:
        run_cost.main(**{**given, **options})
    assert str(caught.value) == told
