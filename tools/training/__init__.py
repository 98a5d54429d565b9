"""Training of small byte-level language models; ``tools/train_lm.py`` is its command line."""

from training.data import Split, read_text, split_lines
from training.evaluate import bits_per_byte, generate
from training.loop import Recipe, Trained, train
from training.output import RECORD_FILE, write_model

__all__ = [
    "RECORD_FILE",
    "Recipe",
    "Split",
    "Trained",
    "bits_per_byte",
    "generate",
    "read_text",
    "split_lines",
    "train",
    "write_model",
]
