"""The text of continuations, over whole sessions: what stands between prompt and text stays."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tokenizer_kinds import KINDS

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.export import export
from mamba_export.models import MambaConfig, MambaLM

PROMPT = "then the end"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights over more tokens than any of the tokenizers has."""
    torch.manual_seed(0)
    config = MambaConfig(d_model=32, n_layer=1, vocab_size=512, tie_embeddings=False)
    model = MambaLM(config).eval()
    with torch.no_grad():
        model.embeddings.weight.normal_(std=0.3)
        model.lm_head.weight.normal_(std=1.0)
        model.lm_head.weight[100:] *= 0.5  # ids that the tokenizers have come more often
        model.backbone.layers[0].mixer.out_proj.weight.mul_(20)
    return export(model, tmp_path_factory.mktemp("continuations") / "out")


@pytest.mark.parametrize("kind", ["Metaspace Unigram", "WordPiece", "BPE of word ends", "words"])
def test_prompt_and_continuation_are_the_text_of_all(
    kind: str, exported: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "out"))
    KINDS[kind](folder)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    session = OrtSession(folder, threads=1)
    options = {"max_new_tokens": 40, "temperature": 1.0, "seed": 1}
    stream = session.stream([PROMPT, "in"], **options)
    pieces = ["", ""]
    for row, piece in stream:
        pieces[row] += piece
    known = theirs.backend_tokenizer.get_vocab_size()
    for one, streamed in zip(stream.result(), pieces, strict=True):
        assert streamed == one.text
        before, whole = (
            theirs.decode(
                [token for token in tokens if token < known],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            for tokens in (one.prompt_tokens, one.prompt_tokens + one.tokens)
        )
        assert before + streamed == whole
        assert sum(piece == " " for piece in streamed) > 1


def test_the_command_line_prints_the_space(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "out"))
    KINDS["words"](folder)
    found = run(folder)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"{PROMPT} ")


@pytest.mark.parametrize(
    "changed",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    ],
    ids=["at loading", "at encoding"],
)
def test_a_panic_is_one_line_of_the_command_line(
    changed: dict[str, object], exported: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "out"))
    KINDS["words"](folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    found = run(folder)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith(f"error: {path}")
    assert found.stderr.count("\n") == 1


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mamba_export", "run", str(folder), "--prompt", PROMPT]
    return subprocess.run(
        [*command, "--provider", "cpu", "--max-new-tokens", "20", "--temperature", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
