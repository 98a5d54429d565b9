"""Options that more than one typer command of tools/ has."""

from __future__ import annotations

from typing import Annotated

import typer

DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
CommitOption = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What the record names as the commit, without git."),
]
NoteOption = Annotated[
    str | None,
    typer.Option(help="A sentence for the record: what else ran, or how a peer was built, say."),
]


def record_option(name: str) -> typer.models.OptionInfo:
    """``--record``; ``name``: of the file in a folder, as "DATE-device.json"."""
    text = f"Write a JSON record; in a folder its name is {name}."
    return typer.Option(metavar="FILE", help=text)
