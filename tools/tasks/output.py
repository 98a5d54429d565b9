"""What a training leaves in its folder: weights, the record with recipe and curve, the card, the plot."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mamba_export.files import write_text
from tasks.recipe import TaskRecipe
from tasks.task import Task
from tasks.trainer import TrainedTask, parameter_count
from training.card import plot_available

RECORD_FILE = "training.json"


def write_trained(
    folder: Path,
    *,
    task: Task,
    model_name: str,
    length: int,
    recipe: TaskRecipe,
    trained: TrainedTask,
    figures: Mapping[str, float],
    test_sequences: int,
    device: torch.device,
    command: str,
) -> dict[str, Any]:
    """Write the model, training.json, the card and (where matplotlib is) the plot of the loss.

    Args:
        folder: an existing, empty folder.
        figures: what ``task.evaluate`` found, on ``test_sequences`` sequences.

    Returns:
        What training.json holds.
    """
    task.save(trained.model, folder)
    record: dict[str, Any] = {
        "task": task.name,
        "model": model_name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": command,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "length": length,
        "parameters": parameter_count(trained.model),
        "model_bytes": sum(one.stat().st_size for one in folder.glob("*.safetensors")),
        "recipe": dataclasses.asdict(recipe),
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "figures": dict(figures),
        "test_sequences": test_sequences,
        "plot": plot_available(),
        "log": trained.log,
    }
    write_text(folder / RECORD_FILE, json.dumps(record, indent=1) + "\n")
    if record["plot"]:
        plot_loss(record, folder / "loss.png")
    write_text(folder / "README.md", card(task, record))
    return record


def plot_loss(record: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: the loss over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot([one["step"] for one in record["log"]], [one["loss"] for one in record["log"]])
    axes.set(xlabel="step", ylabel="loss", title=f"{record['task']}, {record['model']}")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def card(task: Task, record: Mapping[str, Any]) -> str:
    """The model card (Markdown) of what training.json holds."""
    rows = "".join(f"| {name} | **{value:.4g}** |\n" for name, value in record["figures"].items())
    recipe = "".join(f"| {name} | {value} |\n" for name, value in record["recipe"].items())
    image = "\n![Loss over the training steps](loss.png)\n" if record["plot"] else ""
    return f"""# {task.title}: {record["model"]}

A model of {record["parameters"]:,} parameters ({record["model_bytes"]:,} bytes) that does one task, made with
`tools/train_task.py` of mamba_export.

## The task

{task.about}
## Figures

On {record["test_sequences"]:,} sequences of {record["length"]:,} tokens from a seed of their own, in fp32:

| figure | value |
|---|---|
{rows}
## Training

{record["steps"]:,} steps in {record["seconds"]:.0f} s on {record["device"]} (PyTorch {record["torch"]},
{record["date"]}):

```
{record["command"]}
```
{image}
| option | value |
|---|---|
{recipe}"""
