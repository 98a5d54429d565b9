"""Export: a PyTorch Mamba model to one ONNX file that every runtime takes."""

from mamba_export.callable_module import make_callable
from mamba_export.export.declare import State
from mamba_export.export.exporter import build, export
from mamba_export.export.graph import DEFAULT_OPSET, OPSETS
from mamba_export.export.saving import check

__all__ = ["DEFAULT_OPSET", "OPSETS", "State", "build", "check", "export"]

make_callable(__name__, export)
