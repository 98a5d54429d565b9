"""Families that classify images."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from model_families.family import Trial, family, on_path, package_of, stand_in

BATCH = Dim("batch", max=64)
HEIGHT = Dim("height", min=2, max=1024)
WIDTH = Dim("width", min=2, max=1024)


def images(batch: int, height: int, width: int) -> tuple[Tensor]:
    """A batch of colour images."""
    return (torch.randn(batch, 3, height, width),)


def square(batch: int, size: int) -> dict[str, int]:
    """Sizes of ``images``."""
    return {"batch": batch, "height": size, "width": size}


def multiples(name: str, of: int, maximum: int) -> Any:
    """A dimension that is a multiple: of a model that halves it again and again."""
    return of * Dim(f"{name}_by_{of}", min=1, max=maximum)


@family("MzeroMiko/VMamba", "vmamba.VSSM")
def _vmamba(root: Path) -> Trial:
    on_path(root / "classification" / "models")
    import vmamba

    model = vmamba.VSSM(
        depths=[1, 1, 1, 1], dims=32, num_classes=10, ssm_d_state=1, ssm_ratio=2.0, ssm_conv=3,
        ssm_conv_bias=False, forward_type="v05_noz", mlp_ratio=4.0, downsample_version="v3",
        patchembed_version="v2", norm_layer="ln2d",
    )  # fmt: skip
    return Trial(
        model,
        images,
        traced=square(2, 64),
        swept=(square(1, 64), {"batch": 1, "height": 64, "width": 96}, square(2, 224)),
        axes=({0: BATCH, 2: HEIGHT, 3: WIDTH},),
        reduced="VMamba-T's forward type v05_noz, d_state 1; 4 blocks, width 32",
    )


def _vim_arguments() -> dict[str, Any]:
    return {
        "img_size": 64, "patch_size": 16, "depth": 2, "embed_dim": 48, "num_classes": 10, "rms_norm": True,
        "residual_in_fp32": True, "fused_add_norm": True, "if_abs_pos_embed": True,
    }  # fmt: skip


@family("hustvl/Vim", "vim/models_mamba.VisionMamba")
def _vim(root: Path) -> Trial:
    on_path(root / "vim")
    import models_mamba

    model = models_mamba.VisionMamba(
        **_vim_arguments(), stride=16, final_pool_type="mean", bimamba_type="v2", if_cls_token=True,
        if_divide_out=True, use_middle_cls_token=True,
    )  # fmt: skip
    return Trial(
        model,
        images,
        traced=square(2, 64),
        swept=(square(1, 64), square(7, 64)),
        axes=({0: BATCH},),
        reduced="Vim-T's options (bimamba v2, class token in the middle); 2 blocks, width 48, image 64",
    )


@family(
    "NVlabs/MambaVision",
    "mambavision.models.mamba_vision.MambaVision",
    note="Batch is that of the trace: window_reverse computes it as int(windows.shape[0] / ...). Asked for it "
    "as dynamic, export names that axis and a line.",
)
def _mambavision(root: Path) -> Trial:
    on_path(root)
    from mambavision.models import mamba_vision

    model = mamba_vision.MambaVision(
        dim=32, in_dim=16, depths=[1, 1, 2, 2], window_size=[8, 8, 7, 7], mlp_ratio=4,
        num_heads=[2, 2, 4, 4], num_classes=10, resolution=224,
    )  # fmt: skip
    return Trial(
        model,
        images,
        traced=square(2, 224),
        swept=(),
        axes=None,
        reduced="depths 1, 1, 2, 2, width 32",
    )


@family("hunto/LocalMamba", "lib.models.local_vim.VisionMamba")
def _localmamba(root: Path) -> Trial:
    models = root / "classification" / "lib" / "models"
    package_of("lib", models.parent)
    package_of("lib.models", models)
    from lib.models.local_vim import VisionMamba

    directions = [["h", "v_flip", "w2", "w7_flip"], ["h_flip", "v", "w2_flip", "w7"]]
    model = VisionMamba(
        **_vim_arguments(), final_pool_type="mean", if_cls_token=False, directions=directions
    )
    return Trial(
        model,
        images,
        traced=square(2, 64),
        swept=(square(1, 64), square(5, 64)),
        axes=({0: BATCH},),
        reduced="all eight directions over 2 blocks, width 48, image 64",
    )


@family("TerryPei/EfficientVMamba", "lib.models.mamba.efficient_mamba.EfficientVSSM")
def _efficientvmamba(root: Path) -> Trial:
    models = root / "classification" / "lib" / "models"
    package_of("lib", models.parent)
    package_of("lib.models", models)
    from lib.models.mamba.efficient_mamba import EfficientVSSM

    model = EfficientVSSM(depths=[1, 1, 1, 1], dims=[16, 32, 64, 128], num_classes=10, step_size=2)
    return Trial(
        model,
        images,
        traced=square(2, 64),
        swept=(square(1, 64), square(5, 64)),
        axes=({0: BATCH},),
        reduced="4 blocks (two of them convolutions, as published), widths 16 to 128",
    )


@family(
    "lewandofskee/MobileMamba",
    "model.mobilemamba.mobilemamba.MobileMamba",
    note="For tensors on a CPU it asks for its loop over the length in Python, whatever is installed; "
    "the entry asks for the kernel in its place. Height and width are fixed: each stage pads odd sizes in a "
    "branch of Python, which a trace takes once.",
)
def _mobilemamba(root: Path) -> Trial:
    on_path(root)
    from util.registry import Registry

    package_of("model", root / "model")
    sys.modules["model"].MODEL = Registry("Model")  # type: ignore[attr-defined]  # of its __init__
    from model.lib_mamba import csms6s, vmambanew
    from model.mobilemamba.mobilemamba import MobileMamba

    def on_kernel(*args: Any, backend: str | None = None) -> Tensor:
        return csms6s.selective_scan_fn(*args, backend="oflex")

    vmambanew.selective_scan_fn = on_kernel

    model = MobileMamba(
        img_size=192, num_classes=10, embed_dim=[48, 64, 80], depth=[1, 1, 1], ssm_ratio=2
    )
    return Trial(
        model,
        images,
        traced=square(2, 192),
        swept=(square(1, 192), square(3, 192)),
        axes=({0: BATCH},),
        reduced="three stages of 1 block, widths 48, 64, 80",
    )


@family("ChenhongyiYang/PlainMamba", "plain_mamba_layer.PlainMambaLayer")
def _plainmamba(root: Path) -> Trial:
    stand_in("mmcv.cnn.bricks.transformer", build_dropout=lambda _: torch.nn.Identity())
    stand_in("mmcv.cnn.utils.weight_init", trunc_normal_=torch.nn.init.trunc_normal_)
    on_path(root / "mmcls" / "plain_mamba_dev" / "models" / "plain_mamba")
    from plain_mamba_layer import PlainMambaLayer

    layers = torch.nn.ModuleList(
        PlainMambaLayer(
            embed_dims=48, use_rms_norm=False, with_dwconv=False, drop_path_rate=0.0,
            mamba_cfg={"d_state": 16, "expand": 2, "conv_size": 7},
        )
        for _ in range(2)
    )  # fmt: skip

    class Layers(torch.nn.Module):
        """Layers one after another, as PlainMamba.forward calls them."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, hw_shape=(8, 8))
            return x

    return Trial(
        Layers(),
        lambda batch: (torch.randn(batch, 64, 48),),
        traced={"batch": 2},
        swept=({"batch": 1}, {"batch": 5}),
        axes=({0: BATCH},),
        reduced="2 layers at 8 x 8 tokens, width 48, without mmcls' patches and head",
    )


@family("Amshaker/GroupMamba", "classification/models/groupmamba.GroupMamba")
def _groupmamba(root: Path) -> Trial:
    package = ModuleType("models")
    package.__path__ = [str(root / "classification" / "models")]
    sys.modules["models"] = package
    from models.groupmamba import GroupMamba

    model = GroupMamba(
        num_classes=10, stem_hidden_dim=16, embed_dims=[32, 64, 64, 96], mlp_ratios=[2, 2, 2, 2],
        depths=[1, 1, 1, 1], distillation=False,
    )  # fmt: skip
    return Trial(
        model,
        images,
        traced=square(2, 64),
        swept=(square(1, 64), square(2, 96), square(1, 224)),
        axes=({0: BATCH, 2: HEIGHT, 3: WIDTH},),
        reduced="four stages of 1 block, widths 32 to 96",
    )


@family("YuHengsss/MSVMamba", "classification/models/vmamba.VSSM")
def _msvmamba(root: Path) -> Trial:
    package_of("models", root / "classification" / "models")
    from models.vmamba import VSSM

    model = VSSM(
        depths=[1, 1, 1, 1], dims=[32, 64, 64, 96], num_classes=10, ssm_d_state=1, ssm_dt_rank="auto",
        ssm_ratio=2.0, ssm_conv=3, ssm_conv_bias=False, forward_type="v2", mlp_ratio=4.0,
        downsample_version="v3", patchembed_version="v2", sscore_type="multiscale_4scan_12",
        convFFN=True, add_se=True, ms_stage=[0, 1, 2, 3], ms_split=[1, 3], ffn_dropout=0.0,
    )  # fmt: skip
    return Trial(
        model,
        images,
        traced=square(2, 64),
        swept=(square(1, 64), square(2, 96), square(1, 224)),
        axes=({0: BATCH, 2: HEIGHT, 3: WIDTH},),
        reduced="multiscale_4scan_12, d_state 1; 4 blocks, widths 32 to 96",
    )


@family("xwmaxwma/TinyViM", "model.tinyvim.TinyViM")
def _tinyvim(root: Path) -> Trial:
    on_path(root)
    stand_in("timm.models.layers.helpers", to_2tuple=lambda one: (one, one))  # of older timm
    from model.tinyvim import TinyViM

    model = TinyViM(
        layers=[1, 1, 1, 1], embed_dims=[16, 32, 48, 64], downsamples=[True] * 4, num_classes=10
    )
    return Trial(
        model,
        images,
        traced=square(2, 128),
        swept=(square(1, 128), {"batch": 2, "height": 192, "width": 128}, square(1, 224)),
        axes=({0: BATCH, 2: multiples("height", 32, 32), 3: multiples("width", 32, 32)},),
        reduced="four stages of 1 block, widths 16 to 64",
    )
