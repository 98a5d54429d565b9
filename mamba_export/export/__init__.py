"""Export: a PyTorch Mamba model to one ONNX file that every runtime takes."""

import sys
import types
from typing import Any

from mamba_export.export.exporter import check, export
from mamba_export.export.graph import DEFAULT_OPSET, OPSETS, build

__all__ = ["DEFAULT_OPSET", "OPSETS", "build", "check", "export"]


class _CallableModule(types.ModuleType):
    """Importing this package binds ``mamba_export.export`` to it; calling that must still export."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
