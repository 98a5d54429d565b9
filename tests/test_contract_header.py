"""The C and C++ side of the contract: generated from the rows, checked in, and laid out as Python packs it."""

from __future__ import annotations

import ctypes
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from c_header import FOLDER, header_text, mirror

from mamba_export.contract import OPERATORS, layout
from mamba_export.contract.spec import (
    FP32,
    Attribute,
    Operator,
    Size,
    T,
    Tensor,
    axes,
    packed_input,
)
from mamba_export.contract.weights import CODES, PARTS, SCALES, ZERO_POINTS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import generate_contract  # noqa: E402

COMPILER = shutil.which("c++") or shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
IN_TABLE = [op for op in OPERATORS if op.kernels]
BY_NAME = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)


@pytest.mark.parametrize("name", generate_contract.FILES)
def test_what_is_checked_in_is_what_the_rows_give(name: str) -> None:
    text = generate_contract.FILES[name]()
    assert (ROOT / name).read_text() == text, "run tools/generate_contract.py"


def compiled(folder: Path, program: str, *more: str) -> Path:
    """A program, with more sources, that includes the headers of the contract and of the kernels."""
    source, binary = folder / "program.cpp", folder / "program"
    source.write_text(program)
    command = [str(COMPILER), "-std=c++17", "-Wall", "-Werror", f"-I{FOLDER}"]
    command += [f"-I{ROOT / 'plugins/contract'}", str(source), *more, "-o", str(binary)]
    subprocess.run(command, check=True)
    return binary


def output_of(binary: Path, *arguments: str) -> str:
    return subprocess.run(
        [str(binary), *arguments], check=True, capture_output=True, text=True
    ).stdout


@needs_compiler
def test_a_c_compiler_lays_the_structs_out_as_python_packs_them(tmp_path: Path) -> None:
    rows = [
        f'    printf("{op.name} %zu", sizeof({layout.stem(op)}_params));'
        + "".join(
            f'    printf(" %zu", offsetof({layout.stem(op)}_params, {field.name}));'
            for field in layout.fields(op)
        )
        + '    printf("\\n");'
        for op in OPERATORS
    ]
    includes = '#include <cstdio>\n#include <cstddef>\n#include "mamba_params.h"\n'
    program = includes + "int main() {\n" + "\n".join(rows) + "\n}\n"
    printed = output_of(compiled(tmp_path, program))
    for op, line in zip(OPERATORS, printed.splitlines(), strict=True):
        name, size, *offsets = line.split()
        structure = mirror(f"{layout.stem(op)}_params")
        assert name == op.name
        assert int(size) == layout.packer(op).size == ctypes.sizeof(structure)
        own = [getattr(structure, field.name).offset for field in layout.fields(op)]
        assert own == [int(offset) for offset in offsets]


@BY_NAME
def test_packed_bytes_are_the_structures(op: Operator) -> None:
    """Every number that Python packs is found in the field of that name."""

    def flat(value: object) -> list[float]:
        if isinstance(value, ctypes.Structure):
            return [number for name, _ in value._fields_ for number in flat(getattr(value, name))]
        return [value]  # type: ignore[list-item]

    structure = mirror(f"{layout.stem(op)}_params")
    numbers = list(range(1, 1 + len(flat(structure()))))
    packed = layout.packer(op).pack(*numbers)
    assert flat(structure.from_buffer_copy(packed)) == numbers


def test_every_kernel_of_a_row_is_declared() -> None:
    text = header_text()
    for op in OPERATORS:
        for device in op.kernels:
            assert f" {layout.stem(op)}_{device}(" in text


# What the plugins do with a row: match shapes, then fill the parameters. Arguments: the operator's name, then
# each input's rank and sizes.
PROGRAM = """
#include <cstdio>
#include <vector>
#include "contract.h"
using namespace mamba_contract;
%(kernels)s

int main(int count, char** arguments) {
  const Operator& op = *std::find_if(std::begin(kOperators), std::end(kOperators),
      [&](const Operator& op) { return std::string(op.name) == arguments[1]; });
  std::vector<std::vector<int64_t>> shapes;
  for (int i = 2; i < count;) {
    shapes.emplace_back(std::stoi(arguments[i++]));
    for (int64_t& size : shapes.back()) size = std::stoll(arguments[i++]);
  }
  Sizes sizes(op);
  try {
    sizes.match([&](int32_t i) { return Shape{shapes[i].data(), int32_t(shapes[i].size())}; });
  } catch (const Refusal& refusal) {
    std::printf("\\"%%s\\"", refusal.what());
    return 0;
  }
  const void* inputs[kMaxInputs];
  void* outputs[kMaxOutputs];
  for (int32_t i = 0; i < op.inputs.count; ++i) inputs[i] = reinterpret_cast<void*>(100 + i);
  for (int32_t i = 0; i < op.outputs.count; ++i) outputs[i] = reinterpret_cast<void*>(200 + i);
  AttributeValues values = {};
  for (int32_t i = 0; i < op.attributes.count; ++i) values[i] = 1;
  const Params params = fill(op, {sizes, {MAMBA_BF16, MAMBA_FP16, MAMBA_FP16}, values, true, inputs,
                                  outputs, 4});
  for (size_t i = 0; i < op.params_bytes; ++i)
    std::printf(i ? ", %%d" : "[%%d", static_cast<const unsigned char*>(params.get())[i]);
  std::printf("]");
}
"""

ThroughTheTable = Callable[[str, list[tuple[int, ...]]], Any]


@pytest.fixture(scope="module")
def through_the_table(tmp_path_factory: pytest.TempPathFactory) -> ThroughTheTable:
    """The bytes of the parameter struct that the C++ side fills, or the text of what it refuses."""
    kernels = "\n".join(
        f"const Kernels mamba_contract::{name} = {{}};"
        for op in IN_TABLE
        for name in generate_contract.kernels(op)
    )
    shared = str(ROOT / "plugins/contract/contract.cpp")
    binary = compiled(tmp_path_factory.mktemp("table"), PROGRAM % {"kernels": kernels}, shared)

    def call(name: str, shapes: list[tuple[int, ...]]) -> Any:
        numbers = [str(number) for shape in shapes for number in (len(shape), *shape)]
        return json.loads(output_of(binary, name, *numbers))

    return call


@needs_compiler
@pytest.mark.parametrize(
    ("op", "name"), [(op, form.name) for op in IN_TABLE for form in op.forms()]
)
def test_the_plugins_fill_the_struct_of_the_contract(
    through_the_table: ThroughTheTable, op: Operator, name: str
) -> None:
    form = next(form for form in op.forms() if form.name == name)
    sizes = {size.name: 7 + 2 * index for index, size in enumerate(op.free_sizes)}
    sizes |= {size.divides: 3 * sizes[size.name] for size in op.free_sizes if size.divides}
    sizes = op.with_products(sizes)
    data: dict[str, int] = {tensor.name: 100 + i for i, tensor in enumerate(form.inputs)}
    data |= {tensor.name: 200 + i for i, tensor in enumerate(op.outputs)}
    shapes = [tensor.shape(sizes) for tensor in form.inputs]
    found = through_the_table(name, shapes)
    assert isinstance(found, list), found
    assert bytes(found) == packed_params(op, sizes, data, form.flags)


def packed_params(
    op: Operator, sizes: dict[str, int], data: dict[str, int], flags: Mapping[str, bool]
) -> bytes:
    """A row's struct of these sizes, addresses and flags, T bf16, with 1 for every other attribute."""
    numbers: list[float] = []
    for field in layout.fields(op):
        if field.kind == layout.SEQUENCE:
            assert field.tensor is not None
            if field.name not in data:  # the form lacks it
                numbers += [0, 0, 0]
                continue
            _, length, *rest = field.tensor.shape(sizes)
            width = 1
            for size in rest:
                width *= size
            numbers += [data[field.name], length * width, width]
        elif field.kind == layout.DTYPE:
            numbers.append(2 if field.name == "dtype" else 1)
        elif field.tensor is not None:
            numbers.append(data.get(field.name, 0))
        else:
            numbers.append(sizes.get(field.name, int(flags.get(field.name, True))))
    return layout.packer(op).pack(*numbers)


PACKED = [(op, form.name) for op in IN_TABLE for form in op.packed_forms()]


@needs_compiler
@pytest.mark.parametrize(("op", "name"), PACKED)
def test_a_form_of_codes_fills_the_struct_around_the_layer_s(
    through_the_table: ThroughTheTable, op: Operator, name: str
) -> None:
    form = next(form for form in op.packed_forms() if form.name == name)
    sizes = {size.name: 7 + 2 * index for index, size in enumerate(op.free_sizes)}
    sizes |= {size.divides: 3 * sizes[size.name] for size in op.free_sizes if size.divides}
    sizes = op.with_products(sizes)
    sizes |= {size.name: sizes[str(size.divides)] for size in form.sizes}  # blocks of one row
    data = {tensor.name: 100 + i for i, tensor in enumerate(form.inputs)}
    data |= {tensor.name: 200 + i for i, tensor in enumerate(op.outputs)}
    parts = {w: {p: data.get(packed_input(w, p), 0) for p in PARTS} for w in form.packed}
    data |= {weight: one[CODES] for weight, one in parts.items()}
    expected = packed_params(op, sizes, data, form.flags)
    for weight, one in parts.items():
        blocks = sizes[packed_input(weight, layout.BLOCKS)]
        expected += struct.pack("@iqPP", 4, blocks, one[SCALES], one[ZERO_POINTS])
    found = through_the_table(name, [tensor.shape(sizes) for tensor in form.inputs])
    assert isinstance(found, list), found
    assert bytes(found) == expected


@needs_compiler
@pytest.mark.parametrize("op", {op.name: op for op, _ in PACKED}.values(), ids=lambda op: op.name)
def test_blocks_that_do_not_divide_are_refused(
    through_the_table: ThroughTheTable, op: Operator
) -> None:
    form = next(op.packed_forms())
    sizes = op.with_products({size.name: size.usual for size in op.free_sizes})
    last, weight = form.sizes[-1], form.packed[-1]
    sizes |= {size.name: 5 if size is last else 1 for size in form.sizes}
    found = through_the_table(form.name, [tensor.shape(sizes) for tensor in form.inputs])
    assert last.divides is not None
    whole = sizes[last.divides]
    assert found == (
        f"{weight}_scales has {last.name} 5, which does not divide {last.divides} {whole}"
    )


@needs_compiler
@pytest.mark.parametrize(
    ("tensor", "shape", "text"),
    [
        ("in_proj_weight", (12, 49), "in_proj_weight has shape [12, 49], expected (d_model = 12, 2 * d_inner)"),
        ("in_proj_weight", (12, 50), "conv_weight has shape [24, 4], expected (d_inner = 25, d_conv)"),
        (
            "x_proj_weight",
            (24, 36),
            "x_proj_weight has shape [24, 36], expected (d_inner = 24, dt_rank + 2 * d_state = 35)",
        ),
        ("A", (24, 0), "A has shape [24, 0]: d_state is 0, expected at least 1"),
    ],
)  # fmt: skip
def test_a_layer_s_widths_are_compared(
    through_the_table: ThroughTheTable, tensor: str, shape: tuple[int, ...], text: str
) -> None:
    assert_refused(through_the_table, "MambaLayer", tensor, shape, text)


@needs_compiler
@pytest.mark.parametrize(
    ("tensor", "shape", "text"),
    [
        (
            "in_proj_weight",
            (12, 67),
            "in_proj_weight has shape [12, 67], expected "
            "(d_model = 12, 2 * d_inner + 2 * d_group_states + heads = 66)",
        ),
        (
            "recurrent_state",
            (2, 3, 8, 16),
            "recurrent_state has shape [2, 3, 8, 16], expected "
            "(batch = 2, heads = 2, head_dim = 8, d_state)",
        ),
        (
            "gate_norm_weight",
            (1, 3, 8),
            "out_proj_weight has shape [16, 12], expected (d_inner = 24, d_model = 12)",
        ),
        ("A", (3,), "A has shape [3], expected (heads = 2)"),
        ("D", (2, 3), "D has d_skip 3, which does not divide head_dim 8"),
    ],
)
def test_sizes_that_are_products_are_compared(
    through_the_table: ThroughTheTable, tensor: str, shape: tuple[int, ...], text: str
) -> None:
    assert_refused(through_the_table, "Mamba2Layer", tensor, shape, text)


def assert_refused(
    through_the_table: ThroughTheTable, name: str, tensor: str, shape: tuple[int, ...], text: str
) -> None:
    """A call whose one tensor has this shape, and whose others are as usual, gets this text."""
    layer = next(op for op in OPERATORS if op.name == name)
    sizes = layer.with_products({size.name: size.usual for size in layer.free_sizes})
    shapes = [shape if one.name == tensor else one.shape(sizes) for one in layer.inputs]
    assert through_the_table(name, shapes) == text


def test_another_operator_needs_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator knows no operator by name."""
    average = Operator(
        name="MovingAverage",
        torch_name="moving_average",
        inputs=(
            Tensor("x", axes("batch, length, channels"), T, strided=True),
            Tensor("start", axes("batch, channels"), FP32),
        ),
        outputs=(
            Tensor("y", axes("batch, length, channels"), T),
            Tensor("last", axes("batch, channels"), FP32, continues="start"),
        ),
        attributes=(Attribute("decay", "float", 0.9),),
        sizes=(Size("batch", 2), Size("length", 5), Size("channels", 3)),
        kernels=("cpu", "cuda"),
    )
    monkeypatch.setattr(generate_contract, "OPERATORS", (*OPERATORS, average))
    header, table = generate_contract.params_header(), generate_contract.table_header()
    assert "} mamba_moving_average_params;" in header
    assert "  float decay;\n" in header
    assert "extern const Kernels kMovingAverageKernels;" in table
    assert '{"decay", AttributeKind::kFloat, offsetof(mamba_moving_average_params, decay)}' in table
