"""One sample at a time in TensorRT: sensors, sound, whatever is no tokens."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from mamba_export.backends.tensorrt.captured_steps import CapturedSteps
from mamba_export.backends.tensorrt.state import TrtState
from mamba_export.generation.values import returned, step_sample


class TrtStreamer:
    """A batch of sequences of samples that advances one sample a step; the same use as ``OrtStreamer``.

    Args:
        steps: of a program that ``check_samples`` takes; this streamer's alone.
    """

    def __init__(self, steps: CapturedSteps) -> None:
        self._steps = steps

    @property
    def is_captured(self) -> bool:
        """Whether steps are launched as CUDA graphs: from the second on, where the engine can be captured."""
        return self._steps.is_captured

    def step(self, sample: ArrayLike) -> Any:
        """Read one sample of each sequence.

        Args:
            sample: (batch, ...), the input's axes without the length.

        Returns:
            The output without the length, (batch, ...), of several a dict by name; valid until the next step.

        Raises:
            SessionError: the sample is of another shape or kind, or TensorRT or the driver failed.
        """
        steps = self._steps
        found = steps.advance(step_sample(sample, steps.batch, steps.metadata))
        return returned(found, steps.metadata)

    @property
    def state(self) -> TrtState:
        """The state after the last step, valid until the next step."""
        return self._steps.state
