"""Audio-like input: which key of a telephone sounds, from raw samples, with no spectrum in between.

The sound is synthetic: pairs of tones as ITU-T Q.23 has them, of random level, phase and length, in white
noise. Beside the model stands the classical detector, a bank of Goertzel filters (Goertzel 1958).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn

from tasks.dna_islands import loss
from tasks.labeller import Labeller, save_labeller
from tasks.recipe import TaskRecipe
from tasks.task import MakeBatch, Task
from tasks.windows import windows

RATE = 8000
"""Samples a second."""
FRAME = 64
"""Samples of a step: 8 ms."""
LOW, HIGH = (697.0, 770.0, 852.0, 941.0), (1209.0, 1336.0, 1477.0, 1633.0)
"""Hz (ITU-T Q.23): a key is one of each."""
KEYS = "123A456B789C*0#D"
CLASSES = 1 + len(KEYS)
"""Label 0: no key sounds."""
SHORTEST, LONGEST = 5, 20
"""Frames that a key or a pause lasts: 40 to 160 ms."""
LEVELS, NOISE = (0.2, 1.0), (0.02, 0.5)
"""Amplitude of a tone, and standard deviation of the noise: uniform in these, a sequence each its own noise."""

SEQUENCES, TRAINING_FRAMES = 1024, 256
TRAINING_SEED, TEST_SEED = 1, 2
LENGTH = 128

ABOUT = f"""\
Raw samples at {RATE} Hz are read in frames of {FRAME}, and for each frame the model says which of a telephone's
16 keys sounds (two tones, ITU-T Q.23), or none. No spectrum is computed. The sound is **synthetic**: random
keys of 40 to 160 ms, levels and phases, in white noise.
"""


def simulate(count: int, frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples (count, frames, FRAME) fp32, and the label of each frame (count, frames)."""
    draw = np.random.default_rng(seed)
    time = np.arange(frames * FRAME) / RATE
    sound = draw.standard_normal((count, frames * FRAME)) * draw.uniform(*NOISE, (count, 1))
    labels = np.zeros((count, frames), np.int64)
    for row in range(count):
        frame = int(draw.integers(0, LONGEST))
        while frame < frames:
            lasts = int(draw.integers(SHORTEST, LONGEST + 1))
            key = int(draw.integers(len(KEYS)))
            at = slice(frame * FRAME, (frame + lasts) * FRAME)
            for tone in (LOW[key // 4], HIGH[key % 4]):
                phase = draw.uniform(0, 2 * np.pi)
                sound[row, at] += draw.uniform(*LEVELS) * np.sin(
                    2 * np.pi * tone * time[at] + phase
                )
            labels[row, frame : frame + lasts] = 1 + key
            frame += lasts + int(draw.integers(SHORTEST, LONGEST + 1))
    return sound.reshape(count, frames, FRAME).astype(np.float32), labels


def tone_shares(samples: np.ndarray, frames: int) -> np.ndarray:
    """Of the last ``frames`` frames' energy the share that each tone has, (count, length, 8).

    A Goertzel filter's output is one term of a Fourier sum over the window, computed here as that sum.
    """
    count, length, _ = samples.shape
    padded = np.concatenate([np.zeros((count, frames - 1, FRAME)), samples], axis=1)
    window = np.concatenate([padded[:, i : i + length] for i in range(frames)], axis=-1)
    turns = np.outer(np.arange(frames * FRAME), np.array(LOW + HIGH)) / RATE
    power = np.abs(window @ np.exp(-2j * np.pi * turns)) ** 2
    return 2 * power / (frames * FRAME * (window**2).sum(-1, keepdims=True) + 1e-9)


def goertzel_labels(samples: np.ndarray, frames: int, threshold: float) -> np.ndarray:
    """Labels (count, length): the strongest pair, where both its tones have that share of the energy."""
    shares = tone_shares(samples, frames)
    low, high = shares[..., :4], shares[..., 4:]
    sounds = np.minimum(low.max(-1), high.max(-1)) > threshold
    return np.where(sounds, 1 + 4 * low.argmax(-1) + high.argmax(-1), 0)


@functools.cache
def best_goertzel() -> tuple[int, float]:
    """(frames, threshold) that label most frames of some training sequences right."""
    samples, labels = simulate(128, 256, TRAINING_SEED)

    def right(settings: tuple[int, float]) -> float:
        return float((goertzel_labels(samples, *settings) == labels).mean())

    choices = [(f, float(t)) for f in (1, 2, 3, 4, 5) for t in np.linspace(0.02, 0.3, 15)]
    return max(choices, key=right)


@functools.cache
def _training(device: torch.device) -> tuple[Tensor, Tensor]:
    samples, labels = simulate(SEQUENCES, TRAINING_FRAMES, TRAINING_SEED)
    return torch.from_numpy(samples).to(device), torch.from_numpy(labels).to(device)


def batches(length: int) -> MakeBatch:
    """Windows of the training sequences: frames, and labels."""
    return windows(_training, length)


@torch.no_grad()
def evaluate(model: nn.Module, device: torch.device, count: int, length: int) -> dict[str, float]:
    """Figures on sequences that no training saw, beside the Goertzel bank's."""
    samples, labels = simulate(count, length, TEST_SEED)
    parts = torch.from_numpy(samples).to(device).split(64)
    found = torch.cat([model(part)[0].argmax(-1) for part in parts]).cpu().numpy()
    classical = goertzel_labels(samples, *best_goertzel())
    return {
        "frames told right, %": 100 * float((found == labels).mean()),
        "frames told right by the Goertzel bank, %": 100 * float((classical == labels).mean()),
    }


TASK = Task(
    name="audio-tones",
    title="Telephone keys from raw samples",
    about=ABOUT,
    length=LENGTH,
    shortest=8,
    models={"mamba": lambda: Labeller(FRAME, CLASSES, 64)},
    batches=batches,
    loss=loss,
    evaluate=evaluate,
    save=save_labeller,
    recipe=TaskRecipe(lr=4e-3, batch=32),
)
