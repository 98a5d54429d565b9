"""What stands beside a trained model: the model card and the plot of its training, from one record."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def plot_available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_losses(log: list[dict[str, Any]], record: dict[str, Any], path: Path) -> None:
    """Write a PNG: bits per byte over steps, in training and (where there are any) on the validation text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, label in (
        ("train_bits_per_byte", "training (dropout on)"),
        ("validation_bits_per_byte", "validation"),
        ("validation_bits_per_byte_ema", "validation, averaged weights"),
    ):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
    held_out = record["held_out"]
    axes.axhline(held_out["bits_per_byte"], color="black", label="held out, final", linewidth=0.8)
    axes.axhline(
        held_out["xz_9e_bits_per_byte"], color="grey", linestyle="--", label="xz -9e", linewidth=0.8
    )
    # The first steps start at 8 bits a byte and would flatten everything that follows.
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.4 * held_out["xz_9e_bits_per_byte"]))
    axes.set(xlabel="step", ylabel="bits per byte", title=record["name"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def model_card(record: dict[str, Any]) -> str:
    """The model card (Markdown) of what ``training.json`` records."""
    config, recipe, held_out, text = (record[k] for k in ("config", "recipe", "held_out", "text"))
    split, samples = record["split"], record["samples"]
    mixer = _mixer(config)
    note = f" {record['data_note']}" if record["data_note"] else ""
    image = "\n![Bits per byte over the training steps](loss.png)\n" if record["plot"] else ""
    return f"""# {record["name"]}

A byte-level {_MIXERS[mixer]} language model (tokens are bytes, as in MambaByte, arXiv:2401.13660), trained from
scratch on one text with `tools/train_lm.py` of mamba_export. It continues text in the manner of that one text,
and that is all it does. The folder is in transformers' format (`config.json`, `model.safetensors`,
`tokenizer.json`).

## Figures

Bits per byte on the held-out text ({split["held_out_bytes"]:,} bytes); lower is better.

| | bits per byte |
|---|---|
| this model | **{held_out["bits_per_byte"]:.3f}** |
{_compared(record)}| `xz -9e` on the held-out text alone | {held_out["xz_9e_bits_per_byte"]:.3f} |
| `gzip -9` on the held-out text alone | {held_out["gzip_9_bits_per_byte"]:.3f} |

The model's figure is that of the weights in this folder (matrices rounded to bf16), computed in fp32 over the
whole held-out text as one stream: it starts with the end-of-text token and a zero state, and every byte is
predicted from all the bytes before it. The compressors know no other text, and the model was trained on
{split["train_bytes"]:,} bytes of the same work: the comparison says that it learned the text's language, not
that it is the better compressor (its own {record["model_bytes"] / 1e6:.1f} MB are not counted).

## Data

`{text["name"]}`, {text["bytes"]:,} bytes, {text["lines"]:,} lines, sha256
`{text["sha256"]}`.{note}

The last 5 % of the lines ({split["held_out_lines"]:,}) are held out: never trained on, never used to choose a
checkpoint. They begin with "{split["held_out_start"]}"; the first of them are in
`held_out_sample.txt`.
{_validation(record)}

## Model

| | |
|---|---|
| parameters | {record["parameters"]:,} |
| `model.safetensors` | {record["model_bytes"]:,} bytes (bf16; what acts on a channel alone fp32) |
| d_model, layers | {config["d_model"]}, {config["n_layer"]} |
| d_state, d_conv, expand | {config["d_state"]}, {config["d_conv"]}, {config["expand"]} |
{_heads(config)}| vocabulary | 256: token id = byte; 0 (NUL) is end-of-text |

## Training

```
{record["command"]}
```

{_training(record, recipe)}
{image}
## Samples

Computed from the weights in this folder in fp32, seed {recipe["seed"]}. Each begins with the prompt,
`{samples["prompt"]}`.

Greedy:

{_quote(samples["prompt"] + samples["greedy"])}

Temperature 0.8:

{_quote(samples["prompt"] + samples["temperature_0.8"])}

## Limits

It is no assistant: it knows one text, follows no instructions, and what it says is no fact. Text unlike its
training text (another language, another century, code) is out of its range. It may repeat passages of the
training text word for word. Sampled bytes need not be valid UTF-8.
"""


_MIXERS = {"mamba": "Mamba", "mamba2": "Mamba-2"}


def _mixer(config: dict[str, Any]) -> str:
    """Which block; records from before there were two do not say."""
    return str(config.get("mixer", "mamba"))


def _compared(record: dict[str, Any]) -> str:
    """Rows of the other models."""
    return "".join(
        f"| {one['name']} ({_MIXERS[one['mixer']]}, the same text; {one['parameters']:,} parameters, here "
        f"{record['parameters']:,}; trained in {one['seconds']:.0f} s, here {record['seconds']:.0f}) "
        f"| {one['bits_per_byte']:.3f} |\n"
        for one in record["compared"]
    )


def _heads(config: dict[str, Any]) -> str:
    """The row of what Mamba-2 alone has."""
    if _mixer(config) != "mamba2":
        return ""
    heads = config["expand"] * config["d_model"] // config["head_dim"]
    return f"| heads, head_dim, n_groups | {heads}, {config['head_dim']}, {config['n_groups']} |\n"


def _validation(record: dict[str, Any]) -> str:
    size, chosen = record["split"]["validation_bytes"], record["chosen"]
    weights = "moving average of the weights" if chosen["weights"] == "ema" else "set of weights"
    if size == 0:
        return (
            "Everything else was trained on. Nothing was selected: what was kept is the\n"
            f"{weights} after the last step, as fixed before the training."
        )
    return (
        f"The {size:,} bytes before them are the validation text, not trained on either: the\n"
        f"{weights} at step {chosen['step']:,} was chosen on it "
        f"({record['validation_bits_per_byte']:.3f} bits per byte there)."
    )


def _training(record: dict[str, Any], recipe: dict[str, Any]) -> str:
    passes = record["steps"] * recipe["batch"] * recipe["length"] / record["split"]["train_bytes"]
    locked = " (the same channels over a window)" if recipe["locked_dropout"] else ""
    settings = [
        f"{recipe['batch']} windows of {recipe['length']:,} bytes a step, "
        + ("state carried from window to window" if recipe["carry"] else "at random places")
        + f"; {passes:.1f} passes over the training text",
        f"AdamW, peak learning rate {recipe['lr']:g}, {recipe['warmup']} steps of warm-up, then a cosine; "
        f"gradient clipped at {recipe['clip']:g}; {'bf16 autocast' if recipe['bf16'] else 'fp32'}",
        f"against overfitting: {recipe['dropout']:g} of each block's output dropped{locked}, "
        f"{recipe['token_dropout']:g} of the input bytes hidden, weight decay "
        f"{recipe['weight_decay']:g} on the projections, moving average of the weights {recipe['ema']:g}",
        f"training loss at the end, dropout on: {record['train_bits_per_byte']:.3f} bits per byte",
    ]
    return (
        f"{record['date']}, {record['device']}, PyTorch {record['torch']}: "
        f"{record['steps']:,} steps in {record['seconds']:.0f} s.\n\n"
        + "".join(f"- {setting}\n" for setting in settings)
        + "\nAll settings are in `training.json`, the course of the training in `training_log.jsonl`."
    )


def _quote(text: str) -> str:
    """A fenced block that the text cannot close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.rstrip()}\n{fence}"
