#!/usr/bin/env python3
"""Train a small model on a task whose data is made as it is needed: ``--help`` explains."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from mamba_export.cli import exit_with
from mamba_export.errors import MambaExportError
from mamba_export.files import new_folder
from tasks.output import RECORD_FILE, write_trained
from tasks.recipe import TaskRecipe
from tasks.registry import TASKS
from tasks.task import Task
from tasks.trainer import parameter_count, seeded, train
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
Train a small model on TASK. The data is made as it is needed, on the device that trains.

on a GPU, the model that ships, in about a minute:
  python tools/train_task.py selective-copying --out models/selective-copying \\
      --max-minutes 1.3 --steps 1000000 --cuda-graph
on a CPU, to see it work, in about a minute:
  python tools/train_task.py selective-copying --out out/toy --length 48 --steps 300 --test 64
a training that may be stopped goes on from its checkpoint with the same command:
  python tools/train_task.py selective-copying --out out/s4 --model h3-s4 --checkpoint out/s4.pt
"""

OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    **OPTIMISATION,
    "temperature": (number(float, 1e-6), "the loss is of logits divided by it"),
}
SWITCHES = {
    "bf16": "autocast to bf16",
    "tf32": "let a GPU round the inputs of fp32 matrix products to TF32",
    "cuda_graph": "replay each step as one CUDA graph",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line; every option that ``TaskRecipe`` has is named like its field."""
    parser = Parser(
        prog="train_task.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = dataclasses.asdict(TaskRecipe())
    parser.add_argument("task", choices=tuple(TASKS), metavar="TASK", help=", ".join(TASKS))
    group = add_output(parser)
    text = "file that the training is kept in, and goes on from where it is there"
    group.add_argument("--checkpoint", type=Path, default=None, metavar="FILE", help=text)
    text = "trained model whose weights the training starts from (default: random weights)"
    group.add_argument("--start", type=Path, default=None, metavar="FOLDER", help=text)
    group = parser.add_argument_group("task")
    names = "; ".join(f"of {name}: {', '.join(task.models)}" for name, task in TASKS.items())
    text = f"model to train (default: the task's last). {names}"
    group.add_argument("--model", default=None, metavar="NAME", help=text)
    text = "tokens a sequence (default: the task's)"
    group.add_argument("--length", type=number(int, 1), default=None, metavar="X", help=text)
    text = "sequences of the test after the training (default: 1024)"
    group.add_argument("--test", type=number(int, 1), default=1024, metavar="X", help=text)
    group = parser.add_argument_group("training")
    for name, (kind, text) in OPTIONS.items():
        text = f"{text} (default: {default[name]}, or the task's)"
        group.add_argument(flag(name), type=kind, default=None, metavar="X", help=text)
    for name, text in SWITCHES.items():
        add_switch(group, flag(name), default[name], text, default=None)
    add_device(parser)
    return parser


def check(options: argparse.Namespace, task: Task) -> None:
    """Fill in what the task decides. MambaExportError for what does not fit it."""
    options.model = options.model or list(task.models)[-1]
    if options.model not in task.models:
        raise MambaExportError(f"--model {options.model}: {task.name} has {', '.join(task.models)}")
    options.length = options.length or task.length
    if not task.shortest <= options.length <= task.length:
        raise MambaExportError(
            f"--length {options.length}: {task.name} takes {task.shortest} to {task.length}"
        )


def start_from(model: nn.Module, task: Task, folder: Path) -> None:
    """Give a model the weights of a trained one. MambaExportError where it is another model."""
    if task.load is None:
        raise MambaExportError(f"--start: trainings of {task.name} start anew: leave it out")
    weights = task.load(folder).state_dict()
    shapes = {name: one.shape for name, one in weights.items()}
    if shapes != {name: one.shape for name, one in model.state_dict().items()}:
        raise MambaExportError(f"--start {folder}: it is another model than --model says")
    model.load_state_dict(weights)


def show(entry: dict[str, Any]) -> None:
    """Print a log entry."""
    print(
        f"step {entry['step']:6d}  {entry['progress']:4.0%}  loss {entry['loss']:.4f}  "
        f"{entry['step'] / max(entry['seconds'], 1e-9):.1f} steps/s",
        flush=True,
    )


def now_and_then(share: float) -> Callable[[dict[str, Any]], None]:
    """``show``, for entries that are this much further than the one that was shown before."""
    shown = -1.0

    def report(entry: dict[str, Any]) -> None:
        nonlocal shown
        if entry["progress"] - shown >= share or entry["progress"] >= 1:
            shown = entry["progress"]
            show(entry)

    return report


def run(arguments: list[str]) -> None:
    """Train as ``arguments`` say.

    Raises:
        MambaExportError: something that the user can put right.
    """
    options = build_parser().parse_args(arguments)
    task = TASKS[options.task]
    check(options, task)
    device = choose_device(options.device)
    given = {name: getattr(options, name) for name in (*OPTIONS, *SWITCHES)}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(task.recipe, **given)
    if recipe.cuda_graph and device.type != "cuda":
        raise MambaExportError("--cuda-graph needs a CUDA GPU")
    sources = [one for one in (options.checkpoint, options.start) if one is not None]
    with new_folder(
        options.out, marker=RECORD_FILE, force=options.force, sources=sources
    ) as folder:
        model = seeded(task.models[options.model], recipe.seed)
        if options.start is not None:
            start_from(model, task, options.start)
        print(f"{options.model}: {parameter_count(model):,} parameters, on {device}", flush=True)
        trained = train(
            model,
            task.batches(options.length),
            task.loss,
            recipe,
            device,
            report=now_and_then(0.05),
            checkpoint=options.checkpoint,
        )
        figures = task.evaluate(trained.model, device, options.test, options.length)
        write_trained(
            folder,
            task=task,
            model_name=options.model,
            length=options.length,
            recipe=recipe,
            trained=trained,
            figures=figures,
            test_sequences=options.test,
            device=device,
            command=reproducing_command("tools/train_task.py", arguments, [options.out, *sources]),
        )
    print(f"{options.out}: {trained.steps:,} steps in {trained.seconds:.0f} s")
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")


def main() -> NoReturn:
    """Run and end the process."""
    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
