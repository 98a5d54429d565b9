"""Errors that a user can act on: one line that names the file, tensor or option and what to do.

The command line prints them without a traceback and exits with code 2. Imports nothing.
"""

from typing import Any


class MambaExportError(Exception):
    """Bad input or a missing requirement; the message is one clear line.

    A path or name in it may hold ends of lines: they are spelt out.
    """

    def __init__(self, *arguments: object, **keywords: Any) -> None:
        super().__init__(*map(_in_one_line, arguments), **keywords)


def _in_one_line(argument: object) -> object:
    if not isinstance(argument, str):
        return argument
    return argument.replace("\r", "\\r").replace("\n", "\\n")


class CheckpointError(MambaExportError):
    """A checkpoint that is missing, damaged, unsafe or of another architecture."""


class ExportError(MambaExportError):
    """An export that cannot be done as asked."""


class SessionError(MambaExportError):
    """An exported folder that cannot be loaded, or a request that it cannot serve."""


class MissingKernelError(SessionError):
    """An exported folder of a dtype that a runtime is known to lack kernels of, and lacks one of its nodes'."""


class EngineError(MambaExportError):
    """An engine that cannot be built as asked, or that is not what its folder says."""


class MissingPackageError(MambaExportError, ImportError):
    """A package that this needs and that is not installed; the message names the command that installs it."""


class UnknownOptionError(SessionError, TypeError):
    """A keyword argument that names no option; the message lists those that there are."""


class InputError(MambaExportError, ValueError):
    """What a module was called with, and cannot take."""


class ImplementationError(MambaExportError, ValueError):
    """An implementation of the operators was asked for that is unknown, absent, or cannot take a tensor."""


class MambaExportWarning(UserWarning):
    """Something that a user may not expect of what was done as asked; one line. The command line prints it."""


_LONGEST = 500
"""Characters of another library's message: some quote the whole file that they could not read."""


def first_line(error: BaseException, after: str | None = None) -> str:
    """The first line of what an error says, for a message of one line; never empty, never raises.

    Args:
        error: of any library.
        after: text that precedes the reason, such as a paragraph of advice; what follows its last
            occurrence counts.

    Returns:
        The line without surrounding blanks, its end cut off where it is very long; the name of the error's type
        where there is none.
    """
    text = str(error)
    if after is not None:
        text = text.rpartition(after)[2]
    return shortened(_first(text, error))


def whole_first_line(error: BaseException) -> str:
    """``first_line`` of any length, for one who takes something off it: what is left goes to ``shortened``."""
    return _first(str(error), error)


def _first(text: str, error: BaseException) -> str:
    return (text.strip().splitlines() or [type(error).__name__])[0].strip()


def shortened(line: str) -> str:
    """A line of another library's, its end cut off where it is very long."""
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def named_first_line(error: BaseException) -> str:
    """``first_line`` behind the name of the error's type: "ValueError: what it says"."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
