"""Made-up records of tasks, for the report's tests: the shapes that real ones have, and odd ones."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from report.record import TASKS, Axis, Claim, Number, Plot, Record, Series, Table, write_record

GPU = "NVIDIA H100 80GB HBM3"
MIXERS = ("S4D, no gate", "S6, no gate", "H3 with S4D", "H3 with Hyena", "H3 with S6",
          "Mamba with S4D", "Mamba with Hyena", "Mamba with S6")  # fmt: skip
PUBLISHED = (18.3, 97.0, 57.0, 30.1, 99.7, 56.4, 28.4, 99.8)


def empty(task: str, device: str = GPU) -> Record:
    return Record(
        task=task,
        title=task.capitalize(),
        date="2026-01-02",
        device=device,
        commit="0123456789abcdef0123456789abcdef01234567",
        command=f"python tools/{task}.py --record tools/records --device cuda --seed 1; python tools/{task}.py",
        versions={"python": "3.12.3", "torch": "2.11.0", "onnxruntime-gpu": "1.31.1"},
        driver="580.1" if device == GPU else "",
        notes=["A note on <how> it was made & what it does not show."],
    )


def powers(first: int, last: int) -> list[int]:
    return [2**exponent for exponent in range(first, last + 1)]


def line(name: str, x: Sequence[Number], scale: float, power: float, style: str = "line") -> Series:
    return Series(name, x, [scale * at**power for at in x], style)


def copying() -> Record:
    ours = [random.Random(name).uniform(10, 100) for name in MIXERS]
    places = list(range(len(MIXERS)))
    return replace(
        empty("copying"),
        plots=[
            Plot(
                "Accuracy of each mixer",
                Axis("accuracy, %"),
                Axis("mixer", names=MIXERS),
                [Series("published", PUBLISHED, places, "points"), Series("ours", ours, places, "points")],
                "Length 4096, two layers, width 64.",
            ),
            Plot(
                "Loss in training",
                Axis("step"),
                Axis("loss, nats", "log"),
                [line(name, list(range(1, 30_000, 40)), 3 + i, -0.2 - i / 20) for i, name in enumerate(MIXERS)],
            ),
        ],
        claims=[
            Claim(f"{name}: accuracy, %", published, f"{our:.1f} %", our > 97, "arXiv:2312.00752, table 1",
                  headline="S6" in name)
            for name, published, our in zip(MIXERS, PUBLISHED, ours, strict=True)
        ],
        tables=[
            Table(
                "Accuracy by backend",
                ["mixer", "parameters", "PyTorch", "ONNX Runtime, CPU", "ONNX Runtime, CUDA", "TensorRT-RTX"],
                [[name, 131_072, our, our, our, None] for name, our in zip(MIXERS, ours, strict=True)],
                "The same to the digit.",
            )
        ],
    )  # fmt: skip


def induction() -> Record:
    x = powers(6, 20)
    attention = [100.0 if at <= 512 else 6.25 if at < 2**17 else None for at in x]
    return replace(
        empty("induction"),
        plots=[
            Plot(
                "Accuracy against length",
                Axis("tokens of the test's text", "log2"),
                Axis("accuracy, %"),
                [
                    Series("Mamba", x, [100.0] * len(x)),
                    Series("attention, rotary", x, attention),
                    Series("chance", [x[0], x[-1]], [6.25, 6.25], "dashed"),
                ],
            )
        ],
        claims=[
            Claim("Mamba: accuracy at 1,048,576 tokens, %", 100, 100.0, True, "arXiv:2312.00752, table 2"),
            Claim("Attention: accuracy beyond twice the training's length stays", "no", "no", False),
        ],
    )  # fmt: skip


def cost(device: str = GPU) -> Record:
    x = powers(10, 20)
    return replace(
        empty("cost", device),
        plots=[
            Plot(
                "Time of a written token",
                Axis("tokens before it", "log2"),
                Axis("milliseconds", "log"),
                [
                    line("Mamba", x, 0.4, 0),
                    line("Mamba-2", x, 0.5, 0),
                    line("mamba_ssm", x, 0.6, 0),
                    line("Transformer, cache", x, 0.0005, 0.9),
                ],
            ),
            Plot(
                "Memory",
                Axis("tokens", "log2"),
                Axis("MiB", "log"),
                [line("Mamba", x, 4, 0), line("Transformer, cache", x, 0.02, 1)],
            ),
            Plot(
                "Tokens a second",
                Axis("sequences", "log2"),
                Axis("tokens a second"),
                [line("Mamba", powers(0, 7), 2300, 0.9), line("Transformer, cache", powers(0, 7), 1900, 0.5)],
            ),
        ],
        claims=[
            Claim("Scan against a standard one in PyTorch, times as fast", "20 to 40", "31", True,
                  "arXiv:2312.00752, section 4.5"),
            Claim("Writing tokens against the Transformer, times as fast", "4 to 5", 2.71, False,
                  "arXiv:2312.00752, section 4.5"),
        ],
    )  # fmt: skip


def sensors() -> Record:
    at = list(range(4000))
    noise = random.Random(1)
    signal = [math.sin(one / 300) + noise.gauss(0, 0.05) for one in at]
    return replace(
        empty("sensors", "AMD EPYC, 2 cores"),
        plots=[
            Plot(
                "Temperature, and what was forecast",
                Axis("sample"),
                Axis("normalised temperature"),
                [
                    Series("signal", at, signal),
                    Series("forecast", at, [math.sin(one / 300) for one in at]),
                    Series("faults found", [900, 2500], [0.2, -0.6], "points"),
                ],
            ),
            Plot("Tiny numbers", Axis("step size", "log"), Axis("difference", "log"),
                 [line("difference", [10.0**e for e in range(-6, 2)], 0.5, 1.0)]),
            Plot("One point", Axis("x"), Axis("y"), [Series("alone", [3], [0])]),
            Plot("Nothing", Axis("x"), Axis("y"), [Series("ran out of memory", [3], [None])]),
        ],
        claims=[Claim("A fault is found within 5 samples", None, "0.97 of them", True)],
    )  # fmt: skip


def write_samples(folder: Path, without: Sequence[str] = ("audio", "zoh")) -> None:
    """A record of every task, but for some that have none."""
    made = {"copying": copying, "induction": induction, "cost": cost, "sensors": sensors}
    for task in TASKS:
        if task not in without:
            write_record(folder, made[task]() if task in made else empty(task))
    write_record(folder, cost("AMD EPYC, 2 cores"))
