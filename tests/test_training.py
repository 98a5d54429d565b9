"""The training recipe at toy scale on a CPU: text split, learning, what is written, refusals."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mamba_export.errors import MambaExportError
from mamba_export.models import Mamba2Config, MambaConfig, MambaLM, ModelConfig, checkpoints
from training import Recipe, bits_per_byte, generate, read_text, split_lines, train
from training.data import Windows
from training.loop import Average, dropout
from training.output import default_prompt, held_out_sample
from training.stepper import parameter_groups

CPU = torch.device("cpu")
TINY = MambaConfig(d_model=24, n_layer=1, vocab_size=256, d_state=4, eos_token_id=0)
TINY2 = Mamba2Config(d_model=24, n_layer=1, vocab_size=256, d_state=8, head_dim=16, eos_token_id=0)
SHORT = Recipe(steps=12, batch=4, length=32, warmup=3, lr=1e-2)


def grammar(lines: int) -> bytes:
    """Numbered sentences of a made-up grammar: no two lines are the same."""
    choose = random.Random(0)
    nouns = ("river", "stone", "raven", "lamp", "miller", "winter")
    verbs = ("sees", "holds", "finds", "leaves")
    return b"".join(
        f"{i:04d} the {choose.choice(nouns)} {choose.choice(verbs)} a {choose.choice(nouns)}.\n".encode()
        for i in range(lines)
    )


def unigram_bits(text: bytes) -> float:
    counts = Counter(text)
    return -sum(n * math.log2(n / len(text)) for n in counts.values()) / len(text)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "train_lm.py"
    spec = importlib.util.spec_from_file_location("train_lm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "grammar.txt"
    path.write_bytes(grammar(3000))
    return path


TOY = [
    *("--d-model", "32", "--n-layer", "1", "--d-state", "4", "--batch", "16", "--length", "64"),
    *("--steps", "100", "--warmup", "10", "--lr", "1e-2", "--dropout", "0.05", "--ema", "0.9"),
    *("--device", "cpu"),
]


@pytest.fixture(scope="module")
def trained(tool: ModuleType, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one toy training leaves."""
    out = tmp_path_factory.mktemp("models") / "toy"
    tool.run([str(text_file), "--out", str(out), "--data-note", "It is made up.", *TOY])
    return out


# ---- split -------------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", [0.0, 0.02, 0.3])
def test_split_keeps_order_and_holds_out_the_last_twentieth(validation: float) -> None:
    text = grammar(1000)
    split = split_lines(text, validation)
    assert b"".join(split) == text
    assert len(split.held_out.splitlines()) == 50
    assert len(split.validation.splitlines()) == round(1000 * validation)
    lines = [set(part.splitlines()) for part in split]
    assert len(set.union(*lines)) == sum(map(len, lines))  # no line is in two parts


def test_split_of_a_text_without_final_newline_loses_nothing() -> None:
    text = grammar(40).rstrip(b"\n")
    assert b"".join(split_lines(text)) == text


@pytest.mark.parametrize("carry", [True, False])
def test_windows_hold_training_text_alone(carry: bool) -> None:
    split = split_lines(grammar(200), 0.02)
    circle = b"\0" + split.train
    windows = Windows(split.train, 3, 50, carry=carry, seed=0, device=CPU)
    for _ in range(40):
        ids, _ = windows.next()
        assert ids.shape == (3, 51)
        for row in ids:
            assert bytes(row.tolist()) in circle + circle


def test_carried_windows_follow_each_other_and_a_pass_reads_everything() -> None:
    train_text = grammar(100)
    windows = Windows(train_text, 4, 16, carry=True, seed=0, device=CPU)
    read: Counter[int] = Counter()
    previous = None
    for step in range(windows.steps_per_pass):
        ids, new_pass = windows.next()
        assert new_pass == (step == 0)
        if previous is not None:
            assert torch.equal(previous[:, -1], ids[:, 0])
        previous = ids
        read.update(ids[:, 1:].flatten().tolist())
    assert windows.next()[1]
    missed = Counter(train_text) - read
    assert missed.total() < 4 * 16  # what no longer fills a window for every reader


# ---- pieces ------------------------------------------------------------------------------------


def test_bits_per_byte_does_not_depend_on_the_chunk() -> None:
    torch.manual_seed(0)
    model, text = MambaLM(TINY), grammar(4)
    whole = bits_per_byte(model, text)
    assert bits_per_byte(model, text, chunk=7) == pytest.approx(whole, rel=1e-6)
    assert whole == pytest.approx(8, abs=0.2)  # untrained: any of 256 bytes


def test_generation_is_the_seeds() -> None:
    torch.manual_seed(0)
    model = MambaLM(TINY)
    sampled = [generate(model, b"the ", 12, temperature=0.8, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert generate(model, b"the ", 12) == generate(model, b"the ", 12, seed=5)


def test_weight_decay_touches_projections_alone() -> None:
    model = MambaLM(TINY)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1, within=model.backbone)
    decayed, rest = ({names[id(p)] for p in group["params"]} for group in groups)
    mixer = "backbone.layers.0.mixer."
    assert decayed == {mixer + f"{p}.weight" for p in ("in_proj", "x_proj", "dt_proj", "out_proj")}
    assert decayed | rest == set(names.values())


@pytest.mark.parametrize("locked", [True, False])
def test_dropout_acts_in_training_alone_and_goes_away(locked: bool) -> None:
    torch.manual_seed(0)
    model, ids = MambaLM(TINY), torch.arange(20)[None]
    plain = model(ids)[0]
    recipe = replace(SHORT, dropout=0.5, locked_dropout=locked, token_dropout=0.3)
    with dropout(model, recipe):
        assert not torch.equal(model.train()(ids)[0], plain)
        assert torch.equal(model.eval()(ids)[0], plain)
    assert torch.equal(model.train()(ids)[0], plain)


def test_average_follows_the_weights() -> None:
    model = MambaLM(TINY)
    average = Average(model, 0.9)
    with torch.no_grad():
        model.embeddings.weight.fill_(1.0)
    for step in range(300):
        average.update(step)
    torch.testing.assert_close(average.model.embeddings.weight, model.embeddings.weight)


def test_held_out_sample_ends_at_a_line_end() -> None:
    text = grammar(100)
    sample = held_out_sample(text, 500)
    assert text.startswith(sample)
    assert sample.endswith(b"\n")
    assert 400 < len(sample) <= 500
    assert held_out_sample(b"one long line", 4) == b"one long line"
    assert (
        default_prompt(b"In the beginning God created the heaven\n")
        == b"In the beginning God created "
    )


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"carry": False, "token_dropout": 0.1, "locked_dropout": True},
        {"bf16": True, "ema": 0.0},
    ],
    ids=["default", "random windows", "bf16"],
)
def test_same_seed_same_weights(changes: dict) -> None:
    recipe, split = replace(SHORT, **changes), split_lines(grammar(200))
    first, again, other = (
        train(TINY, replace(recipe, seed=seed), split, CPU).model.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_validation_chooses_the_best_weights_seen() -> None:
    split = split_lines(grammar(400), 0.05)
    result = train(TINY, replace(SHORT, steps=30, evaluations=5), split, CPU)
    seen = [
        entry[key]
        for entry in result.log
        for key in ("validation_bits_per_byte", "validation_bits_per_byte_ema")
        if key in entry
    ]
    assert len(seen) >= 10
    assert result.validation_bits_per_byte == pytest.approx(min(seen), abs=1e-4)
    value = bits_per_byte(result.model, split.validation)
    assert value == pytest.approx(result.validation_bits_per_byte, rel=1e-6)


def test_time_limit_ends_the_training_and_its_schedule() -> None:
    recipe = replace(SHORT, steps=10**6, max_minutes=0.01)
    result = train(TINY, recipe, split_lines(grammar(200)), CPU)
    assert 0 < result.steps < 10**6
    assert result.seconds < 20


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    with pytest.raises(MambaExportError, match=r"loss is (nan|inf) at step .*--lr"):
        train(TINY, replace(SHORT, lr=1e30, clip=1e30), split_lines(grammar(200)), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("config", [TINY, TINY2], ids=["mamba", "mamba2"])
def test_cuda_graph_trains_like_eager_steps(config: ModelConfig) -> None:
    recipe = replace(SHORT, steps=20, bf16=True, dropout=0.0)
    split, device = split_lines(grammar(200)), torch.device("cuda")
    eager, graph = (
        train(config, replace(recipe, cuda_graph=on), split, device) for on in (False, True)
    )
    weights = graph.model.state_dict()
    for name, weight in eager.model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-3)
    assert graph.log[-1]["train_bits_per_byte"] == pytest.approx(
        eager.log[-1]["train_bits_per_byte"], rel=1e-3
    )


# ---- the tool ----------------------------------------------------------------------------------


def test_tool_learns_and_writes_everything(trained: Path, text_file: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json",
        "training_log.jsonl", "README.md", "held_out_sample.txt",
    }  # fmt: skip
    assert ("loss.png" in names) == (importlib.util.find_spec("matplotlib") is not None)
    assert [path.name for path in trained.parent.iterdir()] == [trained.name]  # nothing left beside

    split = split_lines(text_file.read_bytes())
    record = json.loads((trained / "training.json").read_text())
    assert record["held_out"]["bits_per_byte"] < unigram_bits(split.held_out) - 1.5
    assert record["split"]["held_out_bytes"] == len(split.held_out)
    assert split.held_out.startswith((trained / "held_out_sample.txt").read_bytes())
    assert record["chosen"] == {"weights": "ema", "step": 100}
    log = [json.loads(line) for line in (trained / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 100
    assert log[-1]["train_bits_per_byte"] < log[0]["train_bits_per_byte"] - 3


def test_recorded_figure_is_the_saved_models(trained: Path, text_file: Path) -> None:
    record = json.loads((trained / "training.json").read_text())
    checkpoint = checkpoints.load(trained)
    assert checkpoint.eos_token_id == 0
    value = bits_per_byte(checkpoint.model, split_lines(text_file.read_bytes()).held_out)
    assert value == pytest.approx(record["held_out"]["bits_per_byte"], rel=1e-6)


def test_card_says_what_was_done(trained: Path, text_file: Path) -> None:
    record = json.loads((trained / "training.json").read_text())
    card = (trained / "README.md").read_text()
    assert f"**{record['held_out']['bits_per_byte']:.3f}**" in card
    assert f"{record['held_out']['xz_9e_bits_per_byte']:.3f}" in card
    assert "It is made up." in card
    assert record["text"]["sha256"] in card
    assert record["command"] in card
    assert record["command"].startswith("python tools/train_lm.py grammar.txt --out toy ")
    assert str(text_file.parent) not in card


def test_mamba2_of_the_same_size_beside_another_model(
    tool: ModuleType, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "toy2"
    sizes = ["--mixer", "mamba2", "--d-state", "8", "--head-dim", "16", "--n-groups", "2"]
    tool.run([str(text_file), "--out", str(out), *TOY, *sizes, "--compare", str(trained)])
    record = json.loads((out / "training.json").read_text())
    other = json.loads((trained / "training.json").read_text())
    assert (record["config"]["mixer"], other["config"]["mixer"]) == ("mamba2", "mamba")
    split = split_lines(text_file.read_bytes())
    assert record["held_out"]["bits_per_byte"] < unigram_bits(split.held_out) - 1.5
    loaded = checkpoints.load(out)
    assert loaded.architecture == "mamba2"
    figure = bits_per_byte(loaded.model, split.held_out)
    assert figure == pytest.approx(record["held_out"]["bits_per_byte"], rel=1e-6)
    card = (out / "README.md").read_text()
    assert "A byte-level Mamba-2 language model" in card
    assert "| heads, head_dim, n_groups | 4, 16, 2 |" in card
    assert f"| toy (Mamba, the same text; {other['parameters']:,} parameters, here" in card
    assert f"| {other['held_out']['bits_per_byte']:.3f} |" in card


def test_the_default_sizes_of_both_kinds_have_as_many_parameters(tool: ModuleType) -> None:
    parameters = []
    for mixer in tool.D_STATE:
        options = tool.build_parser().parse_args(["text", "--out", "out", "--mixer", mixer])
        with torch.device("meta"):
            model = MambaLM(tool.make_config(options))
        parameters.append(sum(parameter.numel() for parameter in model.parameters()))
    assert parameters == [3_569_920, 3_521_984]


def test_tool_refuses_with_one_line(
    tool: ModuleType, trained: Path, text_file: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    empty, zeros, short = (tmp_path / name for name in ("empty.txt", "zeros.txt", "short.txt"))
    empty.write_bytes(b"")
    zeros.write_bytes(b"a\0b\n" * 100)
    short.write_bytes(b"a line\n" * 5)
    other = tmp_path / "other.txt"
    other.write_bytes(grammar(100))
    out = str(tmp_path / "out")
    cases = [
        ([str(tmp_path / "none.txt"), "--out", out], "none.txt: cannot be read"),
        ([str(tmp_path), "--out", out], "cannot be read"),
        ([str(empty), "--out", out], "is empty"),
        ([str(zeros), "--out", out], "byte 0 at offset 1"),
        ([str(short), "--out", out], "has 5 lines"),
        ([str(text_file), "--out", out, "--length", "200000"], "fewer than one window"),
        ([str(text_file), "--out", str(trained)], "exists"),
        ([str(text_file), "--out", str(empty), "--force"], "is not a folder"),
        ([str(text_file), "--out", out, "--device", "quantum"], "--device quantum"),
        ([str(text_file), "--out", out, "--dropout", "1.5"], "--dropout"),
        ([str(text_file), "--out", out, "--steps", "many"], "--steps"),
        ([str(text_file), "--out", out, "--cuda-graph", "--device", "cpu"], "--cuda-graph"),
        ([str(text_file)], "--out"),
        ([str(text_file), "--out", out, "--mixer", "mamba3"], "--mixer"),
        ([str(text_file), "--out", out, "--mixer", "mamba2", "--head-dim", "7"], "head_dim 7"),
        ([str(text_file), "--out", out, "--compare", str(tmp_path)], "training.json"),
        ([str(other), "--out", out, "--compare", str(trained)], "on another text"),
    ]
    for arguments, message in cases:
        monkeypatch.setattr("sys.argv", ["train_lm.py", *arguments])
        with pytest.raises(SystemExit) as exit_:
            tool.main()
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not Path(out).exists()
    assert (trained / "model.safetensors").exists()


def test_force_replaces_and_a_failure_keeps_what_was_there(
    tool: ModuleType, text_file: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    (out / "training.json").write_text("{}")
    arguments = [
        str(text_file),
        "--out",
        str(out),
        "--force",
        *TOY,
        "--steps",
        "2",
        "--length",
        "8",
    ]

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, "write_model", fail)
        with pytest.raises(KeyboardInterrupt):
            tool.run(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "mine.txt").exists()
    tool.run(arguments)
    assert not (out / "mine.txt").exists()
    assert (out / "model.safetensors").exists()


def test_text_is_read_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9\r\n")
    assert read_text(path) == b"caf\xe9\r\n"
