"""DNA-like input: of each base, whether it lies in a CpG island, from the bases so far.

The sequences are synthetic: drawn from the hidden Markov model by which Durbin, Eddy, Krogh and Mitchison
introduce the problem ("Biological Sequence Analysis", 1998, section 3.1; the chains of bases are their
published table, made from human DNA). So the best answer is known: the forward algorithm's, which knows the
model.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.labeller import Labeller, save_labeller
from tasks.recipe import TaskRecipe
from tasks.task import Batch, MakeBatch, Task
from tasks.windows import windows

BASES = "ACGT"
_OUTSIDE = [
    [0.300, 0.205, 0.285, 0.210],
    [0.322, 0.298, 0.078, 0.302],
    [0.248, 0.246, 0.298, 0.208],
    [0.177, 0.239, 0.292, 0.292],
]
_INSIDE = [
    [0.180, 0.274, 0.426, 0.120],
    [0.171, 0.368, 0.274, 0.188],
    [0.161, 0.339, 0.375, 0.125],
    [0.079, 0.355, 0.384, 0.182],
]
_TABLE = np.array([_OUTSIDE, _INSIDE])
CHAINS = _TABLE / _TABLE.sum(-1, keepdims=True)
"""(inside or not, base, next base): probabilities; the published digits do not all add up to 1."""
SWITCH = np.array([[1 - 1 / 600, 1 / 600], [1 / 300, 1 - 1 / 300]])
"""(inside before, inside after): islands are 300 bases long on average, what lies between them 600. Ours."""
START = np.array([2 / 3, 1 / 3])

SEQUENCES, TRAINING_BASES = 4096, 2048
TRAINING_SEED, TEST_SEED = 1, 2
LENGTH = 512

ABOUT = """\
Bases (A, C, G, T, one-hot) are read one after another, and for each the model says how likely it lies in a CpG
island. The sequences are **synthetic**: drawn from the two-state model of Durbin, Eddy, Krogh and Mitchison
1998 (section 3.1), whose forward algorithm is the best that any reader of the bases so far can do.
"""


def simulate(count: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bases (count, length) as indices into ``BASES``, and whether each lies in an island (0 or 1)."""
    draw = np.random.default_rng(seed)
    bases, inside = np.empty((2, count, length), np.int64)
    state = (draw.random(count) < START[1]).astype(np.int64)
    base = draw.integers(0, 4, count)
    cumulative = CHAINS.cumsum(-1)
    for step in range(length):
        if step:
            state = (draw.random(count) < SWITCH[state, 1]).astype(np.int64)
            base = (draw.random((count, 1)) > cumulative[state, base, :3]).sum(1)
        bases[:, step], inside[:, step] = base, state
    return bases, inside


def forward_algorithm(bases: np.ndarray) -> np.ndarray:
    """P(inside an island | bases so far), (count, length), in float64 (Durbin et al. 1998, section 3.2)."""
    count, length = bases.shape
    found = np.empty((count, length))
    belief = np.tile(START, (count, 1))
    for step in range(length):
        if step:
            belief = belief @ SWITCH * CHAINS[:, bases[:, step - 1], bases[:, step]].T
            belief /= belief.sum(1, keepdims=True)
        found[:, step] = belief[:, 1]
    return found


def one_hot(bases: np.ndarray) -> np.ndarray:
    """(count, length, 4) fp32."""
    return np.eye(4, dtype=np.float32)[bases]


def bits_and_accuracy(inside: np.ndarray, probability: np.ndarray) -> tuple[float, float]:
    """Cross entropy in bits a base, and the share of bases that are told right, in percent."""
    right = np.where(inside == 1, probability, 1 - probability)
    return float(-np.log2(right).mean()), 100 * float((right > 0.5).mean())


@functools.cache
def _training(device: torch.device) -> tuple[Tensor, Tensor]:
    bases, inside = simulate(SEQUENCES, TRAINING_BASES, TRAINING_SEED)
    return torch.from_numpy(bases).to(device), torch.from_numpy(inside).to(device)


def batches(length: int) -> MakeBatch:
    """Windows of the training sequences: one-hot bases, and labels."""
    return windows(_training, length, lambda bases: F.one_hot(bases, 4).float())


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of a step's label, in nats."""
    return F.cross_entropy(model(batch[0])[0].flatten(0, 1), batch[1].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, device: torch.device, count: int, length: int) -> dict[str, float]:
    """Figures on sequences that no training saw, beside the forward algorithm's."""
    bases, inside = simulate(count, length, TEST_SEED)
    features = torch.from_numpy(one_hot(bases)).to(device)
    logits = torch.cat([model(part)[0] for part in features.split(64)])
    bits, accuracy = bits_and_accuracy(inside, logits.double().softmax(-1)[..., 1].cpu().numpy())
    best, most = bits_and_accuracy(inside, forward_algorithm(bases))
    return {
        "cross entropy, bits a base": bits,
        "accuracy, %": accuracy,
        "cross entropy of the forward algorithm, bits a base": best,
        "accuracy of the forward algorithm, %": most,
    }


TASK = Task(
    name="dna-islands",
    title="CpG islands in DNA-like sequences",
    about=ABOUT,
    length=LENGTH,
    shortest=16,
    models={"mamba": lambda: Labeller(len(BASES), 2, 32)},
    batches=batches,
    loss=loss,
    evaluate=evaluate,
    save=save_labeller,
    recipe=TaskRecipe(lr=4e-3, batch=32),
)
