"""``torch.cuda.device`` for models that put it around tensors which may be on a CPU."""

from __future__ import annotations

from typing import Any

import torch


class DeviceGuard(torch.cuda.device):
    """``torch.cuda.device`` that does nothing for a device of another kind.

    VMamba and its relatives write ``with torch.cuda.device(x.device)`` around plain PyTorch code, which then
    fails on a machine without a GPU.
    """

    def __init__(self, device: Any) -> None:
        of_another_kind = isinstance(device, torch.device) and device.type != "cuda"
        super().__init__(-1 if of_another_kind else device)
