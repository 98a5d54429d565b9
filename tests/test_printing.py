"""The printer of text that others wrote: nothing in it reaches a terminal, or rich, as a command."""

from __future__ import annotations

import io
import unicodedata

import pytest
from rich.console import Console
from rich.table import Table

from mamba_export.cli.bars import progress_bars
from mamba_export.printing import as_text, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("backbone.layers.0.norm.weight", "backbone.layers.0.norm.weight"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31mred", r"\x9b31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("a\u202eb\u2066c\u200f", r"a\u202eb\u2066c\u200f"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("name \udcff\ud800", r"name \udcff\ud800"),
        ("\x00\x7f", r"\x00\x7f"),
        ("Ω, 模型, café, 👩\u200d🔬, שלום [bold]", "Ω, 模型, café, 👩\u200d🔬, שלום [bold]"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_no_control_of_unicode_is_left() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = {unicodedata.category(character) for character in printable(everything)}
    assert not left & {"Cc", "Cs", "Zl", "Zp"}
    printable(everything).encode()


def test_lines_of_a_model_keep_their_form() -> None:
    assert printable_lines(
        "one\n\ttwo\x1b[2J\x9b2J\r"
    ) == "one\n\ttwo" + r"\x1b[2J\x9b2J\x0d".replace(r"\x0d", r"\r")
    assert printable_lines("مرحبا\u200f!") == "مرحبا\u200f!"


@pytest.mark.parametrize(
    "name", ["[bold]x[/bold]", "[/]", "[/red]", "[link=file:///x]y", "\x1b[2J"]
)
def test_rich_reads_no_markup_in_names(name: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200)
    table = Table(title=as_text(name))
    table.add_row(as_text(name, "red"))
    console.print(table)
    with progress_bars(console, transient=False, in_logs=True) as bars:
        bars.update(bars.add_task("start", total=1.0), description=printable(name), completed=1.0)
    assert console.file.getvalue().count(printable(name)) >= 3
    assert "\x1b[2J" not in console.file.getvalue()
