"""Errors that a user can act on: one line that names the file, tensor or option and what to do.

The command line prints them without a traceback and exits with code 2. Imports nothing.
"""


class MambaExportError(Exception):
    """Bad input or a missing requirement; the message is one clear line."""


class CheckpointError(MambaExportError):
    """A checkpoint that is missing, damaged, unsafe or of another architecture."""


class ExportError(MambaExportError):
    """An export that cannot be done as asked."""


class SessionError(MambaExportError):
    """An exported folder that cannot be loaded, or a request that it cannot serve."""


class EngineError(MambaExportError):
    """An engine that cannot be built as asked, or that is not what its folder says."""
