"""The report's sections: what each task is, where it is published, and the commands that make its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.record import TASKS

PAPER = "arXiv:2312.00752"
"""Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces"."""

BANNER = """\
The quick version: short runs on this machine's CPU, to see that everything works. Its figures are not those
of the report, docs/report/index.html."""

SPEED = """\
Exported files of published sizes with random weights, in ONNX Runtime with our kernels, beside mamba_ssm at
its fastest in the same run: above 1 ours is quicker. Every time, and the limit of the hardware that it stands
beside, is in docs/performance.md."""

CPU, GPU = "a CPU", "an NVIDIA GPU"


def kind_of(device: str) -> str:
    """Which of ``CPU`` and ``GPU`` the device of a record is."""
    return GPU if device.startswith("NVIDIA") else CPU


@dataclass(frozen=True)
class Section:
    """A task as the report tells it.

    Args:
        task: one of ``TASKS``.
        title: of its section.
        source: where it is published.
        text: what it is, a paragraph each.
        commands: by ``CPU`` or ``GPU``, what makes the record of such a machine; none while nothing does.
        quick: arguments of Python for its short run on a CPU, which --record FOLDER is added to; empty where
            there is none.
    """

    task: str
    title: str
    source: str
    text: Sequence[str]
    commands: dict[str, str]
    quick: Sequence[str] = ()


SECTIONS = (
    Section(
        "copying",
        "Selective copying",
        f"Gu and Dao 2023 ({PAPER}), section 4.1.1 and table 1",
        (
            "Sixteen data tokens stand among noise at random places, and the model is to write them down in "
            "order at the end. A layer whose dynamics are the same at every step (linear, time-invariant: S4D, "
            "Hyena) cannot tell data from noise by content, and so cannot count the gaps; one whose step size, "
            "input and output depend on the token (S6) can pass over the noise.",
            "Each layer is trained alone (no gate), in the H3 block and in the Mamba block, as in the paper's "
            "table. The figures are those of the exported files.",
        ),
        {GPU: "python tools/run_copying.py --record tools/records"},
        ("tools/run_copying.py", "--quick"),
    ),
    Section(
        "induction",
        "Induction heads",
        f"Gu and Dao 2023 ({PAPER}), section 4.1.2 and table 2",
        (
            "A special token stands somewhere in the text, followed by another; when it comes again, the "
            "model is to say what followed it before. It is trained on texts of 256 tokens and tested on "
            "texts of up to 1,048,576, which the exported file reads in pieces with its state carried from "
            "one to the next: memory does not grow.",
            "Beside it an attention model of the same size, trained and exported in the same way, whose cache "
            "grows with every token.",
        ),
        {
            GPU: "python tools/run_induction.py --device cuda --record tools/records",
            CPU: "python tools/run_induction.py --device cpu --record tools/records",
        },
        ("tools/run_induction.py", "--quick", "--device", "cpu"),
    ),
    Section(
        "cost",
        "Cost against length",
        f"Gu and Dao 2023 ({PAPER}), section 4.5",
        (
            "What a token costs when it is read, what it costs when it is written, and how much memory is held "
            "meanwhile, from a thousand tokens to a million: exported Mamba and Mamba-2, mamba_ssm where it is "
            "installed, and a Transformer of the same size with a cache in the same runtime.",
        ),
        {
            GPU: "python tools/run_cost.py --device cuda --record tools/records",
            CPU: "python tools/run_cost.py --record tools/records",
        },
        ("tools/run_cost.py", "--quick"),
    ),
    Section(
        "sensors",
        "Streaming sensors",
        "no published figure: the signal is simulated by a seeded script of this repository",
        (
            "A Mamba of continuous inputs watches temperature, pressure and humidity of a simulated plant "
            "and forecasts the next sample; where the forecast is off, something is. One sample at a time "
            "goes into the exported file, with the state in and out, beside a time-invariant model of the "
            "same size.",
        ),
        {
            GPU: 'python tools/run_sensors.py --record tools/records --device "NVIDIA H100 80GB HBM3"',
            CPU: "python tools/run_sensors.py --record tools/records",
        },
        ("tools/run_sensors.py", "--quick"),
    ),
    Section(
        "dna",
        "DNA-like inputs",
        f"Gu and Dao 2023 ({PAPER}), section 4.3, for real genomes; a worked example here",
        (
            "One-hot bases go in, and for each base comes out how likely it lies in a CpG island. The "
            "sequences are synthetic: drawn from a hidden Markov model whose forward algorithm is the best "
            "that a reader of the bases so far can do, and stands beside the model.",
        ),
        {CPU: "python tools/run_labellers.py dna --record tools/records"},
        ("tools/run_labellers.py", "dna", "--quick"),
    ),
    Section(
        "audio",
        "Audio-like inputs",
        f"Gu and Dao 2023 ({PAPER}), section 4.4, for real recordings; a worked example here",
        (
            "Raw samples go in, with no spectrum in between, and for each 8 ms comes out which key of a "
            "telephone sounds. The sound is synthetic: pairs of tones in noise. Beside the model stands the "
            "classical detector, a bank of Goertzel filters.",
        ),
        {CPU: "python tools/run_labellers.py audio --record tools/records"},
        ("tools/run_labellers.py", "audio", "--quick"),
    ),
    Section(
        "zoh",
        "Exact zero-order hold",
        f"Gu and Dao 2023 ({PAPER}), equation 4, beside what mamba_ssm computes",
        (
            "Textbooks and the paper discretise B as (dt A)^-1 (exp(dt A) - 1) dt B; mamba_ssm, and so every "
            "published checkpoint, uses dt B, the first term of its series. Which of the two a model was "
            "trained with is an attribute of the scan in the exported file: the figure shows how the two "
            "part as the step size grows.",
        ),
        {CPU: "python tools/run_zoh.py --record tools/records"},
        quick=("tools/run_zoh.py", "--quick"),
    ),
)  # fmt: skip

assert tuple(one.task for one in SECTIONS) == TASKS
