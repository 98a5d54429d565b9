"""Families of sequences: speech, audio, time series, items, genomes, points, video."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from model_families.family import Trial, family, on_path, package_of, stand_in

BATCH = Dim("batch", max=64)
FRAMES = Dim("frames", min=4, max=4000)
LENGTH = Dim("length", min=2, max=4096)


@family("RoyChao19477/SEMamba", "models.generator.SEMamba")
def _semamba(root: Path) -> Trial:
    on_path(root)
    import yaml
    from models.generator import SEMamba

    recipe = min((root / "recipes").rglob("*.yaml"))
    config = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    config["model_cfg"] |= {"hid_feature": 16, "num_tfmamba": 1}
    bins = config["stft_cfg"]["n_fft"] // 2 + 1

    def spectra(batch: int, frames: int) -> tuple[Tensor, Tensor]:
        return torch.rand(batch, bins, frames), torch.randn(batch, bins, frames)

    return Trial(
        SEMamba(config),
        spectra,
        traced={"batch": 1, "frames": 20},
        swept=({"batch": 1, "frames": 33}, {"batch": 2, "frames": 101}),
        axes=({0: BATCH, 2: FRAMES}, {0: BATCH, 2: FRAMES}),
        reduced="1 time-frequency block, 16 features",
    )


@family("xi-j/Mamba-TasNet", "modules.mamba.bimamba.Mamba")
def _tasnet(root: Path) -> Trial:
    on_path(root)
    from modules.mamba.bimamba import Mamba

    return Trial(
        Mamba(32, bimamba_type="v2"),
        lambda batch, length: (torch.randn(batch, length, 32),),
        traced={"batch": 2, "length": 20},
        swept=({"batch": 1, "length": 7}, {"batch": 3, "length": 257}),
        axes=({0: BATCH, 1: LENGTH},),
        reduced="its bidirectional block, width 32; the separator around it is SpeechBrain's",
    )


@family(
    "JusperLee/SPMamba",
    "look2hear.models.SPMamba.GridNetBlock",
    note="The STFT and its complex tensors stay outside of the file; a block is exported.",
)
def _spmamba(root: Path) -> Trial:
    stand_in("torch_complex.functional")
    stand_in("torch_complex.tensor", ComplexTensor=type("ComplexTensor", (), {}))
    stand_in("look2hear.layers", Stft=object)
    package_of("look2hear", root / "look2hear")
    package_of("look2hear.models", root / "look2hear" / "models")
    package_of("look2hear.utils", root / "look2hear" / "utils")
    from look2hear.models.SPMamba import GridNetBlock

    model = GridNetBlock(
        emb_dim=16, emb_ks=4, emb_hs=1, n_freqs=33, hidden_channels=32, n_head=4, approx_qk_dim=64
    )
    return Trial(
        model,
        lambda batch, frames: (torch.randn(batch, 16, frames, 33),),
        traced={"batch": 1, "frames": 20},
        swept=({"batch": 2, "frames": 33}, {"batch": 1, "frames": 100}),
        axes=({0: BATCH, 2: FRAMES},),
        reduced="one block (Mamba over frequency and over time, attention), 16 channels, 33 bins",
    )


@family("kaistmm/Audio-Mamba-AuM", "src.models.mamba_models.AudioMamba")
def _aum(root: Path) -> Trial:
    stand_in("wget")
    for name, module in (
        ("src", root / "src"),
        ("src.models", root / "src" / "models"),
        ("src.utilities", root / "src" / "utilities"),
    ):
        package_of(name, module)
    from src.models.mamba_models import AudioMamba

    model = AudioMamba(
        spectrogram_size=(64, 128), patch_size=(16, 16), strides=(16, 16), depth=2, embed_dim=48,
        num_classes=10, bimamba_type="v2",
    )  # fmt: skip
    return Trial(
        model,
        lambda batch: (torch.randn(batch, 128, 64),),
        traced={"batch": 2},
        swept=({"batch": 1}, {"batch": 5}),
        axes=({0: BATCH},),
        reduced="Fo-Bi blocks (bimamba v2), 2 of them, width 48, spectrogram 64 x 128",
    )


@family("Atik-Ahamed/TimeMachine", "models.TimeMachine.Model")
def _timemachine(root: Path) -> Trial:
    on_path(root / "TimeMachine_supervised")
    from models.TimeMachine import Model

    config = SimpleNamespace(
        seq_len=96, pred_len=48, enc_in=7, n1=32, n2=16, dropout=0.0, revin=1, ch_ind=1, residual=1,
        dconv=2, e_fact=1, d_state=16,
    )  # fmt: skip
    return Trial(
        Model(config),
        lambda batch: (torch.randn(batch, 96, 7),),
        traced={"batch": 2},
        swept=({"batch": 1}, {"batch": 9}),
        axes=({0: BATCH},),
        reduced="96 steps of 7 series in, 48 out, widths 32 and 16",
    )


def _series(length: int, predicted: int) -> Any:
    """Arguments of the forecasters: past and future values, and their times."""
    return lambda batch: (
        torch.randn(batch, length, 7),
        torch.randn(batch, length, 4),
        torch.randn(batch, predicted, 7),
        torch.randn(batch, predicted, 4),
    )


@family("wzhwzhwzh0921/S-D-Mamba", "model.S_Mamba.Model")
def _sdmamba(root: Path) -> Trial:
    stand_in("reformer_pytorch", LSHSelfAttention=object)
    on_path(root)
    package_of("model", root / "model")
    from model.S_Mamba import Model

    config = SimpleNamespace(
        seq_len=24, pred_len=12, output_attention=False, use_norm=True, d_model=32, embed="timeF", freq="h",
        dropout=0.0, class_strategy="projection", d_state=2, d_ff=32, e_layers=2, activation="gelu",
    )  # fmt: skip
    return Trial(
        Model(config),
        _series(24, 12),
        traced={"batch": 2},
        swept=({"batch": 1}, {"batch": 9}),
        axes=({0: BATCH},) * 4,
        reduced="2 layers of two directions, d_state 2, width 32",
    )


@family("thuml/Time-Series-Library", "models.Mamba.Model")
def _tsl(root: Path) -> Trial:
    on_path(root)
    package_of("models", root / "models")
    from models.Mamba import Model

    config = SimpleNamespace(
        task_name="long_term_forecast", pred_len=12, d_model=32, d_ff=16, d_conv=4, expand=2, enc_in=7,
        c_out=7, embed="timeF", freq="h", dropout=0.0,
    )  # fmt: skip
    return Trial(
        Model(config),
        _series(24, 12),
        traced={"batch": 2},
        swept=({"batch": 1}, {"batch": 9}),
        axes=({0: BATCH},) * 4,
        reduced="one Mamba, width 32",
    )


class _SequentialRecommender(torch.nn.Module):
    """Of RecBole's base class, what a forward needs: the number of items and the last item's output."""

    def __init__(self, config: dict[str, Any], dataset: Any) -> None:
        super().__init__()
        self.n_items = dataset

    def gather_indexes(self, output: Tensor, index: Tensor) -> Tensor:
        index = index.view(-1, 1, 1).expand(-1, -1, output.shape[-1])
        return output.gather(dim=1, index=index).squeeze(1)


@family(
    "chengkai-liu/Mamba4Rec",
    "mamba4rec.Mamba4Rec",
    note="Of RecBole's base class a stand-in has what forward needs.",
)
def _mamba4rec(root: Path) -> Trial:
    stand_in("recbole.model.abstract_recommender", SequentialRecommender=_SequentialRecommender)
    stand_in("recbole.model.loss", BPRLoss=torch.nn.Identity)
    on_path(root)
    from mamba4rec import Mamba4Rec

    config = {
        "hidden_size": 32, "loss_type": "CE", "num_layers": 2, "dropout_prob": 0.2, "d_state": 32, "d_conv": 4,
        "expand": 2,
    }  # fmt: skip

    def items(batch: int, length: int) -> tuple[Tensor, Tensor]:
        return torch.randint(1, 100, (batch, length)), torch.randint(1, length + 1, (batch,))

    return Trial(
        Mamba4Rec(config, 100),
        items,
        traced={"batch": 2, "length": 50},
        swept=({"batch": 1, "length": 7}, {"batch": 5, "length": 200}),
        axes=({0: BATCH, 1: LENGTH}, {0: BATCH}),
        reduced="2 layers, width 32, d_state 32",
    )


@family(
    "kuleshov-group/caduceus",
    "caduceus.modeling_caduceus.CaduceusForMaskedLM",
    note="Its tie_weights is of transformers 4: the entry leaves out the arguments that 5 passes.",
)
def _caduceus(root: Path) -> Trial:
    on_path(root)
    package_of("caduceus", root / "caduceus")
    from caduceus.configuration_caduceus import CaduceusConfig
    from caduceus.modeling_caduceus import CaduceusForMaskedLM

    tie = CaduceusForMaskedLM.tie_weights
    CaduceusForMaskedLM.tie_weights = lambda self, **_: tie(self)
    config = CaduceusConfig(
        d_model=32, n_layer=2, vocab_size=16, rcps=True, complement_map={i: i ^ 1 for i in range(16)},
        bidirectional_strategy="add", pad_vocab_size_multiple=8,
    )  # fmt: skip
    return Trial(
        CaduceusForMaskedLM(config),
        lambda batch, length: (torch.randint(0, 16, (batch, length)),),
        traced={"batch": 2, "length": 20},
        swept=({"batch": 1, "length": 7}, {"batch": 3, "length": 300}),
        axes=({0: BATCH, 1: LENGTH},),
        reduced="Caduceus-PS (reverse complement, tied projections), 2 layers, width 32",
    )


@family(
    "LMD0311/PointMamba",
    "models.point_mamba_scan.MixerModel",
    note="Farthest points and nearest neighbours before the mixer are CUDA extensions "
    "(pointnet2_ops, knn_cuda); the mixer alone is exported.",
)
def _pointmamba(root: Path) -> Trial:
    stand_in("easydict", EasyDict=dict)
    stand_in("knn_cuda", KNN=object)
    stand_in("pointnet2_ops", pointnet2_utils=None)
    stand_in("extensions.chamfer_dist", ChamferDistanceL1=object, ChamferDistanceL2=object)
    stand_in("matplotlib.pyplot")
    stand_in("mpl_toolkits.mplot3d", Axes3D=object)
    on_path(root)
    package_of("models", root / "models")
    from models.point_mamba_scan import MixerModel

    return Trial(
        MixerModel(d_model=48, n_layer=2),
        lambda batch, tokens: (torch.randn(batch, tokens, 48), torch.randn(batch, tokens, 48)),
        traced={"batch": 2, "tokens": 128},
        swept=({"batch": 1, "tokens": 9}, {"batch": 3, "tokens": 256}),
        axes=({0: BATCH, 1: LENGTH}, {0: BATCH, 1: LENGTH}),
        reduced="its mixer over tokens in order, 2 layers, width 48",
    )


@family("OpenGVLab/VideoMamba", "videomamba.video_sm.models.videomamba.VisionMamba")
def _videomamba(root: Path) -> Trial:
    on_path(root / "videomamba" / "video_sm" / "models")
    import videomamba

    model = videomamba.VisionMamba(
        img_size=64, patch_size=16, depth=2, embed_dim=48, num_classes=10, num_frames=4
    )
    return Trial(
        model,
        lambda batch: (torch.randn(batch, 3, 4, 64, 64),),
        traced={"batch": 2},
        swept=({"batch": 1}, {"batch": 3}),
        axes=({0: BATCH},),
        reduced="VideoMamba's options (bimamba), 2 blocks, width 48, 4 frames of 64 x 64",
    )
