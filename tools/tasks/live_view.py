"""A live view of a plant that is watched, in a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tasks.plant import CHANNELS
from tasks.watcher import Seen

_WIDTH = 30
"""Columns of the course; each holds ``_PER_COLUMN`` samples."""
_PER_COLUMN = 8
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-~=+*#"


class LiveView:
    """What is shown: a row a sensor with its course, and the alarms.

    Args:
        unicode: whether the terminal can show block characters.
    """

    def __init__(self, unicode: bool = True) -> None:
        self._blocks = _BLOCKS if unicode else _ASCII
        self._course: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=_WIDTH)
        self._part: list[Seen] = []
        self._microseconds: deque[float] = deque(maxlen=200)
        self._alarms: deque[str] = deque(maxlen=3)
        self._last_alarm = -100

    def add(self, seen: Seen) -> None:
        """Take a sample in."""
        self._microseconds.append(seen.microseconds)
        self._part.append(seen)
        if len(self._part) == _PER_COLUMN:
            reading = np.mean([one.reading for one in self._part], axis=0)
            self._course.append((reading, np.max([one.score for one in self._part], axis=0)))
            self._part = []
        if seen.is_alarm:
            if seen.index - self._last_alarm > 20:
                sensor = CHANNELS[int(seen.score.argmax())]
                self._alarms.append(f"second {seen.index}: {sensor}")
            self._last_alarm = seen.index

    def render(self, seen: Seen, note: str) -> RenderableType:
        """The view after a sample.

        Args:
            seen: the sample.
            note: what is known of the plant, such as its phase.
        """
        table = Table(box=None, padding=(0, 1), expand=False)
        for name in ("sensor", "reading", "expected", "course"):
            table.add_column(name, justify="left" if name in ("sensor", "course") else "right")
        for index, name in enumerate(CHANNELS):
            score = float(seen.score[index])
            table.add_row(
                Text(name, style=_style(score)),
                f"{seen.reading[index]:.2f}",
                f"{seen.forecast[index]:.2f} ± {seen.deviation[index]:.2f}",
                self._line(index),
            )
        alarm = seen.index - self._last_alarm <= 20
        state = Text("ALARM", "bold white on red") if alarm else Text("as expected", "green")
        foot = Text(f"second {seen.index}, {note}: ").append_text(state)
        foot.append(f"; {np.median(self._microseconds):.0f} us a step")
        if self._alarms:
            foot.append(f"\nalarms: {'; '.join(self._alarms)}")
        return Panel(Group(table, foot), title="plant-forecast in ONNX Runtime", expand=False)

    def _line(self, sensor: int) -> Text:
        values: Sequence[float] = [float(reading[sensor]) for reading, _ in self._course]
        line = Text()
        if not values:
            return line
        low, high = min(values), max(values)
        for value, (_, score) in zip(values, self._course, strict=True):
            level = int((len(self._blocks) - 1) * (value - low) / max(high - low, 1e-9))
            line.append(self._blocks[level], _style(float(score[sensor])))
        return line


def _style(score: float) -> str:
    return "bold red" if score > 1 else "cyan"
