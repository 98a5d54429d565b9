"""llama.cpp as a peer of the CPU's benchmark: its rows without it, and itself where it is installed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import cpu_peers, peers
from bench.figures import figures
from bench.peers import llama_cpp
from bench.record import new_record
from bench.rows import Row
from mamba_export.errors import MambaExportError
from mamba_export.models import Mamba2Config, MambaConfig, MambaLM, ModelConfig
from mamba_export.verify.bounds import relative_error

SOURCES = "LLAMA_CPP_SOURCES"
TOKENS = np.arange(8)[None]


def _names(precision: str) -> dict[str, str]:
    return {kind: f"130m {precision}, {kind}" for kind in ("prefill", "decode")}


@pytest.fixture
def model(tiny_config: MambaConfig) -> MambaLM:
    return MambaLM(tiny_config).eval()


def _last_logits(model: MambaLM) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS))[0][0, -1].numpy()


def _rows(model: MambaLM, sources: Path | None) -> list[Row]:
    truth = _last_logits(model)
    return list(cpu_peers.llama_cpp_rows(model, TOKENS, truth, _names, sources, lambda _: None))


@pytest.mark.parametrize(
    ("absent", "said"),
    [("not installed (made up)", "not installed (made up)"), ("", "not asked for: --llama-cpp")],
)
def test_absent_is_a_note(
    monkeypatch: pytest.MonkeyPatch, model: MambaLM, absent: str, said: str
) -> None:
    monkeypatch.setattr(peers, "llama_cpp_absent", lambda: absent)
    rows = _rows(model, None)
    assert [row.what for row in rows] == list(_names("fp32").values())
    for row in rows:
        assert row.implementation == "llama.cpp"
        assert row.milliseconds is None
        assert row.note.startswith(said)


def test_sources_without_the_script_are_named(tmp_path: Path) -> None:
    with pytest.raises(MambaExportError, match=r"--llama-cpp .* holds no convert_hf_to_gguf\.py"):
        llama_cpp.check_sources(tmp_path)


def test_model_that_its_script_does_not_convert(
    monkeypatch: pytest.MonkeyPatch, model: MambaLM, tmp_path: Path
) -> None:
    """What its process said last is the note, without the folders of this machine."""
    monkeypatch.setattr(peers, "llama_cpp_absent", lambda: "")
    script = """import sys
print("one", file=sys.stderr)
sys.exit("no shape [3] in '/a/b c.py', /d/e/f.gguf\\n\\n")
"""
    (tmp_path / llama_cpp.SCRIPT).write_text(script)
    monkeypatch.chdir(tmp_path)  # its sources may be named by a relative path
    note = "llama.cpp: exit code 1: no shape [3] in 'b c.py', f.gguf"
    assert [row.note for row in _rows(model, Path())] == [note] * 2


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch, model: MambaLM) -> dict[str, llama_cpp.Timed]:
    """Its script and process stood in for; what each form is said to have taken, by form."""
    logits = _last_logits(model)
    forms = [form for several in llama_cpp.FORMS.values() for form in several]
    said = {form: llama_cpp.Timed(100.0, 5.0, 256, logits) for form in forms}
    monkeypatch.setattr(peers, "llama_cpp_absent", lambda: "")
    monkeypatch.setattr(llama_cpp, "convert", lambda model, sources, folder: folder / "F32.gguf")
    monkeypatch.setattr(llama_cpp, "timed", lambda file, form, tokens, threads: said[form])
    return said


def test_each_form_is_beside_ours_of_as_many_bits(
    model: MambaLM, converted: dict[str, llama_cpp.Timed], tmp_path: Path
) -> None:
    rows = _rows(model, tmp_path)
    assert len(rows) == 2 * len(converted)
    assert rows[0] == Row("130m fp32, prefill", "llama.cpp, F32", 100.0, rows[0].note)
    assert rows[1].milliseconds == 5.0
    assert "ubatch 256, logits differ by" in rows[0].note
    assert [(row.what, row.implementation) for row in rows if "prefill" in row.what][1:] == [
        ("130m fp16, prefill", "llama.cpp, F16"), ("130m fp16, prefill", "llama.cpp, BF16"),
        ("130m int8, prefill", "llama.cpp, Q8_0"), ("130m int4, prefill", "llama.cpp, Q4_0"),
    ]  # fmt: skip


def test_other_logits_are_no_time(
    model: MambaLM, converted: dict[str, llama_cpp.Timed], tmp_path: Path
) -> None:
    """A peer that did not do the work is not timed."""
    converted["F32"] = llama_cpp.Timed(1.0, 1.0, 256, -converted["F32"].logits)
    rows = _rows(model, tmp_path)
    assert [row.milliseconds for row in rows[:3]] == [None, None, 100.0]
    assert rows[0].note == "ValueError: its logits differ by 2.0e+00"


def test_figures_have_each_peer_at_its_fastest() -> None:
    rows = [
        Row("130m fp16, a token", "ONNX Runtime, native kernels", 10.0),
        Row("130m fp16, a token", "ONNX Runtime, function bodies", 20.0),
        Row("130m fp16, a token", "transformers 5", 40.0),
        Row("130m fp16, a token", "llama.cpp, F16", 30.0),
        Row("130m fp16, a token", "llama.cpp, BF16", 25.0),
        Row("mamba2-130m fp16, a token", "ONNX Runtime, native kernels", 10.0),
        Row("mamba2-130m fp16, a token", "transformers 5", None, "not installed"),
        Row("mamba2-130m fp16, a token", "llama.cpp, F16", 9.0),
        Row("130m int8, a token", "ONNX Runtime, native kernels", 9.0),
        Row("130m int8, a token", "llama.cpp, Q8_0", None, "its best may be lost"),
        Row("130m int4, a token", "llama.cpp, Q4_0", 9.0),
    ]
    text = figures([new_record(rows, "a CPU", "a command")])
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- fp16, a token (130m, mamba2-130m): 0.90x to 2.5x the speed of llama.cpp, "
        "4.0x the speed of transformers."
    ]


def test_figures_are_those_of_each_cpu_s_newest_record_with_its_note() -> None:
    def record(device: str, ours: float, note: str = "") -> dict:
        rows = [
            Row("130m fp16, a token", "ONNX Runtime, native kernels", ours),
            Row("130m fp16, a token", "llama.cpp, F16", 20.0),
        ]
        return new_record(rows, device, "a command", **({"note": note} if note else {}))

    text = figures([record("a CPU", 10.0, "built so"), record("another", 20.0), record("a CPU", 5)])
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- fp16, a token (130m): 2.0x the speed of llama.cpp.",
        "- fp16, a token (130m): 1.0x the speed of llama.cpp.",
    ]
    assert text.count("On a CPU (") == text.count("On another (") == 1
    assert "in the same run (built so):" in text
    assert text.count("built so") == 1


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(d_model=64, n_layer=2, vocab_size=50280),
        Mamba2Config(d_model=64, n_layer=2, vocab_size=50288, head_dim=32),
    ],
    ids=["mamba", "mamba2"],
)
def test_it_computes_the_same(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fp32 form of random weights agrees with PyTorch, and 8 bits are near."""
    absent = peers.llama_cpp_absent()
    if absent or SOURCES not in os.environ:
        pytest.skip(f"llama-cpp-python: {absent or f'installed, but {SOURCES} names no sources'}")
    torch.manual_seed(0)
    model = MambaLM(config).eval()
    tokens = np.random.default_rng(0).integers(0, 50000, 33)
    with torch.no_grad():
        truth = model.double()(torch.from_numpy(tokens)[None])[0][0, -1].numpy()
    file = llama_cpp.convert(model.float(), Path(os.environ[SOURCES]), tmp_path)
    for form, allowed in (("F32", 1e-4), ("Q8_0", 0.05)):
        timed = llama_cpp.timed(file, form, tokens, 1)
        assert relative_error(timed.logits, truth) < allowed
        assert timed.ubatch == 32
        assert timed.decode > 0
        assert timed.prefill > 0
