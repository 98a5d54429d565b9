"""The application: the list of commands, ``--version``, and how typer's errors become ours."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

import typer

from mamba_export import __version__
from mamba_export.cli import build, doctor, export, library_path, run, verify
from mamba_export.cli.outcome import EXIT_BAD_INPUT, exit_with
from mamba_export.cli.streams import print_lines
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
        print_lines(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: runs a command and ends the process, a bad end with one line on standard error."""
    run_app(app, arguments, name=NAME)


def run_app(
    application: typer.Typer, arguments: list[str] | None = None, *, name: str | None = None
) -> NoReturn:
    """Run a typer application with our error and exit-code rules; the scripts in tools/ share it.

    Args:
        application: what to run.
        arguments: None for the process's own.
        name: of the program, in its help and for shell completion; None for the script's.
    """
    exit_with(lambda: _run(typer.main.get_command(application), arguments, name))


def _run(command: Any, arguments: list[str] | None, name: str | None) -> Any:
    """What a command of typer's returns, or its exit code.

    Raises:
        MambaExportError: bad options, in one line in place of typer's box.
    """
    invoke = command.invoke

    def guarded(context: Any) -> Any:
        try:
            return invoke(context)
        except (EOFError, BrokenPipeError) as error:
            # Typer ends on both with code 1, which is a verification that failed.
            raise _HeldError(error) from None

    command.invoke = guarded
    try:
        return command.main(args=arguments, prog_name=name, standalone_mode=False)
    except _HeldError as held:
        raise held.error from None
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # of --help and --version: code 1, too
            raise stop.__context__ from None
        raise
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # The base of typer's usage errors is click's, or a copy of it, by version.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
            return EXIT_BAD_INPUT
        raise MambaExportError(_usage(error)) from error


class _HeldError(Exception):
    """Carries an error past typer."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _usage(error: Any) -> str:
    """What typer says of bad options, and where they are explained."""
    message = " ".join(error.format_message().split())
    if error.ctx is None:
        return message
    return f"{message.removesuffix('.')} ({error.ctx.command_path} --help explains)"
