"""``doctor OUT``: which kernel each call of a folder falls to, from the library's own choice."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mamba_export import contract
from mamba_export.cli import doctor, forms
from mamba_export.contract.names import DOMAIN
from mamba_export.errors import SessionError
from mamba_export.libraries import CUSTOM_OPS, KERNELS, TRT_PLUGIN
from mamba_export.verify.cases import Case, definition_of, dtype_of

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NEEDS_LIBRARY = pytest.mark.skipif(forms.library() is None, reason=forms.why_unknown())


def folder_of(folder: Path, dtype: str, *nodes: str, **sizes: int) -> Path:
    """A folder whose graph calls each node once, with these sizes; batch and length are dynamic."""
    made, inputs, outputs = [], [], []
    for number, node in enumerate(nodes):
        case = Case.of(node, **sizes)
        definition, form = definition_of(node)
        numbers = definition.spec.with_products(dict(case.sizes))
        names = {}
        for rows, values in ((form.inputs, inputs), (definition.spec.outputs, outputs)):
            for row in rows:
                shape = [
                    str(axis) if str(axis) in ("batch", "length") else size
                    for axis, size in zip(row.axes, row.shape(numbers), strict=True)
                ]
                names[row.name] = f"{row.name}_{number}"
                kind = TYPES[dtype_of(row, case, dtype)]
                values.append(helper.make_tensor_value_info(names[row.name], kind, shape))
        made.append(
            helper.make_node(
                node,
                [names[row.name] for row in form.inputs],
                [names[row.name] for row in definition.spec.outputs],
                domain=DOMAIN,
                **{name: value for name, value in case.attributes},
            )
        )
    graph = helper.make_graph(made, "graph", inputs, outputs)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(
        helper.make_model(graph, opset_imports=imports, ir_version=9),
        folder / contract.MODEL_FILE,
    )
    return folder


@NEEDS_LIBRARY
@pytest.mark.parametrize(
    ("dtype", "sizes", "expected"),
    [
        ("fp16", {"head_dim": 64, "d_state": 128}, {90: "hopper", 80: "mma", 75: "tile"}),
        ("bf16", {"head_dim": 128, "d_state": 64}, {90: "hopper", 120: "mma"}),
        ("fp16", {"head_dim": 64, "d_state": 256}, {90: "mma", 80: "mma"}),
        ("fp32", {"head_dim": 64, "d_state": 128}, {90: "tile", 80: "tile"}),
        ("fp16", {"head_dim": 10, "d_state": 128}, {90: "tile", 80: "tile"}),
        ("fp16", {"head_dim": 64, "d_state": 300}, {90: "any"}),
    ],
    ids=["usual", "wide", "many states", "fp32", "odd head_dim", "any d_state"],
)
def test_the_kernel_of_a_prompt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    sizes: dict[str, int],
    expected: dict[int, str],
) -> None:
    folder_of(tmp_path, dtype, "StateSpaceDual", **sizes)
    for architecture, form in expected.items():
        asked = {"that GPU": architecture}
        monkeypatch.setattr(forms, "architectures", lambda _functions, asked=asked: asked)
        [row] = doctor.kernels_of(tmp_path)
        assert row.state == "ok"
        assert f", {form} ({forms.FASTEST_FIRST[form]}) for a prompt" in row.detail, row
        assert f"head_dim {sizes['head_dim']}, d_state {sizes['d_state']}" in row.what


@NEEDS_LIBRARY
def test_a_head_dim_that_falls_to_another_kernel_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "architectures", lambda _: {"sm_75": 75, "sm_90": 90})
    folder_of(tmp_path, "fp16", "StateSpaceDual", head_dim=10, d_state=128)
    [row] = doctor.kernels_of(tmp_path)
    assert row.detail == (
        "sm_75: step for a token, tile (no tensor cores) for a prompt; "
        "sm_90: step for a token, tile (no tensor cores) for a prompt, "
        "which head_dim 10 falls to: 16 has mma"
    )


@NEEDS_LIBRARY
def test_forms_and_layers_have_rows_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "architectures", lambda _: {"sm_90": 90})
    nodes = ("StateSpaceDual", "StateSpaceDual", "StateSpaceDualWithDecay", "CausalConv1d")
    sizes = {"head_dim": 64, "d_state": 128}
    folder_of(tmp_path, "bf16", *nodes[:3], **sizes)
    twice, decayed = doctor.kernels_of(tmp_path)
    assert twice.what.endswith("x 2")
    assert "hopper" in twice.detail
    assert "mma" in decayed.detail, "the kernel of sm_90 takes no log_decay"
    folder_of(tmp_path, "bf16", "Mamba2Layer", d_model=64, group_heads=2, **sizes)
    [layer] = doctor.kernels_of(tmp_path)
    assert layer.what.startswith("Mamba2Layer bf16/fp32/fp32")
    assert "hopper" in layer.detail
    folder_of(tmp_path, "bf16", "CausalConv1d")
    assert doctor.kernels_of(tmp_path) == []


def test_without_a_library_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (CUSTOM_OPS, KERNELS, TRT_PLUGIN):
        monkeypatch.setenv(one.variable, "none")
    folder_of(tmp_path, "fp16", "StateSpaceDual")
    [row] = doctor.kernels_of(tmp_path)
    assert (row.state, row.detail) == ("absent", KERNELS.why_absent())


def test_a_folder_without_a_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=contract.MODEL_FILE):
        doctor.kernels_of(tmp_path)
