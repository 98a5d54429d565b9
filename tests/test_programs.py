"""Programs: modules of a user's own, any inputs and outputs, and states that grow."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hybrid import (
    D_STATE,
    HEADS,
    TAPS,
    WIDTH,
    Hybrid,
    Writer,
    export_hybrid,
    in_fp16,
    truth,
    writer_program,
)

import mamba_export
from mamba_export import contract
from mamba_export.backends.onnxruntime.session import OrtSession, OrtState
from mamba_export.backends.tensorrt import BuildOptions, build, read_description
from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.backends.tensorrt.options import parse_sizes
from mamba_export.contract.program import Value
from mamba_export.errors import EngineError, SessionError
from mamba_export.export.module_program import module_program
from mamba_export.export.torch_run import run_program
from mamba_export.folder.metadata import read_metadata

OLDEST_ORT = Path(__file__).parent.parent / ".ort-oldest"
NAMES = ("y", "keys", "values", "conv", "scan")


@pytest.fixture(scope="module")
def hybrid() -> Hybrid:
    torch.manual_seed(0)
    return Hybrid()


@pytest.fixture(scope="module")
def exported(hybrid: Hybrid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hybrid(hybrid, tmp_path_factory.mktemp("programs") / "hybrid")


@pytest.fixture(scope="module")
def session(exported: Path) -> OrtSession:
    return OrtSession(exported, threads=1)


def sequence(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).standard_normal((batch, length, WIDTH), dtype=np.float32)


def close(found: np.ndarray, expected: np.ndarray, bound: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= bound * np.linalg.norm(expected)


# States that grow


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "parts",
    [(9,), (1,) * 9, (4, 5), (1, 7, 1), (8, 1)],
    ids=lambda parts: "-".join(map(str, parts)),
)
def test_any_split_is_the_whole(
    session: OrtSession, hybrid: Hybrid, batch: int, parts: tuple[int, ...]
) -> None:
    x = sequence(batch, sum(parts))
    expected = truth(hybrid, x)
    state, outputs, read = None, [], 0
    for part in np.split(x, np.cumsum(parts)[:-1], axis=1):
        y, state = session.run(part, state)
        outputs.append(y)
        read += part.shape[1]
        assert [t.shape for t in state.numpy()][:2] == [(batch, HEADS, read, WIDTH // HEADS)] * 2
    close(np.concatenate(outputs, axis=1), expected["y"])
    for name, array in zip(NAMES[1:], state.numpy(), strict=True):
        close(array, expected[name])


def test_a_long_prompt_then_steps(session: OrtSession, hybrid: Hybrid) -> None:
    x = sequence(2, 300)
    expected = truth(hybrid, x)["y"]
    y, state = session.run(x[:, :290])
    close(y, expected[:, :290])
    for step in range(290, 300):
        y, state = session.run(x[:, step : step + 1], state)
        close(y[:, 0], expected[:, step])


def test_the_oldest_onnxruntime_agrees(exported: Path, hybrid: Hybrid, tmp_path: Path) -> None:
    if not (OLDEST_ORT / "onnxruntime").is_dir():
        pytest.skip("ONNX Runtime 1.20 is not in .ort-oldest: `make test` puts it there")
    x = sequence(3, 7)
    np.save(tmp_path / "x.npy", x)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, onnxruntime as ort\n"
        "from mamba_export.backends.onnxruntime.session import OrtSession\n"
        "session = OrtSession(sys.argv[2], threads=1, native=False)\n"
        "x, state, ys = np.load(sys.argv[3]), None, []\n"
        "for part in np.split(x, [3, 4], axis=1):\n"
        "    y, state = session.run(part, state)\n"
        "    ys.append(y)\n"
        "np.save(sys.argv[4], np.concatenate(ys, axis=1))\n"
        "print(ort.__version__)\n"
    )
    paths = [OLDEST_ORT, exported, tmp_path / "x.npy", tmp_path / "y.npy"]
    found = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("1.20.")
    close(np.load(tmp_path / "y.npy"), truth(hybrid, x)["y"])


def test_the_folder_tells_of_the_states(exported: Path) -> None:
    content = json.loads((exported / contract.METADATA_FILE).read_text())
    assert content["tokens"] is None
    assert content["model"] is None
    assert [one["name"] for one in content["inputs"]] == ["x"]
    keys, _, conv, _ = content["states"]
    assert keys == {
        "name": "keys", "past": "keys", "present": "present.keys", "dtype": "fp32",
        "shape": ["batch", HEADS, "past", WIDTH // HEADS], "start": 0.0, "grows": 2,
    }  # fmt: skip
    assert (conv["shape"], conv["grows"]) == (["batch", WIDTH, TAPS - 1], None)
    initializers = ir.load(exported / contract.MODEL_FILE).graph.initializers
    assert {"qkv.weight", "conv_weight", "D", "A"} <= set(initializers)


def test_states_start_and_are_selected_and_concatenated(
    session: OrtSession, hybrid: Hybrid
) -> None:
    start = session.initial_state(2)
    assert [array.shape for array in start.numpy()] == [
        (2, HEADS, 0, WIDTH // HEADS), (2, HEADS, 0, WIDTH // HEADS), (2, WIDTH, TAPS - 1), (2, WIDTH, D_STATE),
    ]  # fmt: skip
    x = sequence(3, 6)
    _, state = session.run(x[:, :4])
    swapped = state.select([2, 0])
    y, _ = session.run(x[[2, 0], 4:], swapped)
    close(y, truth(hybrid, x)["y"][[2, 0], 4:])
    joined = session.concatenate([swapped, state.select([1])])
    y, _ = session.run(x[[2, 0, 1], 4:], joined)
    close(y, truth(hybrid, x)["y"][[2, 0, 1], 4:])
    assert session.concatenate([start, session.initial_state(1)]).batch == 3

    _, longer = session.run(x[:, :5])
    with pytest.raises(SessionError, match="grown to different lengths"):
        session.concatenate([state, longer])
    mixed = OrtState([state.tensors[0], *longer.tensors[1:]])
    with pytest.raises(SessionError, match=r"state values has shape \(3, 2, 5, 8\), expected"):
        session.run(x[:, 5:], mixed)


def test_a_float64_program_in_pytorch_is_the_truth_too(exported: Path, hybrid: Hybrid) -> None:
    """What ``verify`` runs: the program of a module and a folder's metadata, on torch tensors."""
    metadata = OrtSession(exported, threads=1).metadata
    program = module_program(
        hybrid,
        metadata.source,
        inputs=metadata.inputs,
        outputs=metadata.outputs,
        states=metadata.states,
    )
    x = sequence(2, 5)
    outputs, after = run_program(program, {"x": torch.from_numpy(x)})
    expected = truth(hybrid, x)
    close(outputs["output"].numpy(), expected["y"])
    for name, tensor in zip(NAMES[1:], after, strict=True):
        close(tensor.numpy(), expected[name])


def test_fp16(hybrid: Hybrid, tmp_path: Path) -> None:
    half = in_fp16(hybrid)
    session = OrtSession(export_hybrid(half, tmp_path / "out"), threads=1)
    assert session.metadata.dtype == "fp16"
    assert [state.past.dtype for state in session.metadata.states] == ["fp16"] * 3 + ["fp32"]
    x = sequence(2, 9)
    expected = truth(hybrid, x)["y"]
    first, state = session.run(x[:, :5])
    second, _ = session.run(x[:, 5:], state)
    found = np.concatenate([first, second], axis=1).astype(np.float64)
    assert np.linalg.norm(found - expected) <= 2.0**-8 * np.linalg.norm(expected)


# Language models with a state that grows


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Writer, OrtSession]:
    torch.manual_seed(3)
    writer = Writer().eval()
    out = tmp_path_factory.mktemp("writer") / "out"
    return writer, OrtSession(mamba_export.export(writer_program(writer), out), threads=1)


@torch.no_grad()
def naive(writer: Writer, prompt: list[int], count: int) -> list[int]:
    """Greedy, reading the whole text again at every token, with the float64 truth of the layer."""
    tokens = list(prompt)
    table = writer.embeddings.weight.double().numpy()
    for _ in range(count):
        y = truth(writer.hybrid, table[tokens][None])["y"][0, -1]
        tokens.append(int((table @ y).argmax()))
    return tokens[len(prompt) :]


def test_generation_sits_on_top(writer: tuple[Writer, OrtSession]) -> None:
    model, session = writer
    assert session.metadata.takes_tokens
    assert session.metadata.vocab_size == 20
    for prompts in ([[1, 2, 3, 4]], [[5]], [[1, 2, 3], [7, 8, 9]]):
        found = session.generate(prompts, max_new_tokens=12)
        assert [one.tokens for one in found] == [naive(model, prompt, 12) for prompt in prompts]
    with pytest.raises(SessionError, match="prompts of 1 and 3 tokens in one call"):
        session.generate([[1, 2, 3], [4]], max_new_tokens=2)


def test_a_stepper_leaves_its_start_alone(writer: tuple[Writer, OrtSession]) -> None:
    _, session = writer
    ids = np.random.default_rng(0).integers(0, 20, (3, 8))
    whole, _ = session.run(ids)
    _, start = session.run(ids[:, :5])
    for _ in range(2):
        stepper = session.stepper(start)
        for step in range(5, 8):
            close(stepper.step(ids[:, step]), whole[:, step])
        assert stepper.state.tensors[0].shape[2] == 8
        assert start.tensors[0].shape[2] == 5
    with pytest.raises(SessionError, match="token id 20 is outside the vocabulary"):
        session.run([[20]])


# TensorRT


@pytest.mark.skipif(
    not libraries.is_installed(TENSORRT_RTX), reason="tensorrt-rtx is not installed"
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_it_from_an_empty_cache(
    hybrid: Hybrid, tmp_path: Path, dtype: str
) -> None:
    module = hybrid if dtype == "fp32" else in_fp16(hybrid)
    out = export_hybrid(module, tmp_path / "out")
    options = BuildOptions(runtime="tensorrt-rtx", plugin=False, batch=(1, 2, 4), length=(1, 8, 64))
    description = build(out, options)
    assert description.vocab_size == 0
    assert [profile.sizes for profile in description.profiles] == [{"past": (0, 8, 64)}] * 2
    assert read_description(out) == description
    shapes = {tensor["name"]: tensor["shape"] for tensor in description.inputs}
    assert shapes["keys"] == [-1, HEADS, -1, WIDTH // HEADS]
    line = (out / "DEPLOY.md").read_text()
    assert f"keys:1x{HEADS}x0x{WIDTH // HEADS}" in line
    assert f"keys:4x{HEADS}x64x{WIDTH // HEADS}" in line


def test_ranges_of_what_was_read_before(exported: Path) -> None:
    metadata = read_metadata(exported)
    (prefill, decode) = BuildOptions(past=(0, 100, 1000)).profiles(metadata)
    assert prefill.sizes == decode.sizes == {"past": (0, 100, 1000)}
    with pytest.raises(EngineError, match="--past 5,4,3: give minimum,optimum,maximum"):
        BuildOptions(past=(5, 4, 3)).profiles(metadata)
    image = Value("image", "fp32", ("batch", 3, "height"))
    with pytest.raises(
        EngineError, match="input image has an axis height without a range: --size height="
    ):
        prefill.shapes(image)
    options = BuildOptions(sizes=parse_sizes(["height=1,2,3"]))
    with pytest.raises(EngineError, match=r"--size height: .* has no such axis .* there is none"):
        options.profiles(metadata)
    of_images = dataclasses.replace(metadata, inputs=(image,))
    with pytest.raises(EngineError, match=r"--size width: .* those there are: height"):
        BuildOptions(sizes={"width": (1, 2, 3)}).profiles(of_images)
    (prefill, _) = options.profiles(of_images)
    assert prefill.shapes(image) == ((1, 3, 1), (4, 3, 2), (16, 3, 3))
    for text in ("height", "=1,2,3", "height=3,2,1"):
        with pytest.raises(EngineError, match="--size"):
            parse_sizes([text])
