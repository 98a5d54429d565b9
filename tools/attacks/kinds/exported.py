"""Damaged exported folders: the graph, its data, the metadata, the tokenizer, the engine's description."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attacks.attempt import Attempt, Outcome
from attacks.material import ENGINE, EXPORTED, Place
from attacks.mutations import damage_file, damage_json_file, set_json
from attacks.odd import Raw, short

RUN = ["run", "model", "--max-new-tokens", "3", "--prompt"]
PROMPTS = (
    "In the",
    "In the",
    "a" * 3000,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac",
    "\U0001f40d é\u0301",
    " ",
    "\n",
)


def use(place: Place, what: str, *, verify: float = 0.015, refuse: bool = False) -> Attempt:
    """Run, bundle, build or verify the folder ``model``, which is damaged."""
    rng = place.rng
    way = rng.random()
    if way < verify:
        source = str(place.copy("checkpoint", "source"))
        arguments = ["verify", "model", "--quick", "--model", source]
        if rng.random() < 0.5:
            arguments += ["--backend", rng.choice(("cpu", "native"))]
        return Attempt(what, arguments, refuse=refuse)
    if way < verify + 0.2:
        out = place.folder / "bundle"
        return Attempt(what, ["build", "model", "--bundle", "bundle"], writes=(out,), refuse=refuse)
    if way < verify + 0.21:
        return Attempt(what, ["build", "model"], writes=(place.folder / "model",), refuse=refuse)
    if way < verify + 0.32:
        return Attempt(what, call=lambda: _drive(place.folder / "model"), refuse=refuse)
    prompt = rng.choice(PROMPTS)
    arguments = [*RUN, prompt]
    if rng.random() < 0.2:
        arguments += ["--json"]
    if rng.random() < 0.2:
        arguments += ["--temperature", "0.8", "--top-k", "5", "--top-p", "0.9"]
    return Attempt(
        what, arguments, refuse=refuse, check=lambda outcome: _prompt_first(outcome, prompt)
    )


def _drive(folder: Path) -> object:
    from mamba_export import OrtSession

    session = OrtSession(folder)
    _, state = session.run([[1, 2, 3]])
    return session.run([[4]], state)


def _prompt_first(outcome: Outcome, prompt: str) -> Iterable[str]:
    if outcome.code == 0 and prompt not in outcome.stdout and '"prompt"' not in outcome.stdout:
        yield f"exit code 0, and no text: {outcome.stdout[:80]!r}"


def graph_bytes(place: Place) -> Attempt:
    """Bytes of model.onnx."""
    folder = place.copy(EXPORTED)
    return use(place, damage_file(place.rng, folder / "model.onnx"), verify=0.05)


def data_bytes(place: Place) -> Attempt:
    """Bytes of model.onnx.data."""
    folder = place.copy(EXPORTED)
    return use(place, damage_file(place.rng, folder / "model.onnx.data"), verify=0.04)


def changed_weight(place: Place) -> Attempt:
    """The exponent of one weight: no runtime can see it, and a verification must."""
    folder = place.copy(EXPORTED)
    path = folder / "model.onnx.data"
    data = bytearray(path.read_bytes())
    where = place.rng.randrange(len(data) // 4) * 4 + 3
    data[where] ^= 0x40
    path.write_bytes(data)
    source = str(place.copy("checkpoint", "source"))
    arguments = ["verify", "model", "--quick", "--model", source]
    return Attempt(f"the float at {where - 3} has another exponent", arguments, fails=True)


_WRONG_METADATA: tuple[tuple[str, Any], ...] = (
    ("format", -1),
    ("format", "2"),
    ("format", 10**400),
    ("contract_version", 10**9),
    ("dtype", "fp64"),
    ("dtype", None),
    ("inputs", []),
    ("inputs", {}),
    ("outputs", None),
    ("states", 7),
    ("tokens", {"vocab_size": 2**31, "eos_token_id": 0, "last_logits_only": False}),
    ("tokens", {"vocab_size": 10**400, "eos_token_id": 0, "last_logits_only": False}),
    ("tokens", {"vocab_size": 7, "eos_token_id": 0, "last_logits_only": False}),
    ("tokens", {"vocab_size": -1, "eos_token_id": 0, "last_logits_only": False}),
    ("tokens", {"vocab_size": Raw("Infinity"), "eos_token_id": 0, "last_logits_only": False}),
)
"""Values of fields that no folder of ours has."""


def metadata(place: Place) -> Attempt:
    """mamba_export.json."""
    rng, path = place.rng, place.copy(EXPORTED) / "mamba_export.json"
    way = rng.random()
    if way < 0.15:
        name, value = rng.choice(_WRONG_METADATA)
        set_json(path, **{name: value})
        return use(place, f"{path.name}: {name} is {short(value)}", refuse=True)
    return use(place, damage_json_file(rng, path) if way < 0.8 else damage_file(rng, path))


def tokenizer(place: Place) -> Attempt:
    """tokenizer.json, and the files beside it."""
    rng, folder = place.rng, place.copy(EXPORTED)
    name = rng.choice(
        ("tokenizer.json", "tokenizer.json", "tokenizer.json", "tokenizer_config.json")
    )
    way = rng.random()
    if way < 0.2:
        name = "tokenizer.json"
        field, value = rng.choice(_ODD_TOKENIZERS)
        set_json(folder / name, **{field: value})
        return use(place, f"{name}: {field} is {short(value)}", verify=0.008)
    path = folder / name
    return use(place, (damage_json_file if way < 0.8 else damage_file)(rng, path), verify=0.008)


_PADDING = {
    "strategy": {"Fixed": 10**9},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "x",
}
_DOUBLING = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
_ODD_TOKENIZERS: tuple[tuple[str, Any], ...] = (
    ("padding", _PADDING),
    ("padding", {**_PADDING, "strategy": {"Fixed": 2**63}}),
    ("padding", {**_PADDING, "strategy": "BatchLongest", "pad_to_multiple_of": 0}),
    (
        "truncation",
        {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 9},
    ),
    ("truncation", {"direction": "Left", "max_length": 0, "strategy": "LongestFirst", "stride": 0}),
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": "x"}),
    ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
    ("normalizer", {"type": "Prepend", "prepend": "y" * 10_000}),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    ),
    (
        "post_processor",
        {"type": "BertProcessing", "sep": ["[SEP]", 999999], "cls": ["[CLS]", 2**31]},
    ),
    (
        "post_processor",
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<missing>", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
    ),
    ("decoder", None),
    ("decoder", {"type": "Fuse"}),
    (
        "decoder",
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    ),
    ("added_tokens", [{"id": 2**32 - 1, "content": "\x1b[2J", "special": True}]),
    ("normalizer", {"type": "Sequence", "normalizers": [_DOUBLING] * 40}),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKD"}, *[_DOUBLING] * 25]}),
    (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    ),
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a|aa)+b"}, "content": "x"}),
    ("model", {"type": "WordLevel", "vocab": {}, "unk_token": "<missing>"}),
    (
        "model",
        {"type": "Unigram", "unk_id": 7, "vocab": [["a", float("0")]], "byte_fallback": True},
    ),
    ("model", {"type": "Unigram", "unk_id": None, "vocab": []}),
    (
        "model",
        {"type": "WordPiece", "unk_token": "[UNK]", "max_input_chars_per_word": 0, "vocab": {}},
    ),
)
"""Each is a tokenizer that a library reads, or stumbles on."""


def engine(place: Place) -> Attempt:
    """engine.json; without a GPU an engine is refused for that, and its description is read by a call."""
    rng, folder = place.rng, place.copy(ENGINE)
    path = folder / "engine.json"
    if not path.is_file():  # no TensorRT: nothing was built
        path.write_text("{}")
    what = (damage_json_file if rng.random() < 0.75 else damage_file)(rng, path)
    if rng.random() < 0.3:
        return Attempt(what, ["run", "model", "--prompt", "x", "--backend", "trt"])
    if rng.random() < 0.2:
        out = place.folder / "bundle"
        return Attempt(what, ["build", "model", "--bundle", "bundle"], writes=(out,))

    def read() -> object:
        from mamba_export.backends.tensorrt.description import read_description

        return read_description(folder)

    return Attempt(what, call=read)
