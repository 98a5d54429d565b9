"""The TensorRT plugin library through its public interface, with the harness in TensorRT's place.

Everything here runs without a GPU. TensorRT-RTX, where it is installed, loads the same library into its own
registry and builds engines with it.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from tensorrt_harness import driver
from tensorrt_harness.described import (
    CLASSES,
    DYNAMIC,
    FORMS,
    OPERATORS,
    SIGNATURES,
    T_TYPES,
    VERSION,
    WIDTHS,
    attributes_of,
    described,
    fields,
    flags_of,
    names,
    right_types,
    text_of,
    type_of,
    types_of_nodes,
    width_of,
)
from tensorrt_harness.driver import BUILD, RUNTIME, Field, Harness, Plugin, Tensor

from mamba_export import contract
from mamba_export.contract import spec
from mamba_export.contract.operators import GATED_RMS_NORM
from mamba_export.export.functions import function_protos
from mamba_export.libraries import TRT_PLUGIN

SCAN, CONV = contract.SELECTIVE_SCAN.name, contract.CAUSAL_CONV1D.name
DUAL = contract.STATE_SPACE_DUAL.name
ALL_TYPES = range(11)
BUILD_IN_RTX = Path(driver.__file__).parent / "build_in_rtx.py"
OPSET = 20

pytestmark = pytest.mark.skipif(not driver.is_built(), reason=driver.NOT_BUILT)


@pytest.fixture(params=[10, 11], ids=["TensorRT 10", "TensorRT 11"])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    plugin, library = TRT_PLUGIN.path(), driver.harness_path()
    assert plugin
    assert library
    opened = Harness(library, plugin, request.param)
    yield opened
    assert opened.log() == "", "a test that provokes an error reads it"


def make(harness: Harness, op: str, **values: int) -> Plugin:
    plugin = harness.create(op, fields(op, **values))
    assert plugin, harness.log()
    return plugin


# --- What the library offers -----------------------------------------------------------------------


def test_the_creators_are_the_contract_s(harness: Harness) -> None:
    assert harness.names == list(OPERATORS)
    for index, op in enumerate(OPERATORS):
        texts = [harness.creator_text(index, part) for part in range(1, 4)]
        expected = [contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE, "PLUGIN CREATOR_V3ONE"]
        assert texts == expected
        assert harness.creator_fields(index) == [
            (one.name, type_of(one)) for one in attributes_of(op)
        ]


@pytest.mark.parametrize("op", OPERATORS)
def test_what_a_plugin_says_of_itself(harness: Harness, op: str) -> None:
    chosen = {flags_of(op)[-1]: 1}
    plugin = make(harness, op, **chosen)
    texts = [plugin.text(part) for part in range(8)]
    assert texts[:3] == [op, contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE]
    assert texts[3] == texts[4] == text_of(op, **chosen)
    assert texts[5:] == ["PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME"]


def test_it_needs_no_tensorrt_and_no_cuda_library() -> None:
    listed = subprocess.run(
        ["readelf", "-d", str(TRT_PLUGIN.path())], capture_output=True, text=True, check=False
    ).stdout
    needed = [
        line.split("[")[1].split(".so")[0] for line in listed.splitlines() if "NEEDED" in line
    ]
    assert needed
    of_glibc = {"libc", "libm", "libdl", "libpthread", "librt"}
    assert not [name for name in needed if name not in of_glibc and not name.startswith("ld-")]


# --- Fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPERATORS)
def test_an_engine_gives_back_the_same_plugin(harness: Harness, op: str) -> None:
    for values in itertools.product((0, 1), repeat=len(flags_of(op))):
        chosen = dict(zip(flags_of(op), values, strict=True))
        plugin = make(harness, op, **chosen)
        written = plugin.fields()
        assert written == [VERSION, *fields(op, **chosen)]
        other_order = [VERSION, *fields(op, **chosen)[::-1]]  # of engines written before
        engines = (harness.create(op, values, RUNTIME) for values in (written, other_order))
        for again in (plugin.clone(), plugin.reload(), *engines):
            assert again
            assert again.fields() == written
        clone = plugin.clone()
        del plugin  # a clone stands alone
        assert clone
        assert clone.fields() == written


ONE_INT32 = "expected one INT32"
# Of each the fields, and what is said of them; {flag} is the operator's last attribute, a flag.
BAD_FIELDS: dict[str, tuple[Callable[[str], list[Field] | None], str]] = {
    "none": (lambda op: None, "there are no fields"),
    "unknown": (
        lambda op: [*fields(op), Field("chunk", 1)],
        "field chunk is unknown: {all} and contract_version are known",
    ),
    "another operator's": (
        lambda op: [*fields(op), Field("silu" if op != CONV else "delta_softplus", 1)],
        "is unknown",
    ),
    "last missing": (lambda op: fields(op)[:-1], "field {flag} is missing"),
    "first missing": (lambda op: fields(op)[1:], "field {first} is missing"),
    "twice": (lambda op: [*fields(op), fields(op)[-1]], "field {flag} is given twice"),
    "value": (
        lambda op: fields(op, **{flags_of(op)[-1]: 2}),
        "field {flag} is 2, expected 0 or 1",
    ),
    "negative": (
        lambda op: fields(op, **{flags_of(op)[-1]: -1}),
        "field {flag} is -1, expected 0 or 1",
    ),
    "float": (
        lambda op: [*fields(op)[:-1], Field(flags_of(op)[-1], 1.0, driver.FIELD_FLOAT32)],
        f"field {{flag}} has type 1 and length 1, {ONE_INT32}",
    ),
    "int64": (
        lambda op: [*fields(op)[:-1], Field(flags_of(op)[-1], 1, driver.FIELD_INT64)],
        ONE_INT32,
    ),
    "two values": (lambda op: [*fields(op)[:-1], replace(fields(op)[-1], length=2)], ONE_INT32),
    "no value": (lambda op: [*fields(op)[:-1], Field(flags_of(op)[-1], None)], ONE_INT32),
    "version": (
        lambda op: [*fields(op), Field("contract_version", 2)],
        "the engine has version 2 of this operator, the library has version 1",
    ),
}
BAD_FLOATS = {math.nan: "nan", math.inf: "inf", -1.0: "-1.0"}


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("phase", [BUILD, RUNTIME], ids=["build", "runtime"])
@pytest.mark.parametrize(("bad", "message"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_bad_fields_are_refused(
    harness: Harness,
    op: str,
    phase: int,
    bad: Callable[[str], list[Field] | None],
    message: str,
) -> None:
    given = bad(op)
    if given is not None and phase == RUNTIME and "version" not in message:
        given.append(VERSION)
    assert harness.create(op, given, phase, layer="layers.3") is None
    log = harness.log()
    assert log.startswith(f'mamba_export {op} "layers.3": ')
    own = [one.name for one in attributes_of(op)]
    assert message.format(flag=own[-1], first=own[0], all=", ".join(own)) in log
    assert "\n" not in log


@pytest.mark.parametrize("op", OPERATORS)
def test_floats_that_no_kernel_can_take_are_refused(harness: Harness, op: str) -> None:
    for one in attributes_of(op):
        if type_of(one) != driver.FIELD_FLOAT32:
            continue
        for number, text in BAD_FLOATS.items():
            bad = [
                replace(field, value=number) if field.name == one.name else field
                for field in fields(op)
            ]
            assert harness.create(op, bad) is None
            assert f"{one.name} is {text}" in (log := harness.log())
            assert "expected a finite number of at least 0" in log


@pytest.mark.parametrize("op", OPERATORS)
def test_an_engine_must_name_the_contract_s_version(harness: Harness, op: str) -> None:
    assert harness.create(op, fields(op), RUNTIME) is None
    assert "field contract_version is missing" in harness.log()


# --- Types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPERATORS)
def test_exactly_the_contract_s_types_are_accepted(harness: Harness, op: str) -> None:
    """At every position, every type, given every right choice of the types before it."""
    plugin, form = make(harness, op), FORMS[op][1]
    count = len(form.inputs)
    for T, R in types_of_nodes(op):
        inputs, outputs = described(op, T, R)
        right = [*inputs, *outputs]
        for position, name in enumerate(names(op)):
            for found in ALL_TYPES:
                tensors = [*right]
                tensors[position] = replace(right[position], type=found)
                right_types = right_types_at(op, position, T, R)
                expected = found in right_types
                assert plugin.supports(position, tensors, count) == expected, (name, T, R, found)
            for other_format in range(1, 13):
                tensors = [*right]
                tensors[position] = replace(right[position], format=other_format)
                assert not plugin.supports(position, tensors, count)


def right_types_at(op: str, position: int, T: int, R: int) -> tuple[int, ...]:
    """Of a tensor, given those before it: the first of a class is free in what the class allows."""
    name = names(op)[position]
    kind = CLASSES[op][name]
    is_first = all(CLASSES[op][before] != kind for before in names(op)[:position])
    if is_first and kind == spec.T:
        return T_TYPES
    if is_first and kind in (spec.R, spec.S):
        return (driver.FLOAT, T)
    return right_types(op, name, T, R)


@pytest.mark.parametrize("op", OPERATORS)
def test_combinations_of_types_as_a_whole(harness: Harness, op: str) -> None:
    """Of all combinations of fp32, fp16, bf16 and int32, TensorRT would keep the contract's."""
    plugin = make(harness, op)
    inputs, outputs = described(op)
    count, tensors = len(inputs), [*inputs, *outputs]
    partial: list[list[int]] = [[]]
    for position in range(len(tensors)):  # as TensorRT does: position by position
        longer = [[*types, found] for types in partial for found in (*T_TYPES, driver.INT32)]
        partial = [
            types
            for types in longer
            if plugin.supports(
                position,
                [replace(t, type=k) for t, k in zip(tensors, [*types, *[0] * 20], strict=False)],
                count,
            )
        ]
    assert sorted(partial) == sorted(
        [t.type for part in described(op, T, R) for t in part] for T, R in types_of_nodes(op)
    )


@pytest.mark.parametrize("op", OPERATORS)
def test_wrong_counts_and_positions_are_refused(harness: Harness, op: str) -> None:
    plugin = make(harness, op)
    inputs, outputs = described(op)
    both, count = [*inputs, *outputs], len(inputs)
    assert not plugin.supports(-1, both, count)
    assert not plugin.supports(len(both), both, count)
    assert not plugin.supports(0, both, count - 1)
    assert plugin.output_types(inputs[:-1]) is None
    made = len(outputs)
    counts = f"it has {count - 1} inputs and {made} outputs, expected {count} and {made}"
    assert counts in harness.log()
    assert plugin.configure(inputs[:-1], outputs) != 0
    assert "expected" in harness.log()


@pytest.mark.parametrize("op", OPERATORS)
def test_types_of_the_outputs(harness: Harness, op: str) -> None:
    plugin = make(harness, op)
    for T, R in types_of_nodes(op):
        inputs, outputs = described(op, T, R)
        assert plugin.output_types(inputs) == [output.type for output in outputs]
        for position, name in enumerate(SIGNATURES[op][0]):
            wrong = [*inputs]
            wrong[position] = replace(inputs[position], type=driver.INT64)
            assert plugin.output_types(wrong) is None
            assert f"mamba_export {op} " in (log := harness.log())
            if position == 0:
                assert f"{name} has TensorRT's data type 8, expected fp32, fp16 or bf16" in log
            elif CLASSES[op][name] != spec.T:
                assert f"{name} has TensorRT's data type 8, expected fp32" in log


def test_the_text_names_the_type_that_t_has(harness: Harness) -> None:
    inputs, _ = described(SCAN, driver.HALF)
    inputs[1] = replace(inputs[1], type=driver.BF16)
    assert make(harness, SCAN).output_types(inputs) is None
    assert "delta has bf16, expected fp16, as u has" in harness.log()
    inputs, _ = described(DUAL, driver.HALF)
    inputs[-1] = replace(inputs[-1], type=driver.BF16)
    assert make(harness, DUAL).output_types(inputs) is None
    assert "initial_state has bf16, expected fp32 or fp16, as x has" in harness.log()


# --- Shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPERATORS)
def test_shapes_of_the_outputs(harness: Harness, op: str) -> None:
    plugin = make(harness, op)
    inputs, outputs = described(op)
    assert plugin.output_shapes(inputs) == [output.shape for output in outputs]
    inputs, _ = described(op, **DYNAMIC)
    # The first two dynamic sizes are those of the first input; the last one is the state's batch.
    dynamic = sum(size < 0 for tensor in inputs for size in tensor.shape)
    y, *state = plugin.output_shapes(inputs) or ((),)
    assert y == (-1, -2, *inputs[0].shape[2:])
    assert state == [(-dynamic, *inputs[-1].shape[1:])] * (len(outputs) - 1)


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op in OPERATORS for name in SIGNATURES[op][0]]
)
@pytest.mark.parametrize("when", ["shapes", "configure", "run"])
def test_a_wrong_size_or_rank_names_the_tensor(
    harness: Harness, op: str, name: str, when: str
) -> None:
    plugin = make(harness, op)
    inputs, outputs = described(op)
    position = SIGNATURES[op][0].index(name)
    refused = {
        "shapes": lambda wrong: plugin.output_shapes(wrong) is None,
        "configure": lambda wrong: plugin.configure(wrong, outputs) != 0,
        "run": lambda wrong: plugin.shape_change(wrong, outputs) != 0,
    }[when]
    assert not refused(inputs)
    shape = inputs[position].shape
    for bad in (shape[:-1], (*shape, 1), (shape[0] + 1, *shape[1:])):
        wrong = [*inputs]
        wrong[position] = replace(inputs[position], shape=bad)
        assert refused(wrong)
        log = harness.log()
        if position == 0 and len(bad) == len(shape):  # it sets the sizes: a later tensor differs
            assert "has shape" in log
        else:
            assert f": {name} has shape {list(bad)}, expected (" in log


def test_the_text_says_what_was_expected(harness: Harness) -> None:
    plugin = make(harness, SCAN)
    inputs, outputs = described(SCAN, n_groups=3)
    assert plugin.shape_change(inputs, outputs) != 0
    assert "B has n_groups 3, which does not divide d_inner 8" in harness.log()
    for name, expected in {"length": "length is 0", "batch": "batch is 0"}.items():
        inputs, outputs = described(SCAN, **{name: 0})
        assert plugin.shape_change(inputs, outputs) != 0
        assert f"{expected}, expected at least 1" in harness.log()
    inputs, outputs = described(CONV)
    inputs[3] = replace(inputs[3], shape=(2, 8, 2))
    assert make(harness, CONV).shape_change(inputs, outputs) != 0
    expected = "expected (batch = 2, channels = 8, d_conv - 1 = 3)"
    assert f"initial_state has shape [2, 8, 2], {expected}" in harness.log()


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("d_state", [1, 8, 16, 64, 256])
@pytest.mark.parametrize("n_groups", [1, 2, 8])
def test_every_size_of_the_contract_is_taken(
    harness: Harness, op: str, d_state: int, n_groups: int
) -> None:
    plugin = make(harness, op)
    for sizes in (DYNAMIC, {"batch": 3, "length": 1000}):
        inputs, outputs = described(op, d_state=d_state, n_groups=n_groups, **sizes)
        assert plugin.configure(inputs, outputs) == 0
        assert plugin.output_shapes(inputs)


@pytest.mark.parametrize("op", OPERATORS)
def test_the_workspace_of_the_largest_shape_serves_the_smaller(harness: Harness, op: str) -> None:
    plugin = make(harness, op)
    for width, d_state in itertools.product((8, 256, 1536), (1, 16, 256)):
        sizes = {width_of(op): width, "d_state": d_state, "n_groups": 1}

        def needed(batch: int, length: int, sizes: dict[str, int] = sizes) -> int:
            inputs, outputs = described(op, batch=batch, length=length, **sizes)
            return plugin.workspace(inputs, outputs)

        most = needed(16, 4096)
        assert all(needed(b, n) <= most for b in (1, 2, 5, 16) for n in (1, 63, 1000, 4096))
        assert op not in (CONV, GATED_RMS_NORM.name) or most == 0


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("rank", [-(2**31), -1, 0, 5, 6, 7, 8, 9, 100, 2**31 - 1])
def test_a_number_of_axes_that_no_tensor_of_ours_has(harness: Harness, op: str, rank: int) -> None:
    """Every call that reads shapes, for every input; a Dims has room for 8 axes, a row for 4."""
    plugin = make(harness, op)
    inputs, outputs = described(op)
    memory = torch.zeros(64)
    data = [memory.data_ptr()] * len(inputs)
    results = [memory.data_ptr()] * len(outputs)
    for position, name in enumerate(SIGNATURES[op][0]):
        wrong = [*inputs]
        shape = (*inputs[position].shape, *[1] * 8)[: max(0, min(rank, 8))]
        wrong[position] = replace(inputs[position], shape=shape, rank=rank)
        fits = 0 <= rank <= 8
        answers = {
            "shapes": lambda wrong=wrong: plugin.output_shapes(wrong) is None,
            "configure": lambda wrong=wrong: plugin.configure(wrong, outputs) != 0,
            "change": lambda wrong=wrong: plugin.shape_change(wrong, outputs) != 0,
            "workspace": lambda wrong=wrong: plugin.workspace(wrong, outputs) == 0,
            "run": lambda wrong=wrong: plugin.enqueue(wrong, outputs, data, results) != 0,
        }
        for call, is_refused in answers.items():
            assert is_refused(), (call, name)
            expected = (
                f"has shape {list(shape)}, expected ("
                if fits
                else f"has {rank} axes, expected 0 to 8"
            )
            assert f": {name} {expected}" in (log := harness.log()), call
            assert "\n" not in log
        assert plugin.supports(position, [*wrong, *outputs], len(inputs)), "it reads types alone"


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("size", [-(2**63), -2, 2**31, 2**62, 2**63 - 1])
def test_sizes_that_no_number_of_bytes_holds(harness: Harness, op: str, size: int) -> None:
    """The workspace is of no more than sizes that run; a call is refused, or fails for want of a GPU."""
    plugin = make(harness, op)
    inputs, outputs = described(op)
    for position, tensor in enumerate(inputs):
        for axis in range(len(tensor.shape)):
            wrong = [*inputs]
            shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
            wrong[position] = replace(tensor, shape=shape)
            assert 0 <= plugin.workspace(wrong, outputs) <= 1 << 30
            plugin.configure(wrong, outputs)
            plugin.shape_change(wrong, outputs)
            harness.log()


def test_names_from_a_model_stay_one_line_of_the_log(harness: Harness) -> None:
    bad = [*fields(CONV), Field("a\nb\x1b[31m", 1)]
    assert harness.create(CONV, bad, layer="x\r\ny") is None
    assert 'CausalConv1d "x??y": field a?b?[31m is unknown' in harness.log()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("op", OPERATORS)
def test_without_a_gpu_running_is_refused_with_the_reason(harness: Harness, op: str) -> None:
    plugin = make(harness, op)
    assert plugin.attach() is None
    assert "CUDA" in harness.log()
    inputs, outputs = described(op)
    memory = torch.zeros(1 << 16)
    data = [memory.data_ptr()] * len(inputs)
    results = [memory.data_ptr()] * len(outputs)
    assert plugin.enqueue(inputs, outputs, data, results, memory.data_ptr()) != 0
    assert harness.log().startswith(f'mamba_export {op} "a layer": ')


# --- In TensorRT-RTX, which needs no GPU to build --------------------------------------------------


@pytest.fixture
def build_in_rtx(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Builds a graph of one node in a process of its own: TensorRT-RTX can end one."""
    library = driver.rtx_core()
    if library is None:
        pytest.skip(driver.RTX_ABSENT)
    # The parser opens the unversioned name when it meets a plugin, and ends the process without it.
    (tmp_path / "libtensorrt_rtx.so").symlink_to(library)
    path = os.pathsep.join([str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")])

    def build(op: str, inputs: list[Tensor], **attributes: int) -> dict[str, Any]:
        model = tmp_path / "model.onnx"
        model.write_bytes(one_node(op, inputs, attributes))
        low = [[1 if size < 0 else size for size in t.shape] for t in inputs]
        # Batch 4; the length is the dynamic size of the second axis.
        high = [
            [(4 if axis == 0 else 300) if size < 0 else size for axis, size in enumerate(t.shape)]
            for t in inputs
        ]
        request = {
            "library": str(TRT_PLUGIN.path()),
            "model": str(model),
            "ranges": list(zip(low, high, strict=True)),
        }
        run = subprocess.run(
            [sys.executable, str(BUILD_IN_RTX), json.dumps(request)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "LD_LIBRARY_PATH": path},
        )
        assert run.returncode == 0, run.stderr[-2000:]
        return json.loads(run.stdout.splitlines()[-1])

    return build


ONNX_TYPES = {
    driver.FLOAT: TensorProto.FLOAT,
    driver.HALF: TensorProto.FLOAT16,
    driver.BF16: TensorProto.BFLOAT16,
    driver.INT32: TensorProto.INT32,
}


def one_node(op: str, inputs: list[Tensor], values: dict[str, int]) -> bytes:
    """A graph of one node straight on graph inputs, with the operator's function."""
    input_names, output_names = SIGNATURES[op]
    attributes = {field.name: field.value for field in fields(op, **values)}
    marks = {"plugin_version": contract.PLUGIN_VERSION, "plugin_namespace": contract.DOMAIN}
    node = helper.make_node(
        op, input_names, output_names, domain=contract.DOMAIN, **marks, **attributes
    )
    described_inputs = [
        helper.make_tensor_value_info(
            name,
            ONNX_TYPES[t.type],
            [f"{name}_{axis}" if size < 0 else size for axis, size in enumerate(t.shape)],
        )
        for name, t in zip(input_names, inputs, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(name, ONNX_TYPES[inputs[source].type], None)
        for name, source in zip(output_names, (0, -1), strict=False)
    ]
    model = helper.make_model(
        helper.make_graph([node], "one_node", described_inputs, outputs),
        ir_version=10,
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid(contract.DOMAIN, contract.CONTRACT_VERSION),
        ],
        functions=[f for f in function_protos(OPSET) if f.name == op],
    )
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        (op, dtype)
        for op in OPERATORS
        for dtype in contract.DTYPES
        # Forms that lack inputs differ in nothing else.
        if op in WIDTHS or dtype == "fp16"
    ],
)
def test_tensorrt_rtx_builds_an_engine_with_the_plugin(
    build_in_rtx: Callable[..., dict[str, Any]], op: str, dtype: str
) -> None:
    inputs, outputs = described(op, driver.TYPES[dtype], **DYNAMIC)
    answer = build_in_rtx(op, inputs, **{flags_of(op)[-1]: 1})
    assert {tuple(creator) for creator in answer["creators"]} == {
        (name, contract.PLUGIN_VERSION) for name in OPERATORS
    }
    assert answer["plugins"] == 1, "the plugin is taken and not the function"
    types = {driver.FLOAT: "FLOAT", driver.HALF: "HALF", driver.BF16: "BF16"}
    assert answer["outputs"] == [
        [f"DataType.{types[output.type]}", list(output.shape)] for output in outputs
    ]
    assert answer["bytes"] > 0, answer["errors"]
    assert answer["has_fields"], "the engine holds the plugin's fields"


def test_tensorrt_rtx_passes_our_reasons_on(
    build_in_rtx: Callable[..., dict[str, Any]],
) -> None:
    inputs, _ = described(SCAN)
    three_groups, _ = described(SCAN, n_groups=3)
    wrong_type = [*inputs]
    wrong_type[3] = replace(inputs[3], type=driver.INT32)
    for answer, reason in (
        (build_in_rtx(SCAN, inputs, reverse=5), "field reverse is 5, expected 0 or 1"),
        (
            build_in_rtx(SCAN, wrong_type),
            "B has TensorRT's data type 3, expected fp32, as u has",
        ),
        (build_in_rtx(SCAN, three_groups), "n_groups 3, which does not divide d_inner 8"),
    ):
        assert answer["bytes"] == 0
        ours = [error for error in answer["errors"] if "mamba_export SelectiveScan" in error]
        assert any(reason in error for error in ours), answer["errors"]
