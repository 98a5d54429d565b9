"""Families of Mamba-2: scans of heads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim

from model_families.family import Trial, family, on_path, stand_in

BATCH = Dim("batch", max=64)
LENGTH = Dim("length", min=2, max=4096)


@family("goombalab/hydra", "hydra.modules.hydra.Hydra")
def _hydra(root: Path) -> Trial:
    on_path(root)
    from hydra.modules.hydra import Hydra

    return Trial(
        Hydra(32, d_state=16, headdim=16, ngroups=2, chunk_size=64),
        lambda batch, length: (torch.randn(batch, length, 32),),
        traced={"batch": 2, "length": 20},
        swept=({"batch": 1, "length": 7}, {"batch": 3, "length": 64}, {"batch": 2, "length": 257}),
        axes=({0: BATCH, 1: LENGTH},),
        reduced="its quasiseparable mixer, width 32, 4 heads of 16, 2 groups",
    )


@family(
    "goombalab/hydra",
    "hydra.modules.hydra.Hydra",
    name="hydra fused",
    note="Its autograd function over private names of mamba_ssm, which cuts the batch in two and so fixes it.",
)
def _hydra_fused(root: Path) -> Trial:
    on_path(root)
    from hydra.modules.hydra import Hydra

    return Trial(
        Hydra(32, d_state=16, headdim=16, use_mem_eff_path=True, learnable_init_states=True),
        lambda batch, length: (torch.randn(batch, length, 32),),
        traced={"batch": 2, "length": 20},
        swept=({"batch": 2, "length": 7}, {"batch": 2, "length": 64}, {"batch": 2, "length": 257}),
        axes=({1: LENGTH},),
        reduced="its fused mixer, width 32, 4 heads of 16",
    )


@family(
    "YuHengsss/VSSD",
    "models.mamba2.VMAMBA2",
    note="With bidirection, for its usual form has no scan. Its subclass of tensors is replaced in memory.",
)
def _vssd(root: Path) -> Trial:
    stand_in(
        "fvcore.nn", FlopCountAnalysis=None, flop_count_str=None, flop_count=None, parameter_count=None
    )  # fmt: skip
    on_path(root / "classification" / "models")
    import mamba2
    from mamba2 import VMAMBA2

    # A subclass of tensors that no tracer sees through; it says its shape in plain numbers.
    mamba2.to_ttensor = lambda *tensors: tensors if len(tensors) > 1 else tensors[0]

    model = VMAMBA2(
        img_size=64, num_classes=10, embed_dim=32, depths=[1, 1], num_heads=[2, 4], d_state=16,
        ssd_ngroups=2, ssd_chunk_size=49, linear_attn_duality=False, bidirection=True,
        attn_types=["mamba2", "mamba2"],
    )  # fmt: skip
    return Trial(
        model,
        lambda batch: (torch.randn(batch, 3, 64, 64),),
        traced={"batch": 2},
        swept=({"batch": 1}, {"batch": 5}),
        axes=({0: BATCH},),
        reduced="depths 1 and 1, width 32, images of 64 x 64, a chunk of 49",
    )
