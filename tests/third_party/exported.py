"""The catalogue's models as exported folders, each made once a run: some take ten seconds to trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

import mamba_export
from third_party.catalogue import STYLES, Style


@dataclass(frozen=True)
class Exported:
    """A model of the catalogue and the folder that holds it, which no test may change."""

    style: Style
    model: nn.Module
    folder: Path


def exporter(root: Path) -> Callable[[str], Exported]:
    """What makes and exports a model by its name, into a folder below ``root``, the first time."""

    @cache
    def export(name: str) -> Exported:
        torch.manual_seed(0)
        style = STYLES[name]
        model = style.make().eval()
        for part in model.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(part.running_var, 0.5, 2.0)
                nn.init.uniform_(part.running_mean, -1.0, 1.0)
        folder = mamba_export.export(
            model,
            style.inputs(*style.traced),
            output=root / name,
            dynamic_shapes=style.axes,
        )
        return Exported(style, model, folder)

    return export
