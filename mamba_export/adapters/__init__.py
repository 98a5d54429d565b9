"""Adapters: models that call mamba_ssm or causal_conv1d run, train and export without them.

``import mamba_export.adapters.mamba_ssm`` serves the whole process,
``with mamba_export.adapters.installed():`` a block.
"""

from mamba_export.adapters.installing import installed, is_active

__all__ = ["installed", "is_active"]
