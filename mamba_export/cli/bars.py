"""The progress display that commands share, on standard error. Descriptions must be ``printable``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mamba_export.printing import as_text


def progress_bars(console: Console, *, transient: bool, in_logs: bool) -> Progress:
    """A display of one line a task.

    Args:
        console: of standard error.
        transient: whether the lines go at the end.
        in_logs: whether to show it where the console is no terminal. A bar that cannot move only leaves empty
            lines there, unless its last state is a result.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    off = not (in_logs or console.is_terminal)
    return Progress(*columns, console=console, transient=transient, disable=off)


@contextlib.contextmanager
def status(first: str) -> Iterator[Callable[[str], None]]:
    """One line on a terminal that says what is done now, and nothing elsewhere.

    Args:
        first: what it says until the function that this yields is called with something else.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(as_text(first)) as line:
        yield lambda text: line.update(as_text(text))
