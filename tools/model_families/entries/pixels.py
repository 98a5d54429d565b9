"""Families whose result is an image: restoration, segmentation, change detection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from model_families.entries.classification import (
    BATCH,
    HEIGHT,
    WIDTH,
    images,
    multiples,
    square,
)
from model_families.family import Trial, definitions, family, on_path, package_of, stand_in


def _size(batch: int, height: int, width: int) -> dict[str, int]:
    return {"batch": batch, "height": height, "width": width}


def _mambair_packages(root: Path) -> None:
    package_of("basicsr", root / "basicsr")
    package_of("basicsr.archs", root / "basicsr" / "archs")
    package_of("basicsr.utils", root / "basicsr" / "utils")


@family("csguoh/MambaIR", "basicsr.archs.mambair_arch.MambaIR")
def _mambair(root: Path) -> Trial:
    _mambair_packages(root)
    from basicsr.archs.mambair_arch import MambaIR

    model = MambaIR(
        img_size=32, embed_dim=32, depths=(1, 1), d_state=16, upscale=2, upsampler="pixelshuffle"
    )
    return Trial(
        model,
        images,
        traced=_size(1, 24, 32),
        swept=(_size(2, 24, 32), _size(1, 40, 56), _size(1, 33, 17)),
        axes=({0: BATCH, 2: HEIGHT, 3: WIDTH},),
        reduced="super-resolution x2 (pixelshuffle), 2 groups of 1 block, width 32",
    )


def _without_noise(logits: Tensor, *_: Any, dim: int = -1, **__: Any) -> Tensor:
    """gumbel_softmax(hard=True) without its noise: the likeliest class."""
    return torch.nn.functional.one_hot(logits.argmax(dim), logits.shape[dim]).to(logits.dtype)


@family(
    "csguoh/MambaIR",
    "basicsr.archs.mambairv2_arch.MambaIRv2",
    name="MambaIRv2",
    note="Two choices of its eval mode are made definite, in PyTorch and in the file: in place of Gumbel "
    "noise, which differs from run to run, the likeliest class; in place of an unstable sort, a stable one.",
)
def _mambairv2(root: Path) -> Trial:
    _mambair_packages(root)
    stand_in(
        "basicsr.archs.arch_util",
        to_2tuple=lambda one: (one, one),
        trunc_normal_=torch.nn.init.trunc_normal_,
    )
    from basicsr.archs.mambairv2_arch import MambaIRv2

    torch.nn.functional.gumbel_softmax = _without_noise
    unstable = torch.sort
    setattr(  # noqa: B010 mypy holds torch's functions to be of one type
        torch, "sort", lambda values, **options: unstable(values, **{**options, "stable": True})
    )

    model = MambaIRv2(
        img_size=32, embed_dim=32, depths=(1, 1), num_heads=(2, 2), window_size=8, num_tokens=16,
        upscale=2, upsampler="pixelshuffle",
    )  # fmt: skip
    return Trial(
        model,
        images,
        traced=_size(1, 24, 32),
        swept=(_size(1, 40, 56), _size(1, 33, 17)),
        axes=({2: HEIGHT, 3: WIDTH},),
        reduced="super-resolution x2 (pixelshuffle), 2 groups of 1 block, width 32, windows of 8",
    )


@family("JCruan519/VM-UNet", "models.vmunet.vmamba.VSSM")
def _vmunet(root: Path) -> Trial:
    on_path(root / "models" / "vmunet")
    import vmamba

    model = vmamba.VSSM(
        depths=[1, 1], depths_decoder=[1, 1], dims=[16, 32], dims_decoder=[32, 16], num_classes=1
    )
    return Trial(
        model,
        images,
        traced=square(1, 32),
        swept=(square(2, 32), _size(1, 64, 96), square(1, 224)),
        axes=({0: BATCH, 2: multiples("height", 8, 64), 3: multiples("width", 8, 64)},),
        reduced="2 stages of 1 block down and up, widths 16 and 32",
    )


@family(
    "YubiaoYue/MedMamba",
    "MedMamba.VSSM",
    note="MedMamba.py calls .to('cuda') when it is imported, so a machine without CUDA cannot import it: its "
    "imports, functions and classes are taken, without the statements after them.",
)
def _medmamba(root: Path) -> Trial:
    module = definitions(root / "MedMamba.py", "MedMamba")
    model = module.VSSM(depths=[1, 1, 1, 1], dims=[16, 32, 64, 128], num_classes=6)
    return Trial(
        model,
        images,
        traced=square(2, 64),
        swept=(square(1, 64), _size(2, 96, 64), square(1, 224)),
        axes=({0: BATCH, 2: multiples("height", 32, 32), 3: multiples("width", 32, 32)},),
        reduced="4 blocks, widths 16 to 128",
    )


@family("ge-xing/SegMamba", "model_segmamba.segmamba.SegMamba")
def _segmamba(root: Path) -> Trial:
    on_path(root / "model_segmamba")
    from segmamba import SegMamba

    model = SegMamba(
        in_chans=2, out_chans=3, depths=[1, 1, 1, 1], feat_size=[48, 24, 24, 24], hidden_size=24
    )
    return Trial(
        model,
        lambda batch: (torch.randn(batch, 2, 32, 32, 32),),
        traced={"batch": 1},
        swept=({"batch": 2},),
        axes=({0: BATCH},),
        reduced="4 stages of 1 block (bimamba v3: three directions), widths 48 and 24, volumes of 32",
    )


@family("JiarunLiu/Swin-UMamba", "nnunetv2.nets.SwinUMamba.SwinUMamba")
def _swinumamba(root: Path) -> Trial:
    names = {"ConfigurationManager": object, "PlansManager": object}
    stand_in("nnunetv2.utilities.plans_handling.plans_handler", **names)
    on_path(root / "swin_umamba" / "nnunetv2" / "nets")
    import SwinUMamba

    class Small(
        SwinUMamba.VSSMEncoder
    ):  # the U-Net makes its encoder with the default depths and widths
        def __init__(self, **arguments: Any) -> None:
            super().__init__(depths=[1, 1, 1, 1], dims=[16, 32, 64, 128], **arguments)

    SwinUMamba.VSSMEncoder = Small
    model = SwinUMamba.SwinUMamba(
        in_chans=3, out_chans=3, feat_size=[8, 16, 32, 64, 128], hidden_size=128
    )
    return Trial(
        model,
        images,
        traced=square(1, 64),
        swept=(square(2, 64), square(1, 128)),
        axes=({0: BATCH, 2: multiples("height", 32, 16), 3: multiples("width", 32, 16)},),
        reduced="4 stages of 1 block, widths 16 to 128",
    )


@family("bowang-lab/U-Mamba", "nnunetv2.nets.UMambaBot_2d.UMambaBot")
def _umamba(root: Path) -> Trial:
    names = {"ConfigurationManager": object, "PlansManager": object}
    stand_in("nnunetv2.utilities.plans_handling.plans_handler", **names)
    stand_in("nnunetv2.utilities.network_initialization", InitWeights_He=object)
    on_path(root / "umamba" / "nnunetv2" / "nets")
    from UMambaBot_2d import UMambaBot

    model = UMambaBot(
        input_channels=3, n_stages=3, features_per_stage=[8, 16, 32], conv_op=torch.nn.Conv2d,
        kernel_sizes=[[3, 3]] * 3, strides=[[1, 1], [2, 2], [2, 2]], n_conv_per_stage=[1, 1, 1],
        num_classes=2, n_conv_per_stage_decoder=[1, 1], conv_bias=True, norm_op=torch.nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )  # fmt: skip
    return Trial(
        model,
        images,
        traced=square(1, 32),
        swept=(square(2, 32), _size(1, 48, 64)),
        axes=({0: BATCH, 2: multiples("height", 4, 128), 3: multiples("width", 4, 128)},),
        reduced="U-Mamba Bot in 2-D, 3 stages, widths 8 to 32",
    )


@family("ChenHongruixuan/ChangeMamba", "changedetection.models.ChangeMambaBCD.ChangeMambaBCD")
def _changemamba(root: Path) -> Trial:
    on_path(root)
    package_of("changedetection", root / "changedetection")
    package_of("changedetection.models", root / "changedetection" / "models")
    from changedetection.models.ChangeMambaBCD import ChangeMambaBCD

    model = ChangeMambaBCD(
        pretrained=None, depths=[1, 1, 1, 1], dims=16, ssm_d_state=1, ssm_ratio=2.0, ssm_rank_ratio=2.0,
        ssm_dt_rank="auto", ssm_act_layer="silu", ssm_conv=3, ssm_conv_bias=False, ssm_drop_rate=0.0,
        ssm_init="v0", forward_type="v3noz", mlp_ratio=4.0, mlp_act_layer="gelu", mlp_drop_rate=0.0,
        drop_path_rate=0.1, patch_norm=True, norm_layer="ln", downsample_version="v3",
        patchembed_version="v2", gmlp=False, use_checkpoint=False,
    )  # fmt: skip

    def two_images(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 3, height, width), torch.randn(batch, 3, height, width)

    return Trial(
        model,
        two_images,
        traced=square(1, 64),
        swept=(square(2, 64), square(3, 64)),
        axes=({0: BATCH},) * 2,
        reduced="binary change detection, 4 encoder blocks, widths 16 to 128",
    )


@family(
    "alexhe101/Pan-Mamba",
    "mamba_simple.Mamba",
    note="Its Net is for images of 1024 x 1024 alone (CrossMamba.forward has a view in the numbers "
    "128*8, 128*8): the cross-modal Mamba of CrossMamba is exported.",
)
def _panmamba(root: Path) -> Trial:
    on_path(root / "Mamba-block")
    from mamba_simple import Mamba  # its fork of mamba_ssm's file

    class Cross(torch.nn.Module):
        """As CrossMamba.forward calls it."""

        def __init__(self) -> None:
            super().__init__()
            self.cross_mamba = Mamba(32, bimamba_type="v3")

        def forward(self, ms: Tensor, pan: Tensor) -> Tensor:
            return self.cross_mamba(ms, extra_emb=pan)

    return Trial(
        Cross(),
        lambda batch, length: (torch.randn(batch, length, 32), torch.randn(batch, length, 32)),
        traced={"batch": 2, "length": 20},
        swept=({"batch": 1, "length": 7}, {"batch": 3, "length": 257}),
        axes=({0: BATCH, 1: Dim("length", min=2, max=4096)},) * 2,
        reduced="one block of bimamba type v3 with a second image's tokens, width 32",
    )
