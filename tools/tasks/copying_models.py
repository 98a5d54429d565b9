"""The models of selective copying: the rows of table 1 of arXiv:2312.00752, and the task with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from mamba_export.models import MambaConfig, MambaLM, checkpoints
from mixers.blocks import BLOCKS, MakeMixer
from mixers.hyena import HyenaFilter
from mixers.model import MixerModel
from mixers.s4d import S4D
from mixers.s6 import S6
from tasks import copying
from tasks.recipe import TaskRecipe
from tasks.task import Task

D_MODEL, D_INNER, N_LAYER = 64, 128, 2

PUBLISHED = {
    "ungated-s4": 18.3,
    "ungated-s6": 97.0,
    "h3-s4": 57.0,
    "h3-hyena": 30.1,
    "h3-s6": 99.7,
    "mamba-s4": 56.4,
    "mamba-hyena": 28.4,
    "mamba-s6": 99.8,
}
"""Accuracy in percent by model, a block and a mixer: table 1. Those of S6 are selective, the others LTI."""

SHIPPED = "mamba-s6"

CONFIG = MambaConfig(
    D_MODEL, N_LAYER, vocab_size=copying.VOCABULARY, d_inner=D_INNER, tie_embeddings=False
)

_MIXERS: dict[str, MakeMixer] = {
    "s4": S4D,
    "s6": S6,
    "hyena": lambda channels: HyenaFilter(channels, longest=copying.LENGTH),
}


def _mixer_model(block: str, mixer: str) -> MixerModel:
    return MixerModel(
        copying.VOCABULARY,
        D_MODEL,
        N_LAYER,
        lambda: BLOCKS[block](D_MODEL, D_INNER, _MIXERS[mixer]),
    )


def _maker(name: str) -> Callable[[], nn.Module]:
    if name == SHIPPED:
        return lambda: MambaLM(CONFIG)  # the product's own
    block, mixer = name.split("-")
    return lambda: _mixer_model(block, mixer)


def _save(model: nn.Module, folder: Path) -> None:
    if isinstance(model, MambaLM):
        checkpoints.save(model, folder)
    else:
        tensors = {name: one.detach().cpu().contiguous() for name, one in model.named_parameters()}
        save_file(tensors, folder / "model.safetensors")


TASK = Task(
    name="selective-copying",
    title="Selective copying",
    about=copying.ABOUT,
    length=copying.LENGTH,
    shortest=copying.SHORTEST,
    models={name: _maker(name) for name in PUBLISHED},
    batches=copying.batches,
    loss=copying.loss,
    evaluate=copying.evaluate,
    save=_save,
    recipe=TaskRecipe(),
)
