"""mamba_run, the program without Python: its command line, and what it says of files before a GPU is needed."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mamba_run_program import (
    ABSENT,
    DESCRIPTION,
    engine_bytes,
    program,
    refused,
    refused_prompt,
    run,
    write_folder,
)
from tensorrt_harness import driver

from mamba_export.backends.tensorrt import names
from mamba_export.backends.tensorrt.description import (
    read_description,
)
from mamba_export.backends.tensorrt.engine_checks import check_engine_file

pytestmark = pytest.mark.skipif(program() is None, reason=ABSENT)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes an engine's folder into the test's own."""
    return functools.partial(write_folder, tmp_path)


# --- The command line ------------------------------------------------------------------------------


def test_help_teaches() -> None:
    found = run("--help")
    assert found.returncode == 0
    assert found.stderr == ""
    for option in ("--engine", "--plugin", "--prompt", "--tokens", "--max-new-tokens", "--temperature",
                   "--top-k", "--seed", "--bench", "--json", "--tensorrt", "--device"):  # fmt: skip
        assert f"  {option} " in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 110


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--engine is missing (--help says more)"),
        (["--engine"], "--engine needs a value (--help says more)"),
        (["--engine", "x"], "give either --prompt or --tokens"),
        (["--engine", "x", "--prompt", "a", "--tokens", "1"], "give either --prompt or --tokens"),
        (["--engine", "x", "--prompt", ""], "--prompt is empty: a model continues at least one token"),
        (["--engin", "x"], "--engin is no option (--help lists them)"),
        (["--engine", "x", "--tokens", "1,a"], "--tokens is a, expected an integer of at least 0"),
        (["--engine", "x", "--tokens", "1,"], "--tokens is , expected an integer of at least 0"),
        (["--engine", "x", "--tokens", "-1"], "--tokens is -1, expected an integer of at least 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0, expected an integer of at least 1"),
        (["--max-new-tokens", "9" * 30], "expected an integer of at least 1"),
        (["--temperature", "-1"], "--temperature is -1, expected a number of at least 0"),
        (["--temperature", "nan"], "--temperature is nan, expected a number of at least 0"),
        (["--top-k", "2.5"], "--top-k is 2.5, expected an integer of at least 0"),
        (["--seed", "x"], "--seed is x, expected an integer of at least 0"),
        (["--engine", "/nowhere/model.engine", "--prompt", "a"], "/nowhere/model.engine: no such engine file"),
    ],
)  # fmt: skip
def test_a_wrong_command_line(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


# --- Engine files ----------------------------------------------------------------------------------


def test_what_it_reads_is_what_build_writes(folder: Callable[..., Path]) -> None:
    """The same files pass the checks of the Python side; here the missing TensorRT is what is left."""
    written = folder(plugin_library=None)
    description = read_description(written)
    assert description.to_json() == json.loads((written / names.DESCRIPTION_FILE).read_text())
    check_engine_file(written, description)
    message = refused_prompt(written)
    assert message.startswith("the engine needs TensorRT, which cannot be opened (/nowhere/libnv")
    assert message.endswith("): install it, set LD_LIBRARY_PATH, or name it with --tensorrt")
    assert refused_prompt(written / names.ENGINE_FILE) == message


@pytest.mark.parametrize("count", [55, 56, 63, 64, 65, 119, 120, 1 << 20, (1 << 20) + 57])
def test_the_sha256_of_a_file(folder: Callable[..., Path], count: int) -> None:
    engine = engine_bytes(count=count)
    assert "cannot be opened" in refused_prompt(folder(engine, plugin_library=None))
    other = hashlib.sha256(engine[:-1] + b"\xff").hexdigest()
    written = folder(engine, plugin_library=None, engine_sha256=other)
    assert "is truncated, or not the engine" in refused_prompt(written)


def test_a_damaged_engine(folder: Callable[..., Path]) -> None:
    written = folder()
    engine = written / names.ENGINE_FILE
    content = engine.read_bytes()
    engine.write_bytes(content[:-1])
    expected = f"{engine} is truncated, or not the engine that engine.json describes: copy or build it again"
    assert refused_prompt(written) == expected
    assert "cannot be opened" in refused_prompt(written, "--no-file-check")
    for foreign in (content[:20], b"", b"PK\3\4" + content[4:]):
        engine.write_bytes(foreign)
        message = refused_prompt(written)
        assert message == f"{engine} is no engine of TensorRT or TensorRT-RTX: build it again"
    engine.write_bytes(engine_bytes(tag=b"vtrt"))
    expected = "is an engine of TensorRT-RTX, engine.json describes one of TensorRT:"
    assert expected in refused_prompt(written)
    engine.write_bytes(engine_bytes(version=(10, 3, 0, 1)))
    expected = "was built by version 10.3.0, engine.json describes one of 10.14.1"
    assert expected in refused_prompt(written)
    engine.unlink()
    assert refused_prompt(written) == f"{engine}: no such engine file"


def test_a_damaged_description(folder: Callable[..., Path]) -> None:
    written = folder()
    path = written / names.DESCRIPTION_FILE
    whole = path.read_text()
    for text in (whole[:-1], whole[:200], "", "[" * 100, whole + "x", '{"format": 01e}', "nul"):
        path.write_text(text)
        message = refused_prompt(written)
        assert message.startswith(f"{path} is damaged (not JSON at byte ")
        assert message.endswith("): build the engine again")
    path.unlink()
    assert "has no engine.json beside it: copy the whole folder" in refused_prompt(written)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 2}, "has format 2, this mamba_run reads 1"),
        ({"contract_version": 9}, "has contract_version 9, this mamba_run reads 1"),
        ({"format": "1"}, "is damaged (there is a text, expected a number)"),
        ({"runtime": "onnxruntime"}, 'is damaged (runtime "onnxruntime" is unknown)'),
        ({"profiles": []}, "is damaged (inputs, outputs, states and profiles do not"),
        ({"states": []}, "is of a program that takes more than tokens, which mamba_run does not drive"),
        ({"version_compatible": True}, "of --version-compatible, which carries a library for the host, which"),
        ({"vocab_size": 0}, "is of a program without tokens, which mamba_run does not drive: use TrtSession"),
        ({"inputs": [*DESCRIPTION["inputs"][:2], {**DESCRIPTION["inputs"][2], "shape": [-1, -1, 16]}]},
         "is of a program whose state past_key_values.0.recurrent_state grows, which mamba_run does not drive"),
        ({"outputs": DESCRIPTION["outputs"][:2]}, "is damaged (inputs, outputs, states and profiles do not"),
        ({"states": [["a"], ["b", "c"]]}, "is damaged (a state has not two names)"),
        ({"vocab_size": None}, "is damaged (there is null, expected a number)"),
        ({"vocab_size": 2.5}, "is damaged (a number is not an integer)"),
        ({"vocab_size": -1}, "is damaged (vocab_size is -1, expected 1 to 2147483647)"),
        ({"vocab_size": 2**31}, "is damaged (vocab_size is 2147483648, expected 1 to 2147483647)"),
        ({"vocab_size": 2**63}, "is damaged (a number is not an integer"),
        ({"plugin_library": None}, "the engine needs TensorRT, which cannot be opened"),
        ({"runtime": "tensorrt_rtx"}, "is an engine of TensorRT, engine.json describes one of TensorRT-RTX"),
        # A bundle's engine.json: what only the build knows is null.
        (dict.fromkeys(("engine_sha256", "runtime_version", "plugin_library")), "cannot be opened"),
        (dict.fromkeys(("compute_capability", "plugin_library")), "cannot be opened"),
    ],
)  # fmt: skip
def test_what_engine_json_says_is_checked(
    folder: Callable[..., Path], changed: dict[str, Any], message: str
) -> None:
    assert message in refused_prompt(folder(**changed))


def test_metadata_of_both_layouts_is_read(folder: Callable[..., Path]) -> None:
    """The end-of-text token stands in mamba_export.json, since programs under "tokens"."""
    path = folder() / "mamba_export.json"
    state = {"name": "layers.0", "start": 0.0}
    new = {"format": 2, "tokens": {"eos_token_id": 3}, "states": [state]}
    several = {**new, "tokens": {"eos_token_id": [3, 4]}}
    old = {"format": 1, "eos_token_id": 3, "states": [{}]}
    for content in (old, new, several, {**new, "tokens": None}):
        path.write_text(json.dumps(content))
        assert "cannot be opened" in refused_prompt(path.parent) or "library" in refused_prompt(
            path.parent
        )
    path.write_text(json.dumps({**new, "states": [{**state, "start": 1.0}]}))
    assert "state layers.0 starts with other than zeros: use TrtSession" in refused_prompt(
        path.parent
    )
    path.write_text(json.dumps({**new, "tokens": {"eos_token_id": [3, "4"]}}))
    assert "cannot be used (there is a text, expected a number)" in refused_prompt(path.parent)
    path.write_text(json.dumps({"format": 2, "states": []}))
    assert 'mamba_export.json cannot be used (there is no "tokens")' in refused_prompt(path.parent)


def test_a_missing_entry_is_named(folder: Callable[..., Path]) -> None:
    written = folder()
    path = written / names.DESCRIPTION_FILE
    content = json.loads(path.read_text())
    for key in (
        "format",
        "runtime",
        "states",
        "profiles",
        "inputs",
        "vocab_size",
        "byte_tokenizer",
    ):
        path.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
        assert f'is damaged (there is no "{key}")' in refused_prompt(written)


def test_text_in_json_is_read_whatever_its_spelling(folder: Callable[..., Path]) -> None:
    name = 'prä "fill"\t\\ \U0001f600'
    shown = name.replace("\t", "\\t")  # one line, and nothing that a terminal obeys
    profiles = [{"name": name, "batch": [1, 1, 1], "length": [1, 1, 1]}]
    written = folder(profiles=profiles)  # as \\u escapes, with a pair of surrogates
    assert f"profile {shown} takes batch 1, length 1" in refused_prompt(written)
    path = written / names.DESCRIPTION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False), encoding="utf-8")
    assert f"profile {shown} takes batch 1, length 1" in refused_prompt(written)


# --- Requests --------------------------------------------------------------------------------------


def test_a_prompt_outside_the_profiles_names_the_ranges(folder: Callable[..., Path]) -> None:
    written = folder()
    message = refused("--engine", written, "--prompt", "a" * 513)
    assert message == (
        "the engine takes no batch of 1 with 513 tokens: "
        "profile prefill takes batch 1 to 4, length 1 to 512; profile decode takes batch 1 to 4, length 1"
    )
    batches = [{**profile, "batch": [2, 4, 8]} for profile in DESCRIPTION["profiles"]]
    assert "takes batch 2 to 8" in refused_prompt(folder(profiles=batches))


def test_tokens_and_text(folder: Callable[..., Path]) -> None:
    written = folder()
    message = refused("--engine", written, "--tokens", "1,256")
    assert message == "token 256 is not in the vocabulary of 256"
    written = folder(byte_tokenizer=False)
    assert "so --prompt cannot be read: give its token ids with --tokens" in refused_prompt(written)


def test_foreign_libraries(folder: Callable[..., Path]) -> None:
    written = folder()
    message = refused_prompt(written, "--plugin", written / "plugin.so")
    assert "plugin.so is no library of this machine: " in message
    libm = next(Path("/").glob("lib/*/libm.so.6"), None)
    if libm is None:
        pytest.skip("libm.so.6 lies elsewhere")
    message = refused_prompt(written, "--plugin", libm)
    assert message == f"{libm} is no TensorRT plugin library: it exports no getCreators"
    written = folder(plugin_library=None)
    message = refused("--engine", written, "--prompt", "a", "--tensorrt", libm)
    assert message == f"{libm} is no TensorRT library"


def test_the_other_tensorrt(folder: Callable[..., Path]) -> None:
    library = driver.rtx_core()
    if library is None:
        pytest.skip(driver.RTX_ABSENT)
    written = folder(plugin_library=None)
    message = refused("--engine", written, "--prompt", "a", "--tensorrt", library)
    assert message.startswith(f"the engine is one of TensorRT, and {library} is TensorRT-RTX 1.")
    if torch.cuda.is_available():
        return
    # Its interfaces are those of other headers, or they fit and there is no GPU.
    written = folder(engine_bytes(b"vtrt"), runtime="tensorrt_rtx", plugin_library=None)
    message = refused("--engine", written, "--prompt", "a", "--tensorrt", library)
    assert "has other interfaces than" in message or "no NVIDIA GPU can be used" in message
