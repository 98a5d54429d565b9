"""Generation stops where transformers' own generate stops: lists of tokens, generation_config.json, none."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mamba_export import contract
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.cli.run import run_command
from mamba_export.contract.program import Program, Tokens, Value
from mamba_export.errors import CheckpointError, SessionError
from mamba_export.export import export
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.folder.genai import genai_config
from mamba_export.folder.metadata import read_metadata, write_metadata
from mamba_export.generation.sampling import Sampling
from mamba_export.models import MambaConfig, checkpoints

PROMPT = "In the"
STEPS = 24
ABSENT = object()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model over bytes, whose greedy text does not repeat one token."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=256, hidden_size=32, num_hidden_layers=2, tie_word_embeddings=False
    )
    model = transformers.MambaForCausalLM(config).eval()
    with torch.no_grad():
        model.backbone.embeddings.weight.normal_(std=0.3)
        model.lm_head.weight.normal_(std=1.0)
        for layer in model.backbone.layers:
            layer.mixer.out_proj.weight.mul_(20)
    folder = tmp_path_factory.mktemp("transformers") / "model"
    model.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def text(saved: Path) -> list[int]:
    """Tokens of the continuation where nothing ends it."""
    tokens = truth(saved, eos_token_id=None)
    assert len(tokens) == STEPS
    assert len(set(tokens[:12])) > 6
    return tokens


def truth(folder: Path, **options: Any) -> list[int]:
    """transformers' continuation, the token that ended it included."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if "eos_token_id" in options:  # None as an argument of generate is "not given"
        model.generation_config.eos_token_id = options["eos_token_id"]
    prompt = torch.tensor([list(PROMPT.encode())])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = model.generate(prompt, max_new_tokens=STEPS, do_sample=False)
    return made[0, prompt.shape[1] :].tolist()


def with_fields(
    saved: Path, folder: Path, config: dict[str, Any], generation: dict[str, Any] | None
) -> Path:
    """The checkpoint with other fields in config.json, and another generation_config.json or none."""
    shutil.copytree(saved, folder)
    path = folder / "config.json"
    fields = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not ABSENT}))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


CASES = {  # tokens by their place in the text, so that they do occur
    "a token": ({"eos_token_id": 5}, None),
    "a list": ({"eos_token_id": [11, 4, 8]}, None),
    "none": ({"eos_token_id": None}, None),
    "not named": ({"eos_token_id": ABSENT}, None),
    "nothing is named": (dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), ABSENT), None),
    "an empty list": ({"eos_token_id": []}, None),
    "the generation's own": ({"eos_token_id": 2}, {"eos_token_id": 6}),
    "a list of the generation's": ({"eos_token_id": 2}, {"eos_token_id": [9, 7]}),
    "a list with one": ({"eos_token_id": 2}, {"eos_token_id": [7]}),
    "the generation's over a list": ({"eos_token_id": [2, 3]}, {"eos_token_id": 6, "pad_token_id": 5}),
    "null in the generation's": ({"eos_token_id": 2}, {"eos_token_id": None}),
    "none in the generation's": ({"eos_token_id": 2}, {"bos_token_id": 3}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_stops_where_transformers_stops(
    case: str, saved: Path, text: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def named(fields: dict[str, Any]) -> dict[str, Any]:
        def token(place: Any) -> Any:
            return [text[i] for i in place] if isinstance(place, list) else text[place]

        return {
            key: value if value is ABSENT or value is None else token(value)
            for key, value in fields.items()
        }

    config, generation = CASES[case]
    folder = with_fields(
        saved, tmp_path / "model", named(config), None if generation is None else named(generation)
    )
    expected = truth(folder)
    out = export(folder, tmp_path / "out")

    session = OrtSession(out, threads=1)
    (one,) = session.generate(PROMPT, max_new_tokens=STEPS)
    ended = one.finish_reason == "end_of_text"
    assert ended == (len(expected) < STEPS)
    assert one.tokens == (expected[:-1] if ended else expected)

    assert run_json(out, capsys)["tokens"] == one.tokens
    assert run_json(out, capsys, ignore_end=True)["tokens"] == text

    assert with_genai(out, list(PROMPT.encode())) == expected
    assert checkpoints.load(folder).eos_token_id == session.metadata.eos_token_id


def run_json(
    folder: Path, capsys: pytest.CaptureFixture[str], ignore_end: bool = False
) -> dict[str, Any]:
    run_command(
        folder,
        [PROMPT],
        sampling=Sampling(),
        max_new_tokens=STEPS,
        provider="cpu",
        threads=1,
        json_output=True,
        stream=False,
        ignore_end=ignore_end,
    )
    return json.loads(capsys.readouterr().out)["generations"][0]


def with_genai(folder: Path, prompt: list[int]) -> list[int]:
    """The continuation of ONNX Runtime GenAI's own generator."""
    og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + STEPS)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    made = []
    while not generator.is_done():
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    return made


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"eos_token_id": "3"}),
        ("config.json", {"eos_token_id": [1, None]}),
        ("config.json", {"eos_token_id": True}),
        ("config.json", {"pad_token_id": [1]}),
        ("generation_config.json", {"eos_token_id": 1.5}),
        ("generation_config.json", {"eos_token_id": {"a": 1}}),
        ("generation_config.json", {"bos_token_id": "x"}),
        ("generation_config.json", []),
    ],
)
def test_a_token_that_is_no_integer(file: str, content: Any, saved: Path, tmp_path: Path) -> None:
    config = content if file == "config.json" else {}
    generation = content if file == "generation_config.json" else None
    folder = with_fields(saved, tmp_path / "model", config, generation)
    with pytest.raises(CheckpointError, match=r"expected an (integer|object)") as error:
        checkpoints.load(folder)
    assert str(folder / file) in str(error.value)
    assert "\n" not in str(error.value)


def test_tokens_outside_the_vocabulary_end_nothing() -> None:
    assert Tokens(256, (-1, 3, 256, 1 << 70)).end_tokens == (3,)
    assert Tokens(256, 256).end_tokens == ()


def test_a_list_is_saved_and_loaded(saved: Path, tmp_path: Path) -> None:
    folder = with_fields(saved, tmp_path / "model", {"eos_token_id": [7, 8]}, None)
    checkpoint = checkpoints.load(folder)
    assert checkpoint.config.eos_token_id == (7, 8)
    checkpoints.save(checkpoint.model, tmp_path / "again")
    assert checkpoints.load(tmp_path / "again").config == checkpoint.config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert theirs.generation_config.eos_token_id == [7, 8]


def written_with(folder: Path, eos_token_id: Any) -> Path:
    """A folder with metadata alone."""
    ids = Value("input_ids", "int64", ("batch", "length"))
    logits = Value("logits", "fp32", ("batch", "length", 256))
    write_metadata(
        folder,
        Program(None, (ids,), (logits,), (), Tokens(256, eos_token_id)),
        dtype="fp32",
        opset=20,
        model=None,
        source={},
        versions={},
    )
    (folder / contract.MODEL_FILE).touch()
    return folder / contract.METADATA_FILE


@pytest.mark.parametrize(
    ("tokens", "written", "read"), [((3, 4), [3, 4], (3, 4)), (3, 3, (3,)), (None, None, ())]
)
def test_metadata_holds_one_token_or_a_list(
    tokens: Any, written: Any, read: tuple[int, ...], tmp_path: Path
) -> None:
    path = written_with(tmp_path, tokens)
    assert json.loads(path.read_text())["tokens"]["eos_token_id"] == written
    metadata = read_metadata(tmp_path)
    assert (metadata.eos_token_id, metadata.end_tokens) == (tokens, read)


@pytest.mark.parametrize("damaged", ["3", 1.5, True, [None], [[3]], {"a": 3}])
def test_damaged_tokens_in_the_metadata(damaged: Any, tmp_path: Path) -> None:
    written_with(tmp_path, damaged)
    with pytest.raises(SessionError, match=r"mamba_export\.json is damaged .*eos_token_id"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(
    ("eos", "pad", "expected"),
    [
        (5, None, (5, 5, 0)),
        ((5, 6), None, ([5, 6], 5, 0)),
        ((5, 6), 9, ([5, 6], 9, 0)),
        ((5, 300), 9, (5, 9, 0)),
        (5, 256, (5, 5, 0)),
        # Without a token that ends a text the generator still asks for one, and must never choose it.
        (None, 0, (255, 255, 1 << 20)),
        ((), None, (255, 255, 1 << 20)),
    ],
)
def test_what_genai_is_told(eos: Any, pad: int | None, expected: tuple[Any, int, int]) -> None:
    config = genai_config(Tokens(256, eos), d_model=8, n_layer=1, bos_token_id=7, pad_token_id=pad)
    model = config["model"]
    found = (model["eos_token_id"], model["pad_token_id"], config["search"]["min_length"])
    assert found == expected
    assert model["bos_token_id"] == 7


def test_state_spaces_end_of_text_is_that_of_their_tokenizer(tmp_path: Path) -> None:
    """Their configuration names no token; that of GPT-NeoX's tokenizer is 0."""
    from mamba_export.models.checkpoints.families import read_config

    for fields, expected in (
        ({}, 0),
        ({"vocab_size": 50277}, 0),
        ({"vocab_size": 100}, None),
        ({"eos_token_id": None}, None),
        ({"eos_token_id": [3, 4]}, (3, 4)),
    ):
        content = {"d_model": 8, "n_layer": 1, **fields}
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert read_config(tmp_path)[1].config.eos_token_id == expected
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert read_config(tmp_path)[1].config == MambaConfig(
        d_model=8, n_layer=1, vocab_size=50280, eos_token_id=9
    )
