"""Options that several commands share, and options with choices, which are listed elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mamba_export import contract
from mamba_export.backends.tensorrt.names import KINDS
from mamba_export.backends.tensorrt.options import BuildOptions

AUTO = "auto"


def one_of(choices: Iterable[str], *names: str, help: str) -> Any:
    """An option whose value, or each of whose values, is one of ``choices``; the shell completes them.

    Args:
        choices: the values.
        names: of the option; its parameter's where none is given.
        help: as for ``typer.Option``.
    """
    known = tuple(choices)
    return typer.Option(
        *names,
        help=help,
        metavar=f"[{'|'.join(known)}]",
        callback=_check(known),
        autocompletion=lambda incomplete: [name for name in known if name.startswith(incomplete)],
    )


def _check(known: Sequence[str]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        for one in (value,) if isinstance(value, str) else value or ():
            if one not in known:
                names = ", ".join(map(repr, known))
                raise typer.BadParameter(f"{one!r} is not one of {names}.")
        return value

    return check


def _range(numbers: tuple[int, int, int]) -> str:
    return ",".join(map(str, numbers))


DEFAULT_DTYPE = contract.DTYPES[0]
DEFAULT_BATCH = _range(BuildOptions.batch)
DEFAULT_LENGTH = _range(BuildOptions.length)

FolderArgument = Annotated[Path, typer.Argument(metavar="OUT", help="An exported folder.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Verify fewer lengths, batch 1 alone.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
PluginOption = Annotated[
    bool,
    typer.Option(
        "--plugin/--no-plugin",
        help="Our operators as TensorRT plugins, or as standard operators, which are slow.",
    ),
]
BatchRangeOption = Annotated[
    str, typer.Option(metavar="MIN,OPT,MAX", help="Sequences a run, or one number for all three.")
]
LengthRangeOption = Annotated[
    str,
    typer.Option(metavar="MIN,OPT,MAX", help="Steps of a prompt a run; single steps always work."),
]
EngineRuntimeOption = Annotated[
    str,
    one_of(
        (AUTO, *(kind.option for kind in KINDS)),
        "--runtime",
        help="tensorrt needs a GPU to build, tensorrt-rtx none.",
    ),
]
