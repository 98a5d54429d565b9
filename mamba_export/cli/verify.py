"""``mamba-export verify``: an exported folder against the PyTorch model that it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mamba_export import given
from mamba_export.backends import registry
from mamba_export.backends.onnxruntime.own_log import leave_messages_to_errors
from mamba_export.cli.bars import status
from mamba_export.cli.options import AUTO, FolderArgument, JsonOption, QuickOption, one_of
from mamba_export.cli.streams import results
from mamba_export.untrusted import read_text

_WHAT_RUNS = "; ".join(f"{option}: {what}" for option, what in registry.variants().items())


def command(
    folder: FolderArgument,
    model: Annotated[
        str | None,
        # Named, as typer 0.27 would name it after its metavar, --MODEL.
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The source, where it is not where the export found it.",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text for next-token agreement; a short one ships with us."
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        one_of(
            (AUTO, *registry.variants()),
            help=f"Backend to check; may be repeated. {_WHAT_RUNS}. Default: every one that is present.",
        ),
    ] = None,
    quick: QuickOption = False,
    json_output: JsonOption = False,
) -> None:
    """Compare every backend that is present with the PyTorch model; exit with 1 if anything fails."""
    from mamba_export.verify import verify
    from mamba_export.verify.table import print_report

    leave_messages_to_errors()

    with status("loading") as say:
        report = verify(
            folder,
            model=model,
            text=_read_text(text),
            backends=None if AUTO in (backend or ()) else backend,
            quick=quick,
            on_check=lambda check: say(f"{check.backend}: {check.check}"),
        )
    with results():
        if json_output:
            print(json.dumps(report.to_json(), indent=2))
        else:
            print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _read_text(path: Path | None) -> str | None:
    return None if path is None else read_text(given.path(path, "--text"))
