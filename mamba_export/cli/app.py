"""The application: the list of commands, ``--version``, and how errors become exit codes."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from mamba_export import __version__, requirements
from mamba_export.cli import build, doctor, export, library_path, run, verify
from mamba_export.cli.signals import ending_well
from mamba_export.errors import MambaExportError

NAME = "mamba-export"

app = typer.Typer(
    name=NAME,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Take a Mamba model out of PyTorch: one ONNX file that runs in ONNX Runtime.\n\n"
        "A first session: `mamba-export export models/kjv-bytes -o out`, "
        "`mamba-export verify out`, `mamba-export run out --prompt 'Ge1:1 '`."
    ),
)
app.command("export")(export.command)
app.command("build")(build.command)
app.command("verify")(verify.command)
app.command("run")(run.command)
app.command("doctor")(doctor.command)
app.command("library-path")(library_path.command)


def _show_version(value: bool) -> None:
    if value:
        print(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: runs a command, turns errors that a user can act on into one line and an exit code."""
    return run_app(app, arguments, name=NAME)


def run_app(
    application: typer.Typer, arguments: list[str] | None = None, *, name: str | None = None
) -> Any:
    """Run a typer application with our error and exit-code rules; the scripts in tools/ share it.

    Typer itself ends on Ctrl-C (130) and on a reader that left (``| head``) without a traceback; SIGTERM and
    SIGHUP end a command in the same way (143, 129).

    Args:
        application: what to run.
        arguments: None for the process's own.
        name: of the program, in its help and for shell completion; None for the script's.
    """
    try:
        with requirements.named(), ending_well():
            code = application(args=arguments, prog_name=name, standalone_mode=True)
    except MambaExportError as error:
        # Not through rich: it would wrap the line and read brackets in a path as markup.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
