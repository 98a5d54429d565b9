"""The errors of this package. Imports nothing but the base class."""

from mamba_export.errors import MambaExportError


class EngineError(MambaExportError):
    """An engine that cannot be built as asked, or that is not what its folder says."""
