"""What callers of the Python API may give by mistake: it works, or is one line of ours."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import mamba_export
from mamba_export import nn as nn_of_ours
from mamba_export.backends import registry
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.tensorrt.options import BuildOptions, check_request
from mamba_export.backends.tensorrt.profiles import check_range
from mamba_export.contract.program import Program, Value
from mamba_export.errors import MambaExportError, SessionError
from mamba_export.export import State, build, export
from mamba_export.export.program_checks import check_program
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.folder.metadata import read_metadata
from mamba_export.generation.sampling import Sampling
from mamba_export.models import Mamba2Config, MambaBackbone, MambaConfig, MambaLM, checkpoints
from mamba_export.verify import verify

HUGE = 10**400
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, np.nan, np.inf, HUGE, "", "x", "\0", b"x", b"\xff", [], [1], [None],
    ["x"], (), {}, {"a": 1}, {1}, range(3), object(), int, len, 1j, np.int64(3), np.float32(0.5),
    np.bool_(True),
    np.array(3), np.array([1, 2]), np.zeros((0, 3)), np.array(["a"]), np.array([None]), np.zeros(2, complex),
    np.array([1], "datetime64[s]"), np.ma.array([1, 2], mask=[0, 1]), torch.tensor(2), torch.zeros(2, 3),
    torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, requires_grad=True), torch.empty(2, device="meta"),
    nn.Linear(2, 2), ValueError("x"), Path("x"), memoryview(b"abc"), [[1], [2, 3]], [[[1]]], [1, [2]],
]  # fmt: skip
"""Values of every kind that a name in the API may be given."""


@pytest.fixture(scope="module")
def exported(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = export(tiny_model, tmp_path_factory.mktemp("api") / "out")
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def session(exported: Path) -> OrtSession:
    return OrtSession(exported, providers=["CPUExecutionProvider"], threads=1)


def answers(call: Callable[[Any], Any], values: list[Any] = ODD) -> list[Any]:
    """What of ``values`` works; each of the others has to be one line of ours, however odd it is."""
    worked, lines = [], []
    for value in values:
        try:
            call(value)
        except MambaExportError as error:
            lines.append(str(error))
        except Exception as error:
            raise AssertionError(f"{type(value)}: {type(error).__name__}: {error}") from error
        else:
            worked.append(value)
    assert [line for line in lines if not line.strip() or "\n" in line] == []
    return worked


def test_sampling(session: OrtSession) -> None:
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed"):
        answers(lambda value, name=name: Sampling(**{name: value}))
    assert answers(lambda value: session.generate("x", sampling=value, max_new_tokens=1)) == [None]


def test_none_switches_an_option_of_sampling_off() -> None:
    off = Sampling(temperature=None, top_k=None, top_p=None, repetition_penalty=None)  # type: ignore[arg-type]
    assert off == Sampling()
    assert Sampling(temperature=0.7, top_k=5).replace(temperature=None, top_k=None) == Sampling()
    with pytest.raises(SessionError, match="seed is None"):
        Sampling(seed=None)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(session: OrtSession) -> None:
    plain = session.generate(
        "ab", max_new_tokens=3, temperature=0.5, top_k=4, top_p=0.75, repetition_penalty=1.5, seed=7
    )
    numpys = session.generate(
        "ab",
        max_new_tokens=np.int32(3),  # type: ignore[arg-type]
        temperature=np.float16(0.5),
        top_k=np.uint8(4),
        top_p=torch.tensor(0.75),
        repetition_penalty=np.array(1.5),
        seed=np.int64(7),
    )
    assert numpys[0].tokens == plain[0].tokens


@pytest.mark.parametrize("penalty", [1e-40, 0, -1, 1e39, np.inf, np.nan])
def test_a_repetition_penalty_that_fp32_cannot_divide_by_is_refused(penalty: float) -> None:
    with pytest.raises(
        SessionError, match=r"repetition_penalty is .* expected a number from 1\.18e-38"
    ):
        Sampling(repetition_penalty=penalty)


def test_an_unknown_option_is_an_error_of_ours(session: OrtSession) -> None:
    with pytest.raises(MambaExportError, match="there is no option 'beams'"):
        session.generate("x", beams=4)


PROMPTS: list[Callable[[], Any]] = [
    lambda: [[1, 2, 3]],
    lambda: ((1, 2, 3),),
    lambda: np.array([[1, 2, 3]], np.uint8),
    lambda: torch.tensor([[1, 2, 3]]),
    lambda: [torch.tensor([1, 2, 3])],
    lambda: [np.array([1, 2, 3], np.int16)],
    lambda: ([1, 2, 3] for _ in range(1)),
    lambda: [iter([1, 2, 3])],
    lambda: [range(1, 4)],
    lambda: ["\x01\x02\x03"],
    lambda: np.array(["\x01\x02\x03"]),
]


@pytest.mark.parametrize("make", PROMPTS)
def test_prompts_may_be_whatever_holds_tokens(session: OrtSession, make: Callable[[], Any]) -> None:
    found = session.generate(make(), max_new_tokens=2)
    assert found[0].prompt_tokens == [1, 2, 3]
    assert found[0].tokens == session.generate([[1, 2, 3]], max_new_tokens=2)[0].tokens


def test_odd_prompts(session: OrtSession) -> None:
    worked = answers(lambda value: session.generate(value, max_new_tokens=1))
    assert [type(value) for value in worked] == [str, str, list, np.ndarray, list]
    answers(lambda value: session.generate([value], max_new_tokens=1))
    answers(lambda value: session.generate([[value]], max_new_tokens=1))
    answers(lambda value: list(session.stream(value, max_new_tokens=1)))
    few = [value for value in ODD if value is not HUGE]
    answers(lambda value: session.generate("x", max_new_tokens=value), few)
    few = [value for value in ODD if not callable(value)]
    assert answers(lambda v: session.generate("x", max_new_tokens=1, on_token=v), few) == [None]


def test_odd_inputs_of_run(session: OrtSession, exported: Path) -> None:
    answers(session.run)
    answers(session.advance)
    answers(lambda value: session.run([value]))
    answers(lambda value: session.run([[value]]))
    answers(lambda value: session.run({"input_ids": value}))
    answers(lambda value: session.run({value: [[1]]}), [None, 1, "x", b"x", (), 1.5])
    answers(lambda value: session.run([[1]], value))
    logits, _ = session.run(torch.tensor([[1, 2]]))
    np.testing.assert_array_equal(logits, session.run([[1, 2]])[0])


def test_odd_floats(tmp_path: Path) -> None:
    model = MambaBackbone(MambaConfig(d_model=8, n_layer=1)).eval()
    session = OrtSession(export(model, tmp_path / "out"), threads=1)
    answers(session.run)
    answers(lambda value: session.run([[[value] * 8]]))
    low = torch.randn(1, 3, 8).bfloat16().requires_grad_()
    expected = session.run(low.detach().float().numpy())[0]
    for same in (low, low.detach().float().numpy().astype(ml_dtypes.bfloat16)):
        np.testing.assert_array_equal(session.run(same)[0], expected)


def test_odd_states(session: OrtSession) -> None:
    arrays = session.initial_state(2).numpy()
    answers(session.state_from_numpy)
    answers(OrtState.from_numpy)
    answers(lambda value: OrtState.from_numpy(arrays, value))
    answers(lambda value: session.state_from_numpy([value, *arrays[1:]]))
    with pytest.raises(SessionError, match="conv_state is given as complex64, expected fp32"):
        session.state_from_numpy([array.astype(np.complex64) for array in arrays])
    state = session.state_from_numpy([torch.from_numpy(array) for array in arrays])  # type: ignore[misc]
    assert state.batch == 2
    worked = answers(state.select)
    assert all(set(map(int, indices)) <= {0, 1} for indices in worked)
    for bad in ([0.0], [2**70], [-1], [True], np.array([0.5]), [2], "0", None, 0):
        with pytest.raises(SessionError, match="cannot select sequences"):
            state.select(bad)  # type: ignore[arg-type]
    np.testing.assert_array_equal(state.select(np.array([1], np.uint8)).numpy()[0], arrays[0][1:])
    answers(session.concatenate)
    answers(lambda value: session.concatenate([state, value]))
    answers(session.stepper)
    step = session.stepper(state).step
    answers(step)
    for bad in ([0, 256], [0, -1], [0], [[0, 1]], [0.0, 1.0]):
        with pytest.raises(SessionError):
            step(bad)  # type: ignore[arg-type]


def test_states_of_two_models_do_not_become_one(session: OrtSession, tmp_path: Path) -> None:
    wide = MambaLM(MambaConfig(d_model=48, n_layer=2, vocab_size=256))
    deep = MambaLM(MambaConfig(d_model=32, n_layer=3, vocab_size=256))
    for name, model in (("wide", wide), ("deep", deep)):
        other = OrtSession(export(model, tmp_path / name), threads=1)
        with pytest.raises(SessionError, match="different models"):
            session.concatenate([session.initial_state(1), other.initial_state(1)])
        with pytest.raises(SessionError, match="state"):
            session.run([[1]], other.initial_state(1))


@pytest.mark.parametrize("config", [MambaConfig, Mamba2Config])
def test_odd_inputs_of_modules(config: type[MambaConfig] | type[Mamba2Config]) -> None:
    """Of a block, a backbone and a language model: what is no tensor of theirs is one line of ours."""
    extra = {"head_dim": 16} if config is Mamba2Config else {}
    model = MambaLM(config(d_model=32, n_layer=2, vocab_size=16, **extra))
    block = model.backbone.mixers[0]
    x, ids = torch.zeros(1, 2, 32), torch.zeros(1, 2, dtype=torch.int64)
    shaped = [
        x[..., :3],
        x[0],
        x.long(),
        x.to(torch.complex64),
        ids.bool(),
        ids.to(torch.uint8),
        ids[:, :0],
    ]
    for call in (block, model.backbone, model):
        assert answers(call, [*ODD, *shaped]) == []
    assert answers(lambda state: block(x, state)) == [None]
    assert answers(lambda state: model.backbone(x, state)) == [None]
    assert answers(lambda state: model(ids, state)) == [None]
    assert answers(lambda state: model(ids, [state, state])) == [None]  # a layer without one starts
    for call in (block, model.backbone):
        call(x)
    model(ids.int())


@pytest.mark.parametrize("batch", [10**12, 2**31 - 1, 10**30, HUGE])
def test_a_batch_that_no_memory_holds_is_one_line(session: OrtSession, batch: int) -> None:
    with pytest.raises(SessionError, match=r"out of memory|batch is"):
        session.initial_state(batch)


def test_odd_batches(session: OrtSession) -> None:
    assert session.initial_state(np.int8(3)).batch == 3  # type: ignore[arg-type]
    worked = answers(session.initial_state)
    assert [int(batch) for batch in worked] == [1, 3, 3, 2]


def test_a_path_may_be_text_bytes_or_path_like(exported: Path) -> None:
    class Named:
        def __fspath__(self) -> bytes:
            return os.fsencode(exported)

    for folder in (str(exported), os.fsencode(exported), exported, Named(), np.str_(exported)):
        assert read_metadata(folder).folder == exported  # type: ignore[arg-type]


def test_odd_folders_and_options_of_a_session(exported: Path) -> None:
    answers(OrtSession)
    answers(read_metadata)
    for name in ("providers", "threads", "session_options", "native"):
        answers(
            lambda value, name=name: OrtSession(exported, **{name: value}),
            [value for value in ODD if value is not HUGE],
        )
    for options in (None, {"device_id": "x"}, {"device_id": -1}, {"device_id": None}, {1: 2}, 5):
        answers(
            lambda value: OrtSession(exported, providers=[value]),
            [("CPUExecutionProvider", options), ("CUDAExecutionProvider", options), ("x",)],
        )
    assert OrtSession(exported, providers="CPUExecutionProvider").metadata  # type: ignore[arg-type]


def test_odd_models_and_folders_of_export(
    tiny_model: MambaLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert answers(lambda value: export(value, tmp_path / "none")) == []
    values = [v for v in ODD if not isinstance(v, (str, bytes, Path))]
    assert answers(lambda value: export(tiny_model, value), values) == []
    assert answers(lambda value: export(tiny_model, output=value), values) == []
    bad = [
        v for v in ODD if v is not None and not isinstance(v, (bool, np.bool_)) and not callable(v)
    ]
    for name in (
        "dtype", "opset", "progress", "force", "fuse_layers", "last_logits_only", "tokenizer",
        "weights", "calibrate",
    ):  # fmt: skip
        assert answers(lambda v, name=name: export(tiny_model, "out", **{name: v}), bad) == []
    assert list(tmp_path.iterdir()) == []


class TwoResults(nn.Module):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + h, h + 1


def test_odd_arguments_of_a_module(tmp_path: Path) -> None:
    module, args = TwoResults(), (torch.zeros(2, 3), torch.zeros(2, 3))
    out = tmp_path / "out"
    answers(lambda value: export(module, value, output=out), [v for v in ODD if v is not None])
    for name in ("dynamic_shapes", "input_names", "output_names", "states"):
        values = [
            None,
            5,
            "x",
            b"x",
            [1],
            [None, 1],
            {"x": 5},
            {"x": {0: 1.5j}},
            {1: 2},
            ["", ""],
            [[], []],
        ]
        for value in values:
            answers(
                lambda value, name=name: export(
                    module, args, output=out, force=True, **{name: value}
                ),
                [value],
            )
    for state in (
        State(5, 1), State("h", 1.5), State("h", 1, name=3), State("h", 1, start="x"),  # type: ignore[arg-type]
        State("h", 1, grows=1.5), State("h", True), State("h", 1, start=float("nan")),  # type: ignore[arg-type]
    ):  # fmt: skip
        with pytest.raises(MambaExportError, match="state"):
            export(module, args, output=out, force=True, states=[state])


def test_odd_arguments_of_verify(exported: Path, tiny_model: MambaLM) -> None:
    assert answers(verify) == []
    assert answers(lambda value: verify(exported, model=value)) == []
    values = [value for value in ODD if value is not None]
    for name in ("text", "backends", "on_check"):
        bad = [v for v in values if not (name == "text" and isinstance(v, str))]
        bad = [v for v in bad if not (name == "on_check" and callable(v))]
        bad = [v for v in bad if not (name == "backends" and str(v) in ("[]", "()"))]
        assert (
            answers(lambda v, name=name: verify(exported, model=tiny_model, **{name: v}), bad) == []
        )
    answers(registry.runtime)


def test_odd_options_of_build(exported: Path, tmp_path: Path) -> None:
    metadata = read_metadata(exported)
    answers(lambda value: check_range(value, "--batch"))
    for name in BuildOptions.__dataclass_fields__:
        answers(lambda value, name=name: check_request(metadata, BuildOptions(**{name: value})))
    assert answers(lambda value: mamba_export.build(value)) == []
    assert (
        answers(lambda v: mamba_export.build(exported, v), [v for v in ODD if v is not None]) == []
    )
    assert answers(lambda value: mamba_export.bundle(value, tmp_path / "b")) == []
    values = [value for value in ODD if not isinstance(value, (str, bytes, Path))]
    assert answers(lambda value: mamba_export.bundle(exported, value), values) == []


def test_a_session_of_tensorrt_without_an_engine_is_one_line(exported: Path) -> None:
    answers(mamba_export.TrtSession)
    answers(lambda value: mamba_export.TrtSession(exported, device=value))


def test_a_model_of_transformers_in_memory_is_exported(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "vocab_size": 40,
        "state_size": 4,
    }
    for kind in ("Mamba", "FalconMamba"):
        config = getattr(transformers, f"{kind}Config")(**sizes)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        folder = export(model, tmp_path / kind)
        tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
        with torch.no_grad():
            expected = model(tokens).logits.double().numpy()
        logits = OrtSession(folder, threads=1).run(tokens)[0]
        assert np.linalg.norm(logits - expected) <= 1e-5 * np.linalg.norm(expected)
        assert verify(folder, model=model, backends=["cpu"], quick=True).passed


def test_another_model_of_transformers_is_one_line(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    gpt = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10, n_positions=8)
    mamba = transformers.MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=10)
    with pytest.raises(MambaExportError, match="architecture 'gpt2'; supported are"):
        export(transformers.GPT2LMHeadModel(gpt), tmp_path / "out")
    with pytest.raises(MambaExportError, match="MambaModel has no head of a language model"):
        export(transformers.MambaModel(mamba), tmp_path / "out")
    with torch.device("meta"), pytest.raises(MambaExportError, match="is not loaded"):
        export(transformers.MambaForCausalLM(mamba), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_odd_arguments_of_models_and_checkpoints(tiny_model: MambaLM, tmp_path: Path) -> None:
    for module in (nn_of_ours.MambaLM, nn_of_ours.MambaBackbone, nn_of_ours.Mamba):
        assert answers(module) == []
    assert answers(MambaConfig.published) == []
    for small in (
        MambaConfig(d_model=8, n_layer=1),
        Mamba2Config(d_model=8, n_layer=1, head_dim=4, d_state=4),
    ):
        for field in dataclasses.fields(small):
            answers(lambda v, small=small, name=field.name: small.replace(**{name: v}))
    assert answers(checkpoints.load) == []
    assert answers(checkpoints.locate_tokenizer) == []
    values = [value for value in ODD if not isinstance(value, (str, bytes, Path))]
    assert answers(lambda value: checkpoints.save(tiny_model, value), values) == []
    assert answers(lambda value: checkpoints.save(value, tmp_path / "saved")) == []


def test_odd_programs() -> None:
    value = Value("x", "fp32", ("batch", 2))
    module = nn.Linear(2, 2)
    good = Program(module, (value,), (Value("y", "fp32", ("batch", 2)),))
    check_program(good)
    assert answers(build) == []
    for name in ("module", "inputs", "outputs", "states", "tokens"):
        worked = answers(lambda v, name=name: check_program(dataclasses.replace(good, **{name: v})))
        assert all(v is None or isinstance(v, nn.Module) or len(v) == 0 for v in worked)
    for name in ("name", "dtype", "shape"):
        for odd in ODD:
            changed = dataclasses.replace(good, inputs=(dataclasses.replace(value, **{name: odd}),))
            answers(lambda v: check_program(v), [changed])
