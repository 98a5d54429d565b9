"""Training of small byte-level language models; ``tools/train_lm.py`` is its command line."""

from training.compared import RECORD_FILE, Compared, read_compared
from training.data import Split, read_text, split_lines
from training.evaluate import bits_per_byte, generate
from training.loop import Recipe, Trained, train
from training.output import write_model

__all__ = [
    "RECORD_FILE",
    "Compared",
    "Recipe",
    "Split",
    "Trained",
    "bits_per_byte",
    "generate",
    "read_compared",
    "read_text",
    "split_lines",
    "train",
    "write_model",
]
