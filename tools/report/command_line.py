"""What the command lines of the programs that make records share: a record's options, and its beginning."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench import provenance
from report.record import Record, new_record
from training.command_line import Parser


def record_parser(
    program: str, description: str, *, quick: str, needs_record: bool = True
) -> Parser:
    """A parser with --record, --commit and --quick.

    Args:
        program: its file under tools/.
        description: what --help begins with, as it is written.
        quick: what a quick run leaves out, for --help.
        needs_record: whether there is nothing else to write.
    """
    parser = Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "record to write: a file, or a folder of records"
    parser.add_argument("--record", type=Path, required=needs_record, metavar="PLACE", help=text)
    text = "what the record names as the commit, for a copy without git's own folder"
    parser.add_argument("--commit", default=None, metavar="TEXT", help=text)
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def begun(
    options: argparse.Namespace,
    program: str,
    arguments: Sequence[str],
    task: str,
    title: str,
    *,
    device: str | None = None,
) -> Record:
    """The record that a command line begins: what ``record_parser`` made reads it.

    Args:
        options: as parsed.
        program: its file under tools/.
        arguments: the command line, which the record shows.
        task, title, device: see ``new_record``.
    """
    return new_record(
        task,
        title,
        provenance.shown_command(f"tools/{program}", arguments),
        device=device,
        commit=options.commit,
        quick=options.quick,
    )
