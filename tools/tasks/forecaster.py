"""A forecaster of a plant's sensors: readings in, the next reading and how sure it is out, states carried.

Readings and their changes go through a linear layer into Mamba's layers and out of a linear layer. What comes
out is the change to the next reading and the logarithm of its standard deviation, in units that the buffers
hold: so the module, and the file that it is exported to, take and return the sensors' own units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mamba_export.contract import METADATA_FILE
from mamba_export.fields import Choice
from mamba_export.files import new_folder
from mamba_export.models import LayerState, MambaBackbone, MambaConfig
from mamba_export.models.program import SharedParameters
from mixers.blocks import MambaBlock
from mixers.model import MixerBackbone
from mixers.parts_export import export_in_parts
from mixers.s4d import S4D
from tasks.forecast_program import INPUT, OUTPUTS
from tasks.plant import CHANNELS, simulate
from tasks.stored import load_weights, read_description, save_module
from tasks.watcher import read_limits, write_limits

D_MODEL, D_INNER, N_LAYER, D_STATE = 32, 64, 2, 16
LTI_STATE = 26
"""Numbers of S4D's state a channel: with them the models have exactly as many parameters."""
_LARGEST = 10.0
"""Bound of a change that is shown, in usual changes."""
_WIDEST = 5.0
"""Bound of the logarithm of a deviation, in units of a usual change."""


class MambaCore(SharedParameters):
    """Mamba's layers, with their states as a flat list, as ``MixerBackbone`` has them."""

    def __init__(self, d_model: int = D_MODEL) -> None:
        super().__init__(MambaBackbone(MambaConfig(d_model, N_LAYER, d_state=D_STATE)))

    @property
    def _backbone(self) -> MambaBackbone:
        assert isinstance(self.wrapped, MambaBackbone)
        return self.wrapped

    def initial_state(self, batch: int) -> list[Tensor]:
        """Of each layer the convolution's and the scan's: zeros."""
        return [tensor for layer in self._backbone.initial_state(batch) for tensor in layer]

    def forward(self, x: Tensor, state: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Of a whole sequence (state None), or of the next part of one."""
        layers = None
        if state is not None:
            layers = [LayerState(*state[i : i + 2]) for i in range(0, len(state), 2)]
        y, after = self._backbone(x, layers)
        return y, [tensor for layer in after for tensor in layer]


def _lti() -> MixerBackbone:
    def block() -> MambaBlock:
        return MambaBlock(D_MODEL, D_INNER, lambda channels: S4D(channels, LTI_STATE))

    return MixerBackbone(D_MODEL, N_LAYER, block)


MODELS: dict[str, Callable[[], MambaCore | MixerBackbone]] = {"lti": _lti, "mamba": MambaCore}
"""What may read the sequence, by its name in a checkpoint: Mamba; and Mamba's block with S4D, a layer
that is the same at every step (LTI), in place of the selective scan."""


class Forecaster(nn.Module):
    """Forecasts every next reading.

    Args:
        model: one of ``MODELS``.
    """

    centre: Tensor
    scale: Tensor
    change: Tensor

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model
        self.core = MODELS[model]()
        self.enter = nn.Linear(2 * len(CHANNELS), D_MODEL)
        self.leave = nn.Linear(D_MODEL, 2 * len(CHANNELS))
        # A mean and a standard deviation of the readings, and one of their changes; ``fit`` sets them.
        self.register_buffer("centre", torch.zeros(len(CHANNELS)))
        self.register_buffer("scale", torch.ones(len(CHANNELS)))
        self.register_buffer("change", torch.ones(len(CHANNELS)))

    def fit(self, readings: Tensor) -> None:
        """Take the units from readings (plants, length, 3)."""
        self.centre.copy_(readings.mean((0, 1)))
        self.scale.copy_(readings.std((0, 1)))
        self.change.copy_(readings.diff(dim=1).std((0, 1)))

    def initial_state(self, batch: int) -> list[Tensor]:
        """What a signal starts from: the last reading, in units of ``scale``, and the core's state."""
        return [self.centre.new_zeros(batch, len(CHANNELS)), *self.core.initial_state(batch)]

    def forward(self, readings: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Forecasts of the readings that follow.

        Args:
            readings: (batch, length, 3) in the sensors' units.
            state: what the part before returned, at the start ``initial_state``; none for a whole signal.

        Returns:
            forecast and deviation, (batch, length, 3) each: of the reading after each reading the mean and the
            standard deviation. Then, where a state was given, the state after the last reading.
        """
        scaled = (readings - self.centre) / self.scale
        last = state[0] if state else torch.zeros_like(scaled[:, 0])
        before = torch.cat([last[:, None], scaled[:, :-1]], dim=1)
        # A sensor's noise is a hundredth of its range: changes are shown by themselves, the first one bounded.
        changes = ((scaled - before) * (self.scale / self.change)).clamp(-_LARGEST, _LARGEST)
        x = self.enter(torch.cat([scaled, changes], dim=-1))
        y, after = self.core(x, list(state[1:]) or None)
        after = [scaled[:, -1], *after]
        moved, width = self.leave(y).chunk(2, dim=-1)
        deviation = self.change * torch.exp(_WIDEST * torch.tanh(width / _WIDEST))
        return (readings + self.change * moved, deviation, *(after if state else ()))


def make_forecaster(model: str) -> Forecaster:
    """An untrained forecaster, in the units of a plant that is sound."""
    made = Forecaster(model)
    made.fit(torch.from_numpy(simulate(64, 2048, seed=0).readings))
    return made


def save_forecaster(module: nn.Module, folder: Path) -> None:
    """Write config.json and model.safetensors into a folder."""
    assert isinstance(module, Forecaster)
    save_module(module, {"model": module.model}, folder)


def load_forecaster(folder: Path) -> Forecaster:
    """A trained forecaster, in eval mode.

    Raises:
        MambaExportError: a file is missing or damaged, or of something else.
    """
    fields = read_description(folder)
    made = Forecaster(fields.take("model", Choice(tuple(MODELS))))
    load_weights(made, "the forecaster", folder)
    return made.eval()


def export_forecaster(forecaster: Forecaster, output: Path) -> Path:
    """Export a forecaster with its states as inputs and outputs; it reads parts of any length."""
    return export_in_parts(
        forecaster,
        torch.zeros(2, 5, len(CHANNELS)),
        forecaster.initial_state(2),
        output,
        input_name=INPUT,
        output_names=OUTPUTS,
    )


def export_watched(checkpoint: Path, output: Path, *, force: bool = False) -> Path:
    """Export a trained forecaster with its detector's limits, which are there when the folder is."""
    limits = read_limits(checkpoint)
    with new_folder(output, marker=METADATA_FILE, force=force, sources=[checkpoint]) as folder:
        exported = export_forecaster(load_forecaster(checkpoint), folder / "exported")
        for path in list(exported.iterdir()):
            path.replace(folder / path.name)
        exported.rmdir()
        write_limits(folder, limits)
    return output
