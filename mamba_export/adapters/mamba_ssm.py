"""Importing this installs the adapters for the rest of the process; do it before a model's own imports."""

from mamba_export.adapters.installing import Installation

INSTALLATION = Installation()
"""``INSTALLATION.undo()`` takes the adapters away again."""

INSTALLATION.do()
