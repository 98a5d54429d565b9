"""Train a small byte-level Mamba or Mamba-2 language model on one text file: ``--help`` explains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mamba_export.cli import exit_with
from mamba_export.errors import MambaExportError
from mamba_export.files import new_folder
from mamba_export.models import Mamba2Config, MambaConfig, ModelConfig
from training import (
    RECORD_FILE,
    Recipe,
    read_compared,
    read_text,
    split_lines,
    train,
    write_model,
)
from training.command_line import (
    OPTIMISATION,
    Parser,
    add_device,
    add_output,
    add_switch,
    choose_device,
    flag,
    number,
    reproducing_command,
)

DESCRIPTION = """\
Train a small byte-level Mamba or Mamba-2 language model on TEXT, any text file.

Tokens are bytes (as in MambaByte, arXiv:2401.13660), so there is no vocabulary to build.
The last 5 % of the lines are held out and never trained on; the final line printed is the
bits per byte of the saved weights on them, and the model card (README.md in the folder
written) sets that beside xz and gzip.

on a GPU, the default size (3.6 million parameters, 7.4 MB), in about five minutes:
  python tools/train_lm.py kjv.txt --out models/kjv --max-minutes 5
a Mamba-2 of about that size:
  python tools/train_lm.py kjv.txt --out models/kjv2 --mixer mamba2 --max-minutes 5
on a CPU, to see it work, in about a minute:
  python tools/train_lm.py kjv.txt --out out/toy --d-model 64 --n-layer 2 \\
      --batch 4 --length 256 --steps 300 --warmup 30
"""

EPILOG = """\
To choose settings, train with --validation 2: the 2 % of the lines before the held-out ones
are then kept out of the training too, and the weights that do best on them are the ones
kept. Compare settings by that figure, not by the held-out one. With the settings fixed,
train once more without it, on everything that is not held out: then nothing is selected,
and the held-out figure is met once.
"""


D_STATE = {"mamba": 16, "mamba2": 64}
"""States a channel by default: with them models of both kinds have about the same number of parameters."""


def build_parser() -> argparse.ArgumentParser:
    """The command line; every option that ``Recipe`` has is named like its field."""
    parser = Parser(
        prog="train_lm.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Recipe()
    count, share = number(int, 1), number(float, 0, 0.99999)

    def add(group: Any, name: str, kind: Callable[[str], Any], value: Any, text: str) -> None:
        shown = "" if value in (None, "") else f" (default: {value})"
        text = text.replace("%", "%%") + shown
        group.add_argument(name, type=kind, default=value, help=text, metavar="X")

    def switch(group: Any, name: str, value: bool, text: str) -> None:
        add_switch(group, name, value, text, default=value)

    parser.add_argument("text", type=Path, metavar="TEXT", help="the text file to train on")

    group = add_output(parser)
    add(group, "--name", str, None, "name of the model in its card (default: the folder's)")
    add(group, "--data-note", str, "", "a sentence about the text, for the card")
    add(group, "--prompt", str, None, "of the card's samples (default: the held-out text's start)")
    text = "folder of another model of the same text, for the card; several times for several"
    group.add_argument(
        "--compare", type=Path, action="append", default=[], metavar="FOLDER", help=text
    )

    group = parser.add_argument_group("model")
    group.add_argument(
        "--mixer", default="mamba", choices=tuple(D_STATE), help="of each layer (default: mamba)"
    )
    add(group, "--d-model", count, 256, "width")
    add(group, "--n-layer", count, 8, "blocks")
    states = ", ".join(f"{number} of {mixer}" for mixer, number in D_STATE.items())
    add(group, "--d-state", count, None, f"states a channel (default: {states})")
    add(group, "--expand", count, 2, "inner width over width")
    add(group, "--head-dim", count, 64, "channels a head, of mamba2")
    add(group, "--n-groups", count, 1, "groups of heads that share B and C, of mamba2")

    text = "exact zero-order hold for B in place of dt B, of mamba"
    group.add_argument("--exact-zoh", action="store_true", help=text)

    group = parser.add_argument_group("training")
    for name, (kind, text) in OPTIMISATION.items():
        add(group, flag(name), kind, getattr(default, name), text)
    add(group, "--epochs", number(float, 0), None, "passes over the text, instead of --steps")
    add(group, "--length", count, default.length, "bytes a sequence")
    add(group, "--ema", share, default.ema, "decay of the weights' moving average; 0: none")
    switch(group, "--carry", default.carry, "carry the state from a window to the next")
    add(group, "--reset", number(float, 0, 1), default.reset, "share of windows without it anyway")

    group = parser.add_argument_group("against overfitting")
    add(group, "--dropout", share, default.dropout, "share of each block's output dropped")
    switch(group, "--locked-dropout", default.locked_dropout, "the same channels a whole window")
    add(group, "--token-dropout", share, default.token_dropout, "share of input bytes hidden")
    percent = number(float, 0, 50)
    add(group, "--validation", percent, 0.0, "percent of the lines kept to choose the weights")
    add(group, "--evaluations", count, default.evaluations, "how often they are looked at")

    group = parser.add_argument_group("machine")
    add_device(group)
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        help="of the training's matrix products; auto: bf16 on a GPU, else fp32",
    )
    switch(group, "--compile", default.compile, "torch.compile the model")
    switch(group, "--cuda-graph", default.cuda_graph, "replay the step as one CUDA graph")
    return parser


@contextmanager
def progress_report(console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that shows log entries: a bar on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("training", total=1.0)

            def show(entry: dict[str, Any]) -> None:
                if _validated(entry) is not None:
                    console.print(_line(entry), highlight=False)
                loss = entry["train_bits_per_byte"]
                bar.update(
                    task,
                    completed=entry["progress"],
                    description=f"step {entry['step']}, {loss:.3f} bits per byte",
                )

            yield show
        return

    shown = -1.0

    def show_line(entry: dict[str, Any]) -> None:
        nonlocal shown
        if _validated(entry) is not None or entry["progress"] - shown >= 0.05:
            shown = entry["progress"]
            print(_line(entry), flush=True)

    yield show_line


def _validated(entry: dict[str, Any]) -> float | None:
    return min((entry[key] for key in entry if key.startswith("validation")), default=None)


def _line(entry: dict[str, Any]) -> str:
    done = max(entry["progress"], 1e-6)
    left = int(entry["seconds"] * max(0.0, 1 - done) / done)
    validated = _validated(entry)
    return (
        f"step {entry['step']:6d}  {done:4.0%}  training {entry['train_bits_per_byte']:.3f} "
        + ("" if validated is None else f" validation {validated:.4f} ")
        + f" bits per byte  {entry['bytes_per_second']:,} bytes/s  left {left // 60}:{left % 60:02d}"
    )


def make_config(options: argparse.Namespace) -> ModelConfig:
    """The model that the options ask for. MambaExportError for sizes that do not fit together."""
    shared = {
        "d_model": options.d_model,
        "n_layer": options.n_layer,
        "vocab_size": 256,
        "d_state": options.d_state or D_STATE[options.mixer],
        "expand": options.expand,
        "eos_token_id": 0,
    }
    if options.mixer == "mamba2":
        if options.exact_zoh:
            raise MambaExportError("--exact-zoh is of mamba: leave it out")
        return Mamba2Config(head_dim=options.head_dim, n_groups=options.n_groups, **shared)
    return MambaConfig(exact_zoh=options.exact_zoh, **shared)


def run(arguments: list[str]) -> None:
    """Train as ``arguments`` say.

    Raises:
        MambaExportError: something that the user can put right.
    """
    options = build_parser().parse_args(arguments)
    text = read_text(options.text)
    split = split_lines(text, options.validation / 100)
    device = choose_device(options.device)
    if options.cuda_graph and device.type != "cuda":
        raise MambaExportError("--cuda-graph needs a CUDA GPU")
    if options.epochs is not None:
        options.steps = round(options.epochs * len(split.train) / (options.batch * options.length))
        options.steps = max(1, options.steps)
    options.bf16 = options.dtype == "bf16" or (options.dtype == "auto" and device.type == "cuda")
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__})
    config = make_config(options)
    compared = [read_compared(folder, text) for folder in options.compare]
    with new_folder(
        options.out,
        marker=RECORD_FILE,
        force=options.force,
        sources=[options.text, *options.compare],
    ) as folder:
        log_path = folder / "training_log.jsonl"
        with log_path.open("w") as log, progress_report(Console()) as report:
            trained = train(config, recipe, split, device, report=report, log_file=log)
        record = write_model(
            folder,
            name=options.name or options.out.name,
            text_name=options.text.name,
            text=text,
            split=split,
            config=config,
            recipe=recipe,
            trained=trained,
            device=device,
            command=reproducing_command(
                "tools/train_lm.py", arguments, [options.text, options.out]
            ),
            data_note=options.data_note,
            prompt=options.prompt,
            compared=compared,
        )
    held_out, chosen = record["held_out"], trained.chosen
    print(
        f"{options.out}: {record['parameters']:,} parameters, {record['model_bytes']:,} bytes; "
        f"{trained.steps:,} steps in {trained.seconds:.0f} s; "
        f"kept the {chosen['weights']} weights of step {chosen['step']:,}"
    )
    if trained.validation_bits_per_byte is not None:
        print(f"validation bits per byte: {trained.validation_bits_per_byte:.4f}")
    for name in ("xz_9e", "gzip_9"):
        print(f"held-out, {name.replace('_', ' -')}: {held_out[name + '_bits_per_byte']:.4f}")
    print(f"held-out bits per byte: {held_out['bits_per_byte']:.4f}")


def main() -> NoReturn:
    """Run and end the process."""
    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
