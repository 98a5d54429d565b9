"""Generation and ``mamba-export run``: the right tokens, whole characters, clean ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_export import contract
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.stepper import OrtStepper
from mamba_export.cli.run import run_command
from mamba_export.errors import SessionError
from mamba_export.export import export
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.generation import decoding
from mamba_export.generation.sampling import Sampling
from mamba_export.models import MambaConfig, MambaLM

PROMPTS = ["In the beginning", "x", "And God said, Let there be", "the earth was", "y", "zz"]


@pytest.fixture(scope="module")
def model() -> MambaLM:
    """Random weights whose greedy text neither repeats itself nor hangs on rounding.

    The output projection is its own (a tied one echoes the last token), and the layers weigh more than
    the embedding, so that what comes depends on what was read before.
    """
    torch.manual_seed(0)
    config = MambaConfig(
        d_model=32, n_layer=2, vocab_size=256, tie_embeddings=False, eos_token_id=0
    )
    model = MambaLM(config).eval()
    with torch.no_grad():
        model.embeddings.weight.normal_(std=0.3)
        model.lm_head.weight.normal_(std=1.0)
        for layer in model.backbone.layers:
            layer.mixer.out_proj.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def exported(model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = export(model, tmp_path_factory.mktemp("generate") / "out")
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def session(exported: Path) -> OrtSession:
    return OrtSession(exported, providers=["CPUExecutionProvider"], threads=1)


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def ending_at(folder: Path, token: int) -> OrtSession:
    """The model with another end-of-text token."""
    path = folder / contract.METADATA_FILE
    content = json.loads(path.read_text())
    content["tokens"]["eos_token_id"] = token
    path.write_text(json.dumps(content))
    return OrtSession(folder, threads=1)


@torch.no_grad()
def naive(model: MambaLM, prompt: list[int], count: int) -> list[int]:
    """Greedy in PyTorch, reading the whole text again at every token: no state, nothing to get wrong."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
    return tokens[len(prompt) :]


def tokens_of(session: OrtSession, prompts: Any, **options: Any) -> list[list[int]]:
    options = {"stop_at_end": False, "max_new_tokens": 40} | options
    return [one.tokens for one in session.generate(prompts, **options)]


# Which tokens


@pytest.mark.parametrize("prompt", ["In the beginning", "x"])
def test_greedy_is_pytorch_without_a_state(
    session: OrtSession, model: MambaLM, prompt: str
) -> None:
    expected = naive(model, list(prompt.encode()), 40)
    assert len(set(expected)) > 5  # it does write more than one token over and over
    assert tokens_of(session, prompt) == [expected]


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}],
    ids=["greedy", "sampled"],
)
def test_a_batch_is_its_prompts_alone(session: OrtSession, options: dict[str, Any]) -> None:
    together = tokens_of(session, PROMPTS, **options)
    assert together[0] == tokens_of(session, PROMPTS[0], **options)[0]
    if (
        not options
    ):  # a row's random stream is its own, so only the first row compares where sampled
        assert together == [tokens_of(session, prompt)[0] for prompt in PROMPTS]


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}],
    ids=["greedy", "sampled"],
)
def test_rows_that_end_at_different_times(
    copied: Path, session: OrtSession, options: dict[str, Any]
) -> None:
    """The batch shrinks on the way, and what remains is not disturbed."""
    whole = tokens_of(session, PROMPTS, max_new_tokens=60, **options)
    counts = np.bincount(np.concatenate([np.unique(tokens) for tokens in whole]), minlength=256)
    end = int(counts.argmax())  # ends as many rows as possible
    expected = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in whole]
    assert len({len(tokens) for tokens in expected}) > 2
    found = ending_at(copied, end).generate(PROMPTS, max_new_tokens=60, **options)
    assert [one.tokens for one in found] == expected
    for one, tokens in zip(found, whole, strict=True):
        assert one.finish_reason == ("end_of_text" if end in tokens else "length")


def test_stop_at_end_of_text(copied: Path, session: OrtSession) -> None:
    (whole,) = tokens_of(session, "In the beginning")
    end = whole[7]
    ending = ending_at(copied, end)
    (one,) = ending.generate("In the beginning", max_new_tokens=40)
    assert one.tokens == whole[: whole.index(end)]
    assert one.finish_reason == "end_of_text"
    (one,) = ending.generate("In the beginning", max_new_tokens=40, stop_at_end=False)
    assert one.tokens == whole
    assert one.finish_reason == "length"


@pytest.mark.parametrize("length", [2, 512, 513, 514, 1100])
def test_a_long_prompt_is_read_in_chunks(
    session: OrtSession, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = np.random.default_rng(0).integers(0, 256, length).tolist()
    _, state = session.run([prompt[:-1]])  # in one piece
    first = int(session.run([prompt[-1:]], state)[0][0, -1].argmax())
    lengths: list[int] = []
    advance = session.advance
    monkeypatch.setattr(
        session, "advance", lambda ids, state: lengths.append(ids.shape[1]) or advance(ids, state)
    )
    assert tokens_of(session, [prompt], max_new_tokens=1) == [[first]]
    assert sum(lengths) == length - 1
    assert max(lengths) <= decoding.PREFILL_TOKENS


def test_seeds(session: OrtSession) -> None:
    def draw(seed: int) -> list[list[int]]:
        return tokens_of(session, ["x", "x"], temperature=1.0, seed=seed)

    first = draw(1)
    assert first == draw(1)
    assert first != draw(2)
    assert first[0] != first[1]  # rows have streams of their own


def test_repetition_penalty_reaches_the_tokens(session: OrtSession) -> None:
    (plain,), (varied,) = (
        tokens_of(session, "x", max_new_tokens=100, repetition_penalty=penalty)
        for penalty in (1.0, 100.0)
    )
    assert len(set(varied)) > len(set(plain))
    assert len(set(varied)) > 90


def test_text_and_token_ids_are_the_same_prompt(session: OrtSession) -> None:
    by_text = session.generate("héllo", max_new_tokens=5, stop_at_end=False)
    ids = list("héllo".encode())
    for prompts in ([ids], [np.array(ids)], np.array([ids])):
        by_ids = session.generate(prompts, max_new_tokens=5, stop_at_end=False)
        assert by_ids.sequences == by_text.sequences
    assert by_text[0].prompt_tokens == ids
    assert by_text[0].text == bytes(by_text[0].tokens).decode("utf-8", "replace")


def test_token_ids_need_no_tokenizer(copied: Path) -> None:
    (copied / contract.TOKENIZER_FILE).unlink()
    session = OrtSession(copied, threads=1)
    (one,) = session.generate([[1, 2]], max_new_tokens=3, stop_at_end=False)
    assert len(one.tokens) == 3
    assert one.text is None
    for call in (session.generate, session.stream):
        with pytest.raises(SessionError, match="pass token ids instead of text"):
            call("x")


def test_threads_share_a_session(session: OrtSession) -> None:
    expected = [tokens_of(session, prompt) for prompt in PROMPTS[:4]]
    found: list[Any] = [None] * 4

    def work(index: int) -> None:
        found[index] = tokens_of(session, PROMPTS[index])

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == expected


# As it comes


def test_on_token_hears_every_token_in_order(session: OrtSession) -> None:
    heard: list[list[int]] = [[] for _ in PROMPTS]
    result = session.generate(
        PROMPTS,
        max_new_tokens=12,
        stop_at_end=False,
        on_token=lambda row, token: heard[row].append(token),
    )
    assert heard == [one.tokens for one in result]


def test_a_stream_is_the_text_in_whole_characters(
    session: OrtSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are replaced so that each row writes a given text; bytes are tokens, so characters split."""
    texts = ["日本語 — é", "plain", "👩‍👩‍👧 ok"]
    data = [text.encode() for text in texts]
    steps = max(map(len, data))
    script = np.full((steps, len(texts), 256), -9.0, np.float32)
    for row, raw in enumerate(data):
        for position in range(steps):
            script[position, row, raw[position] if position < len(raw) else 0] = 9.0
    rows = iter(script)
    monkeypatch.setattr(OrtStepper, "step", lambda self, tokens: next(rows)[: len(tokens)])
    stream = session.stream([[1], [2], [3]], max_new_tokens=steps, stop_at_end=False)
    written = ["", "", ""]
    pieces = 0
    for row, piece in stream:
        assert "\ufffd" not in piece
        written[row] += piece
        pieces += 1
        assert texts[row].startswith(written[row].rstrip("\0"))
    assert [text.rstrip("\0") for text in written] == texts
    assert pieces > 20
    result = stream.result()
    assert [one.text for one in result] == written
    assert not result.interrupted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_is_generate(session: OrtSession, temperature: float) -> None:
    options: dict[str, Any] = {"max_new_tokens": 50, "temperature": temperature}
    stream = session.stream(PROMPTS, **options)
    written = [""] * len(PROMPTS)
    for row, piece in stream:
        written[row] += piece
    expected = session.generate(PROMPTS, **options)
    assert stream.result().sequences == expected.sequences
    assert written == [one.text for one in expected]  # what was held back is written at the end


def test_timings(session: OrtSession) -> None:
    timings = session.generate(["abc", "de"], max_new_tokens=20, stop_at_end=False).timings
    assert (timings.prompt_tokens, timings.generated_tokens, timings.first_tokens) == (5, 40, 2)
    assert timings.seconds == timings.prefill_seconds + timings.decode_seconds > 0
    assert timings.decode_tokens_per_second == pytest.approx(38 / timings.decode_seconds)
    assert timings.prefill_tokens_per_second == pytest.approx(5 / timings.prefill_seconds)
    one = session.generate("abc", max_new_tokens=1, stop_at_end=False).timings
    assert one.decode_tokens_per_second is None


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_tokens(session: OrtSession) -> None:
    batch = 64
    state_bytes = sum(array.nbytes for array in session.initial_state(batch).numpy())
    assert state_bytes > 500_000  # so that a state kept a step would show: 900 MB
    resident: dict[int, int] = {}
    heard = 0

    def on_token(row: int, token: int) -> None:
        nonlocal heard
        heard += row == 0
        if row == 0 and heard in (200, 2000):
            resident[heard] = resident_bytes()

    session.generate([[1]] * batch, max_new_tokens=2000, stop_at_end=False, on_token=on_token)
    assert resident[2000] - resident[200] < 3_000_000  # the tokens themselves: 0.9 MB


# Interruption


def test_ctrl_c_in_the_callers_code(session: OrtSession) -> None:
    heard = []

    def on_token(row: int, token: int) -> None:
        heard.append(token)
        if len(heard) == 7:
            raise KeyboardInterrupt

    result = session.generate(["ab", "c"], stop_at_end=False, on_token=on_token)
    assert [len(one.tokens) for one in result] == [4, 3]
    assert [one.finish_reason for one in result] == ["interrupted"] * 2
    assert result.interrupted
    assert result.timings.generated_tokens == 7


def interrupt_at(step_number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step, count = OrtStepper.step, 0

    def interrupted(self: OrtStepper, tokens: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        if count == step_number:
            raise KeyboardInterrupt
        return step(self, tokens)

    monkeypatch.setattr(OrtStepper, "step", interrupted)


@pytest.mark.parametrize("step_number", [1, 4])
def test_ctrl_c_while_computing(
    session: OrtSession, step_number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = tokens_of(session, "x", max_new_tokens=step_number)
    interrupt_at(step_number, monkeypatch)
    (one,) = session.generate("x", stop_at_end=False)
    assert one.tokens == expected[: step_number - 1]
    assert one.finish_reason == "interrupted"
    monkeypatch.undo()
    interrupt_at(step_number, monkeypatch)
    stream = session.stream("x", stop_at_end=False)
    text = "".join(piece for _, piece in stream)
    (again,) = stream.result()
    assert again == one
    assert text == one.text


def test_ctrl_c_while_reading_the_prompt(
    session: OrtSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "advance", advance)
    result = session.generate("long prompt")
    assert result[0].tokens == []
    assert result[0].finish_reason == "interrupted"
    assert result.timings.prefill_tokens_per_second is None


def test_a_stream_that_is_left_early(session: OrtSession) -> None:
    stream = session.stream("x", stop_at_end=False)
    for _ in stream:
        break
    assert stream.result()[0].finish_reason == "interrupted"
    assert list(stream) == []


# Bad input


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "the prompt is empty"),
        (["a", ""], "prompt 2 is empty"),
        ([[1], []], "prompt 2 is empty"),
        ([], "no prompt was given"),
        ([1, 2, 3], "a list of token ids for each prompt"),
        (np.array([1, 2]), "a list of token ids for each prompt"),
        ([[1, 256]], "token id 256 is outside the vocabulary"),
        ([[-1]], "token id -1 is outside the vocabulary"),
        ([[0.5]], "expected integers"),
    ],
)
def test_bad_prompts(session: OrtSession, prompts: Any, message: str) -> None:
    for call in (session.generate, session.stream):
        with pytest.raises(SessionError) as caught:
            call(prompts)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": -1}, {"temperature": -1.0}, {"top_k": -1},
        {"top_p": 0.0}, {"repetition_penalty": 0.0}, {"seed": -1},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_bad_options_are_named(session: OrtSession, options: dict[str, Any]) -> None:
    with pytest.raises(SessionError, match=f"^{next(iter(options))} is "):
        session.generate("x", **options)


def test_options_are_fields_of_sampling(session: OrtSession) -> None:
    options = Sampling(temperature=1.0, top_k=9, seed=3)
    expected = tokens_of(session, "In the", temperature=1.0, top_k=9, seed=3)
    assert tokens_of(session, "In the", sampling=options) == expected
    assert tokens_of(session, "In the", sampling=Sampling(1.0, seed=5), top_k=9, seed=3) == expected
    for call in (session.generate, session.stream):
        with pytest.raises(
            TypeError, match=r"no option 'temprature': use one of temperature, top_k"
        ):
            call("In the", temprature=1.0)


# The command


def command(folder: Path, prompts: list[str], **options: Any) -> int:
    defaults: dict[str, Any] = {
        "max_new_tokens": 20,
        "sampling": Sampling(),
        "provider": "cpu",
        "threads": 1,
        "json_output": False,
        "stream": True,
        "ignore_end": True,
    }
    return run_command(folder, prompts, **(defaults | options))


@pytest.mark.parametrize("stream", [True, False])
def test_one_prompt_is_printed_with_its_continuation(
    exported: Path, session: OrtSession, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(exported, ["In the"], stream=stream) == 0
    (one,) = session.generate("In the", max_new_tokens=20, stop_at_end=False)
    out, err = capsys.readouterr()
    assert out == f"In the{one.text}\n"
    assert err.startswith("20 tokens, ")
    assert " tokens/s (prefill " in err
    assert err.count("\n") == 1


def test_several_prompts_come_one_after_another(
    exported: Path, session: OrtSession, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(exported, ["In the", "x"]) == 0
    first, second = session.generate(["In the", "x"], max_new_tokens=20, stop_at_end=False)
    assert capsys.readouterr().out == (
        f"--- prompt 1 of 2 (length) ---\nIn the{first.text}\n\n"
        f"--- prompt 2 of 2 (length) ---\nx{second.text}\n"
    )


def test_json(exported: Path, session: OrtSession, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(exported, ["In the", "x"], json_output=True) == 0
    out, err = capsys.readouterr()
    assert err == ""
    content = json.loads(out)
    expected = session.generate(["In the", "x"], max_new_tokens=20, stop_at_end=False)
    for found, one, prompt in zip(content["generations"], expected, ["In the", "x"], strict=True):
        assert found == {
            "prompt": prompt,
            "tokens": one.tokens,
            "text": one.text,
            "finish_reason": "length",
        }
    assert content["timings"]["generated_tokens"] == 40
    assert content["timings"]["decode_tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("prompts", "said"),
    [([], "no prompt was given"), ([""], "the prompt is empty"), (["x", ""], "prompt 2 is empty")],
)
def test_an_empty_prompt_on_the_command_line(exported: Path, prompts: list[str], said: str) -> None:
    with pytest.raises(SessionError, match=said):
        command(exported, prompts)


@pytest.mark.parametrize("stream", [True, False])
def test_the_command_interrupted_while_computing(
    exported: Path,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_at(9, monkeypatch)
    assert command(exported, ["In the"], stream=stream) == 130
    out, err = capsys.readouterr()
    assert out.startswith("In the")
    assert out.endswith("\n")
    assert err.startswith("8 tokens, ")


SCRIPT = """
import sys
from pathlib import Path
from mamba_export.cli.run import run_command
from mamba_export.generation.sampling import Sampling
sys.exit(run_command(Path(sys.argv[1]), ["In the beginning"], max_new_tokens=10**7,
    sampling=Sampling(temperature=1.0), provider="cpu", threads=1, json_output=False, stream=True,
    ignore_end=True))
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_real_ctrl_c(exported: Path) -> None:
    process = start(exported)
    assert process.stdout is not None
    seen = process.stdout.read(200)  # it comes while the rest is being written
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (seen + out).startswith(b"In the beginning")
    assert out.endswith(b"\n")
    assert b"Traceback" not in err
    assert b" tokens/s (prefill " in err


def test_a_reader_that_leaves(exported: Path) -> None:
    process = start(exported)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(100)
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
