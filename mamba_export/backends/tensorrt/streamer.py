"""One sample at a time in TensorRT: sensors, sound, whatever is no tokens."""

from __future__ import annotations

from mamba_export.backends.tensorrt.captured_steps import CapturedSteps
from mamba_export.backends.tensorrt.state import TrtState
from mamba_export.generation.streamer import Streamer


class TrtStreamer(Streamer[TrtState]):
    """A streamer on an NVIDIA GPU; the same use as ``OrtStreamer``.

    Args:
        steps: of a program that ``check_samples`` takes; this streamer's alone.
    """

    def __init__(self, steps: CapturedSteps) -> None:
        super().__init__(steps)
        self._captured_steps = steps

    @property
    def is_captured(self) -> bool:
        """Whether steps are launched as CUDA graphs: from the second on, where the engine can be captured."""
        return self._captured_steps.is_captured
