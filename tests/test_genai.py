"""ONNX Runtime GenAI's own generator drives an exported folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mamba_export.export import export
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.models import MambaLM

og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")


@torch.no_grad()
def greedy(model: MambaLM, prompt: list[int], length: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < length:
        ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids


def generate(folder: Path, prompts: list[list[int]], length: int) -> list[list[int]]:
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=length, batch_size=len(prompts))
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompts if len(prompts) > 1 else prompts[0])
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(t) for t in generator.get_sequence(row)] for row in range(len(prompts))]


@pytest.mark.parametrize("last_logits_only", [False, True], ids=["all logits", "last logits"])
def test_generator_agrees_with_pytorch(
    tiny_model: MambaLM, tmp_path: Path, last_logits_only: bool
) -> None:
    out = export(tiny_model, tmp_path / "out", last_logits_only=last_logits_only)
    prompt = [72, 101, 108, 108, 111]
    assert generate(out, [prompt], 40) == [greedy(tiny_model, prompt, 40)]


def test_generator_takes_batches_of_one_length(tiny_model: MambaLM, tmp_path: Path) -> None:
    out = export(tiny_model, tmp_path / "out")
    prompts = [[72, 101, 108], [7, 8, 9]]
    assert generate(out, prompts, 30) == [greedy(tiny_model, p, 30) for p in prompts]


def test_generators_tokenizer_reads_ours(tiny_model: MambaLM, tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    out = export(tiny_model, tmp_path / "out", tokenizer=tmp_path)
    tokenizer = og.Tokenizer(og.Model(str(out)))
    text = "Ge1:1 In the beginning; naïve 字"
    ids = [int(token) for token in tokenizer.encode(text)]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
