"""The adapters' Mamba-2 functions and mixers against their documented definitions, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adapter_definitions as definitions
import numpy as np
import pytest
import torch
from cases import error
from torch import Tensor, nn

from mamba_export import adapters
from mamba_export.adapters import state_space, state_space_kernels
from mamba_export.models import checkpoints

FP32_BOUND = 1e-5
SIZES = [(1, 1, 1, 1, 1, 1), (2, 7, 6, 5, 3, 4), (1, 65, 4, 3, 1, 16), (3, 20, 2, 8, 2, 9)]
"""batch, length, heads, head_dim, groups, d_state."""
LIMITS = [(0.0, math.inf), (0.2, 0.9)]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    torch.manual_seed(0)
    with adapters.installed():
        yield


def ssd() -> Any:
    from mamba_ssm.ops.triton import ssd_combined

    return ssd_combined


def wide(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.detach().double().numpy() for t in tensors]


def assert_close(found: Tensor, exact: np.ndarray, bound: float = FP32_BOUND) -> None:
    assert found.shape == exact.shape
    assert error(found, torch.from_numpy(exact)) <= bound


def scan_inputs(
    batch: int, length: int, heads: int, width: int, groups: int, states: int
) -> dict[str, Any]:
    """The arguments of mamba_chunk_scan_combined by their names, but chunk_size."""
    return {
        "x": torch.randn(batch, length, heads, width),
        "dt": torch.randn(batch, length, heads),
        "A": -torch.exp(torch.randn(heads)),
        "B": torch.randn(batch, length, groups, states),
        "C": torch.randn(batch, length, groups, states),
        "D": torch.randn(heads),
        "z": torch.randn(batch, length, heads, width),
        "dt_bias": torch.randn(heads),
        "initial_states": torch.randn(batch, heads, width, states),
    }


@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("chunk_size", [1, 49, 256])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_chunk_scan(sizes: tuple[int, ...], chunk_size: int, limit: tuple[float, float]) -> None:
    inputs = scan_inputs(*sizes)
    y, last = ssd().mamba_chunk_scan_combined(
        **inputs, chunk_size=chunk_size, dt_softplus=True, dt_limit=limit, return_final_states=True
    )
    exact_y, exact_last = definitions.heads_scan(*wide(*inputs.values()), True, limit)
    assert_close(y, exact_y)
    assert_close(last, exact_last)
    if limit == LIMITS[0]:
        del inputs["initial_states"]
        exact, _ = definitions.heads_scan(*wide(*inputs.values()), None, True)
        for name in ("mamba_chunk_scan", "ssd_chunk_scan_combined_ref"):
            found = getattr(ssd(), name)(**inputs, chunk_size=chunk_size, dt_softplus=True)
            assert_close(found, exact)


@pytest.mark.parametrize("absent", ["D", "z", "dt_bias", "initial_states"])
def test_chunk_scan_without(absent: str) -> None:
    """Also: D of each channel, and steps of exactly 0, as a mask makes them."""
    inputs = scan_inputs(2, 9, 4, 3, 2, 5) | {"D": torch.randn(4, 3)} | {absent: None}
    inputs["dt"] = inputs["dt"].abs() * (torch.rand(2, 9, 4) > 0.3)
    if inputs["dt_bias"] is not None:
        inputs["dt_bias"] = inputs["dt_bias"].abs()
    y = ssd().mamba_chunk_scan_combined(**inputs, chunk_size=64)
    assert_close(y, definitions.heads_scan(*wide(*inputs.values()))[0])


def test_chunk_scan_in_mixed_dtypes() -> None:
    """x, B and C in bf16 beside fp32 steps: computed in fp32, y in x's dtype, the state in fp32."""
    inputs = scan_inputs(2, 33, 4, 8, 1, 16)
    for name in ("x", "B", "C", "z"):
        inputs[name] = inputs[name].bfloat16()
    y, last = ssd().mamba_chunk_scan_combined(
        **inputs, chunk_size=64, dt_softplus=True, return_final_states=True
    )
    exact_y, exact_last = definitions.heads_scan(*wide(*inputs.values()), True)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert_close(y, exact_y, 2 * torch.finfo(torch.bfloat16).eps)
    assert_close(last, exact_last)


def test_gradients_of_the_chunk_scan() -> None:
    """Against finite differences; and the private backward against autograd."""
    inputs = {n: t.double().requires_grad_() for n, t in scan_inputs(1, 4, 2, 2, 1, 3).items()}

    def scanned(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return ssd().mamba_chunk_scan_combined(
            **dict(zip(inputs, leaves, strict=True)), chunk_size=64, dt_softplus=True,
            dt_limit=(0.1, 1.5), return_final_states=True,
        )  # fmt: skip

    assert torch.autograd.gradcheck(scanned, tuple(inputs.values()))

    leaves = {n: t.requires_grad_() for n, t in scan_inputs(2, 9, 4, 3, 2, 5).items()}
    y, last = scanned(*leaves.values())
    dout, dlast = torch.randn_like(y), torch.randn_like(last)
    expected = torch.autograd.grad((y, last), tuple(leaves.values()), (dout, dlast))
    out, ungated, *_, final = ssd()._mamba_chunk_scan_combined_fwd(
        **leaves, chunk_size=64, dt_softplus=True, dt_limit=(0.1, 1.5)
    )
    torch.testing.assert_close(out, y)
    torch.testing.assert_close(final, last)
    torch.testing.assert_close(ungated * torch.nn.functional.silu(leaves["z"]), y)
    memory = torch.empty_like(leaves["x"])
    found = ssd()._mamba_chunk_scan_combined_bwd(
        dout, **leaves, out=out, chunk_size=64, dfinal_states=dlast, dt_softplus=True,
        dt_limit=(0.1, 1.5), dx=memory, recompute_output=True,
    )  # fmt: skip
    assert found[0] is memory
    for one, other in zip(found, [*expected, y], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("dtype", "scans"), [(torch.float32, 1), (torch.bfloat16, 2)], ids=str)
def test_the_private_forward_scans_once_where_rounding_allows(
    dtype: torch.dtype, scans: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results before and after the gate: of 16 bits each is rounded once, which takes a scan each."""
    inputs = {name: t.to(dtype) for name, t in scan_inputs(2, 40, 4, 8, 2, 16).items()}
    calls = []
    scan = state_space.scan_heads

    def counted(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        calls.append(args)
        return scan(*args, **options)

    monkeypatch.setattr(state_space, "scan_heads", counted)
    monkeypatch.setattr(state_space_kernels, "scan_heads", counted)
    out, ungated, *_, last = ssd()._mamba_chunk_scan_combined_fwd(
        **inputs, chunk_size=64, dt_softplus=True
    )
    assert len(calls) == scans
    exact_y, exact_last = definitions.heads_scan(*wide(*inputs.values()), True)
    bound = FP32_BOUND if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert_close(out, exact_y, bound)  # half a unit: rounded once
    assert_close(last, exact_last)
    exact_before = exact_y / nn.functional.silu(inputs["z"].double()).numpy()
    assert_close(ungated, exact_before, bound)
    with pytest.raises(ValueError, match="z has shape"):
        ssd()._mamba_chunk_scan_combined_fwd(
            **{**inputs, "z": inputs["z"][:, :1]}, chunk_size=64, dt_softplus=True
        )


def test_ssd_minimal() -> None:
    from mamba_ssm.modules.ssd_minimal import segsum, ssd_minimal_discrete

    x, B, C = torch.randn(2, 9, 3, 4), torch.randn(2, 9, 3, 5), torch.randn(2, 9, 3, 5)
    logs, start = -torch.rand(2, 9, 3), torch.randn(2, 1, 3, 4, 5)
    y, last = ssd_minimal_discrete(x, logs, B, C, 4, start)
    state, rows = start[:, 0].double(), []
    for t in range(9):
        state = state * logs[:, t].double().exp()[..., None, None]
        state = state + x[:, t].double()[..., None] * B[:, t].double()[..., None, :]
        rows.append((state * C[:, t].double()[..., None, :]).sum(-1))
    assert error(y, torch.stack(rows, 1)) <= FP32_BOUND
    assert error(last, state) <= FP32_BOUND
    sums = segsum(torch.tensor([1.0, 2.0, 4.0]))
    assert sums.tolist() == [[0, -math.inf, -math.inf], [2, 0, -math.inf], [6, 4, 0]]


def mixer_inputs(mlp: int, heads: int = 4, width: int = 3, groups: int = 2) -> dict[str, Any]:
    """The tensors of mamba_split_conv1d_scan_combined by their names."""
    inner, states = heads * width, 5
    channels = inner + 2 * groups * states
    return {
        "zxbcdt": torch.randn(2, 9, 2 * mlp + inner + channels + heads),
        "conv1d_weight": torch.randn(channels, 4),
        "conv1d_bias": torch.randn(channels),
        "dt_bias": torch.randn(heads),
        "A": -torch.exp(torch.randn(heads)),
        "D": torch.randn(heads),
    }


@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("mlp", [0, 6])
@pytest.mark.parametrize("norm", [None, "before the gate", "behind the gate"])
def test_split_mixer(norm: str | None, mlp: int, limit: tuple[float, float]) -> None:
    inputs, start = mixer_inputs(mlp), torch.randn(2, 4, 3, 5)
    weight, out, bias = torch.randn(12), torch.randn(7, mlp + 12), torch.randn(7)
    before = norm == "before the gate"
    y, last = ssd().mamba_split_conv1d_scan_combined(
        **inputs, chunk_size=64, initial_states=start, dt_limit=limit, return_final_states=True,
        rmsnorm_weight=None if norm is None else weight, rmsnorm_eps=1e-3, outproj_weight=out,
        outproj_bias=bias, headdim=3, ngroups=2, norm_before_gate=before,
    )  # fmt: skip
    of_norm = None if norm is None else (wide(weight)[0], 1e-3, 2, before)
    exact, exact_last = definitions.split_mixer(
        *wide(*inputs.values()), 3, 2, of_norm, True, limit, wide(start)[0]
    )
    assert_close(y, exact @ wide(out)[0].T + wide(bias)[0])
    assert_close(last, exact_last)


def test_split_mixer_with_channels_of_d_and_no_activation() -> None:
    inputs = mixer_inputs(0) | {"D": torch.randn(4, 3), "conv1d_bias": None}
    y = ssd().mamba_split_conv1d_scan_combined(**inputs, chunk_size=64, ngroups=2, activation=None)
    assert_close(y, definitions.split_mixer(*wide(*inputs.values()), 3, 2, None, False)[0])


def spread(module: nn.Module) -> nn.Module:
    """Parameters that start as one constant would hide an error: every one is moved."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def exact_mixer(mixer: Any, u: Tensor, norm_groups: int, start: Tensor | None = None) -> np.ndarray:
    """A whole mixer by the definition, from its parameters by the names that released checkpoints have."""
    weights = {name: wide(tensor)[0] for name, tensor in mixer.state_dict().items()}
    projected = wide(u)[0] @ weights["in_proj.weight"].T + weights.get("in_proj.bias", 0)
    D = weights["D"]
    norm = None
    if "norm.weight" in weights:
        norm = (weights["norm.weight"], 1e-5, norm_groups, mixer.norm.norm_before_gate)
    y, _ = definitions.split_mixer(
        projected, weights["conv1d.weight"][:, 0], weights.get("conv1d.bias"), weights["dt_bias"],
        -np.exp(weights["A_log"]), D.reshape(-1, mixer.headdim) if mixer.D_has_hdim else D,
        mixer.headdim, mixer.ngroups, norm, True, mixer.dt_limit, None if start is None else wide(start)[0],
    )  # fmt: skip
    return y @ weights["out_proj.weight"].T + weights.get("out_proj.bias", 0)


MIXERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "groups": {"ngroups": 2},
    "an MLP beside": {"d_ssm": 16, "ngroups": 2},
    "no norm": {"rmsnorm": False, "conv_bias": False, "bias": True},
    "norm before the gate": {"norm_before_gate": True, "D_has_hdim": True},
    "limits": {"dt_limit": (0.2, 0.9), "d_conv": 3, "chunk_size": 49},
}


@pytest.mark.parametrize("name", MIXERS)
def test_mamba2(name: str) -> None:
    from mamba_ssm import Mamba2

    options = MIXERS[name]
    mixer = spread(Mamba2(16, d_state=5, headdim=4, layer_idx=0, **options))
    u = torch.randn(2, 11, 16)
    exact = exact_mixer(mixer, u, options.get("ngroups", 1))
    assert_close(mixer(u), exact)
    assert_close(mixer(u.flatten(0, 1), seqlen=11), exact.reshape(22, 16))


@pytest.mark.parametrize("prompt", [1, 2, 6])
@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_mamba2_steps_are_the_whole(name: str, prompt: int) -> None:
    from mamba_ssm.modules.mamba2 import Mamba2
    from mamba_ssm.utils.generation import InferenceParams

    mixer = spread(Mamba2(16, d_state=5, headdim=4, layer_idx=3, **MIXERS[name]))
    u = torch.randn(2, 9, 16)
    states = InferenceParams(max_seqlen=9, max_batch_size=2)
    parts = [mixer(u[:, :prompt], inference_params=states)]
    for t in range(prompt, 9):
        states.seqlen_offset = t
        parts.append(mixer(u[:, t : t + 1], inference_params=states))
    assert error(torch.cat(parts, 1), mixer(u)) <= FP32_BOUND


@torch.no_grad()
def test_mamba2_in_bf16_keeps_its_states_in_bf16() -> None:
    from mamba_ssm import Mamba2

    mixer = Mamba2(16, d_state=5, headdim=4).bfloat16()
    states = mixer.allocate_inference_cache(2, 1)
    assert [tuple(state.shape) for state in states] == [(2, 42, 4), (2, 8, 4, 5)]
    out, *after = mixer.step(torch.randn(2, 1, 16).bfloat16(), *states)
    assert out.dtype == torch.bfloat16
    assert [state.dtype for state in after] == [torch.bfloat16] * 2
    assert after[1].abs().sum() > 0


def test_mamba2_has_the_parameters_of_released_checkpoints() -> None:
    from mamba_ssm import Mamba2
    from mamba_ssm.modules.mamba2_simple import Mamba2Simple

    names = {
        "dt_bias": (24,), "A_log": (24,), "D": (24,), "in_proj.weight": (3352, 768),
        "conv1d.weight": (1792, 1, 4), "conv1d.bias": (1792,), "norm.weight": (1536,),
        "out_proj.weight": (768, 1536),
    }  # fmt: skip
    for mixer in (Mamba2(768), Mamba2Simple(768, d_state=128, headdim=64)):
        assert {n: tuple(p.shape) for n, p in mixer.named_parameters()} == names
    assert all(getattr(mixer, name)._no_weight_decay for name in ("dt_bias", "A_log", "D"))
    dt = torch.nn.functional.softplus(mixer.dt_bias)
    assert 0.001 <= dt.min() <= dt.max() <= 0.1


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("learnt", [True, False])
def test_mamba2_simple(learnt: bool, fused: bool) -> None:
    """Its norm is a group's alone on the fused path, and of the whole width on the other one."""
    from mamba_ssm.modules.mamba2_simple import Mamba2Simple

    mixer = spread(
        Mamba2Simple(
            16,
            d_state=5,
            headdim=8,
            ngroups=2,
            learnable_init_states=learnt,
            use_mem_eff_path=fused,
        )
    )
    u = torch.randn(3, 7, 16)
    start = mixer.init_states.expand(3, -1, -1, -1) if learnt else None
    assert_close(mixer(u), exact_mixer(mixer, u, 2 if fused else 1, start))


def test_gradients_of_a_mixer() -> None:
    from mamba_ssm.modules.mamba2_simple import Mamba2Simple

    mixer = spread(Mamba2Simple(4, d_state=2, headdim=4, learnable_init_states=True).double())
    u = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in mixer.named_parameters()]

    def run(u: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, parameters, strict=True)), (u,))

    leaves = [p.detach().requires_grad_() for p in mixer.parameters()]
    assert torch.autograd.gradcheck(run, (u, *leaves))


ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {"causal": False},
    "shared keys": {"causal": True, "num_heads_kv": 2, "softmax_scale": 0.2},
    "rotary": {"causal": True, "rotary_emb_dim": 4, "num_heads_kv": 1},
    "interleaved": {"causal": True, "rotary_emb_dim": 2, "rotary_emb_interleaved": True},
    "of mamba2attn": {"causal": True, "d_conv": 4, "rotary_emb_dim": 4, "head_dim": 6},
    "an MLP beside": {"causal": True, "mlp_dim": 100, "qkv_proj_bias": False},
}


@pytest.mark.parametrize("name", ATTENTIONS)
@torch.no_grad()
def test_attention(name: str) -> None:
    from mamba_ssm.modules.mha import MHA

    options = ATTENTIONS[name]
    layer = spread(MHA(16, 4, **options))
    weights = {key: wide(tensor)[0] for key, tensor in layer.state_dict().items()}
    u, heads, width = torch.randn(2, 7, 16), 4, options.get("head_dim", 4)
    kept = options.get("num_heads_kv", heads)
    projected = wide(u)[0] @ weights["in_proj.weight"].T + weights.get("in_proj.bias", 0)
    qkv, value, gate = np.split(
        projected, [width * (heads + 2 * kept), (width * (heads + 2 * kept) + projected.shape[-1]) // 2], -1
    )  # fmt: skip
    if "d_conv" in options:
        qkv = definitions.causal_conv(
            qkv.transpose(0, 2, 1), weights["conv1d.weight"][:, 0], weights["conv1d.bias"], None, False
        ).transpose(0, 2, 1)  # fmt: skip
    parts = qkv.reshape(2, 7, -1, width)
    y = np.zeros((2, 7, heads * width))
    for b in range(2):
        for k in range(heads):
            shared = k // (heads // kept)
            q, key, v = (parts[b, :, i] for i in (k, heads + shared, heads + kept + shared))
            if turned := options.get("rotary_emb_dim"):
                interleaved = options.get("rotary_emb_interleaved", False)
                q, key = (definitions.rotate(one, turned, 1e4, interleaved) for one in (q, key))
            scale = options.get("softmax_scale", width**-0.5)
            y[b, :, k * width : (k + 1) * width] = definitions.attention(
                q, key, v, options["causal"], scale
            )
    y = np.concatenate([y, value * definitions.silu(gate)], -1)
    assert_close(layer(u), y @ weights["out_proj.weight"].T + weights["out_proj.bias"])


def language_model(**options: Any) -> Any:
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    config = MambaConfig(
        d_model=16, n_layer=3, vocab_size=40,
        ssm_cfg={"layer": "Mamba2", "d_state": 8, "headdim": 4}, **options,
    )  # fmt: skip
    return MambaLMHeadModel(config)


@pytest.mark.parametrize("name", [None, *(n for n, o in ATTENTIONS.items() if o["causal"])])
@torch.no_grad()
def test_language_model_steps_are_the_whole(name: str | None) -> None:
    """Mamba-2 layers, and an attention layer between two of them."""
    from mamba_ssm.utils.generation import InferenceParams

    options: dict[str, Any] = {}
    if name is not None:
        options = {"attn_layer_idx": [1], "attn_cfg": {"num_heads": 4, **ATTENTIONS[name]}}
    model = spread(language_model(**options))
    ids = torch.randint(0, 40, (2, 9))
    states = InferenceParams(max_seqlen=9, max_batch_size=2)
    parts = []
    for start, end in [(0, 3), *((t, t + 1) for t in range(3, 9))]:
        states.seqlen_offset = start
        parts.append(model(ids[:, start:end], inference_params=states).logits)
    assert error(torch.cat(parts, 1), model(ids).logits) <= FP32_BOUND
    assert model.generate(ids[:, :3], 6).shape == (2, 6)


@torch.no_grad()
def test_what_it_saves_is_a_checkpoint_of_state_spaces(tmp_path: Path) -> None:
    """Loaded by the package's own reader, whose model is another."""
    model = spread(language_model())
    model.save_pretrained(tmp_path / "out")
    ids = torch.randint(0, 40, (2, 17))
    logits, _ = checkpoints.load(tmp_path / "out").model(ids)
    assert error(logits, model(ids).logits) <= FP32_BOUND


def test_kernels_of_the_gated_norm() -> None:
    from mamba_ssm.ops.triton.layernorm_gated import (
        _layer_norm_bwd,
        _layer_norm_fwd,
        rms_norm_ref,
    )

    x, z, dy = torch.randn(3, 5, 12).unbind(0)
    weight = torch.randn(12)
    y, *_ = _layer_norm_fwd(x, weight, None, 1e-3, z, group_size=4, is_rms_norm=True)
    exact_y = definitions.gated_rms(*wide(x, z, weight), 1e-3, 3, True)
    assert_close(y, exact_y)
    assert_close(rms_norm_ref(x, weight, None, z, 1e-3, 4), exact_y)
    leaves = [t.double().requires_grad_() for t in (x, weight, z)]
    gate = torch.nn.functional.silu(leaves[2])
    parts = leaves[0].unflatten(-1, (3, 4))
    normed = parts / (parts.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    exact = torch.autograd.grad(normed.flatten(1) * leaves[1] * gate, leaves, dy.double())
    memory = torch.empty(5, 12)
    dx, dweight, dbias, dz, again = _layer_norm_bwd(
        dy, x, weight, None, 1e-3, None, None, z, group_size=4, is_rms_norm=True,
        recompute_output=True, dz=memory,
    )  # fmt: skip
    assert dbias is None
    assert dz is memory
    torch.testing.assert_close(again, y)
    for found, truth in zip((dx, dweight, dz), exact, strict=True):
        assert error(found, truth) <= FP32_BOUND


def _call(name: str, **changes: Any) -> None:
    getattr(ssd(), name)(**scan_inputs(2, 5, 4, 3, 2, 4) | {"chunk_size": 64} | changes)


def _mixer(name: str = "Mamba2", **options: Any) -> nn.Module:
    from mamba_ssm.modules import mamba2, mamba2_simple

    kind = {"Mamba2": mamba2.Mamba2, "Mamba2Simple": mamba2_simple.Mamba2Simple}[name]
    return kind(16, **{"headdim": 4, **options})


_INDICES = torch.zeros(2, 5, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: _call("mamba_chunk_scan_combined", seq_idx=_INDICES), "seq_idx"),
        (lambda: _call("mamba_chunk_scan_combined", return_varlen_states=True), "return_varlen_states"),
        (lambda: ssd().mamba_split_conv1d_scan_combined(
            **mixer_inputs(0), chunk_size=64, headdim=3, seq_idx=_INDICES), "seq_idx"),
        (lambda: ssd().mamba_split_conv1d_scan_combined(
            **mixer_inputs(0), chunk_size=64, headdim=3, ngroups=2, activation="gelu"), "gelu"),
        (lambda: _mixer()(torch.randn(2, 5, 16), seq_idx=_INDICES), "Mamba2 with seq_idx"),
        (lambda: _mixer()(torch.randn(2, 5, 16), cu_seqlens=_INDICES), "Mamba2 with cu_seqlens"),
        (lambda: _mixer(process_group=object()), "process_group"),
        (lambda: ssd()._chunk_state_fwd(), "_chunk_state_fwd"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(call: Any, named: str) -> None:
    with pytest.raises(NotImplementedError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _call("mamba_chunk_scan_combined", chunk_size=0), "chunk_size is 0, expected at least 1"),
        (lambda: _call("mamba_chunk_scan_combined", chunk_size=-1), "chunk_size is -1"),
        (lambda: _call("mamba_chunk_scan_combined", B=torch.randn(2, 5, 3, 4), C=torch.randn(2, 5, 3, 4)),
         "n_groups 3 .* does not divide heads 4"),
        (lambda: _mixer(chunk_size=0), "Mamba2: chunk_size is 0"),
        (lambda: _mixer("Mamba2Simple", chunk_size=0), "Mamba2Simple: chunk_size is 0"),
        (lambda: _mixer(headdim=5), "headdim 5 does not divide the width 32"),
        (lambda: _mixer(ngroups=3), "ngroups 3 does not divide the 8 heads"),
        (lambda: ssd().mamba_split_conv1d_scan_combined(**mixer_inputs(0), chunk_size=0), "chunk_size is 0"),
        (lambda: ssd().mamba_split_conv1d_scan_combined(**mixer_inputs(0), chunk_size=64),
         "headdim is missing"),
        (lambda: ssd().mamba_split_conv1d_scan_combined(**mixer_inputs(0), chunk_size=64, headdim=7),
         "do not fit a projection"),
        (lambda: __import__("mamba_ssm").modules.ssd_minimal.ssd_minimal_discrete(
            *[torch.randn(1, 4, 2, 3)] * 4, 0), "block_len is 0"),
        (lambda: __import__("mamba_ssm").modules.mha.MHA(16, 3), "num_heads 3 does not divide embed_dim 16"),
    ],
)  # fmt: skip
def test_bad_sizes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_transformers_computes_the_same_with_its_functions_from_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What transformers takes from mamba_ssm where that is installed, against its own PyTorch code."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    from transformers import Mamba2Config, Mamba2ForCausalLM
    from transformers.models.mamba2 import modeling_mamba2 as modeling

    config = Mamba2Config(
        hidden_size=16, num_hidden_layers=2, vocab_size=40, state_size=8, num_heads=8, head_dim=4,
        n_groups=2, chunk_size=8, time_step_limit=(0.01, 0.7),
    )  # fmt: skip
    model = spread(Mamba2ForCausalLM(config))
    ids = torch.randint(0, 40, (2, 19))

    def all_of_it() -> list[Tensor]:
        model.eval()
        with torch.no_grad():
            found = [
                model(ids).logits,
                model.generate(ids[:, :7], max_new_tokens=5, do_sample=False),
            ]
        model.train().zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        return [*found, loss, *(parameter.grad for parameter in model.parameters())]

    expected = [tensor.clone() for tensor in all_of_it()]
    calls: list[str] = []
    functions = {
        "mamba2_chunk_scan": ssd().mamba_chunk_scan_combined,
        "mamba2_split_conv1d_scan_combined": ssd().mamba_split_conv1d_scan_combined,
        "mamba2_selective_state_update": selective_state_update,
    }
    for name, function in functions.items():

        def counted(*args: Any, _name: str = name, _function: Any = function, **kwargs: Any) -> Any:
            calls.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(modeling, name, counted)
    for found, truth in zip(all_of_it(), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
    assert set(calls) == set(functions)
