"""What an operator is, as values: tensors with symbolic axes, dtype classes, attributes. Imports names alone.

From an ``Operator`` come the torch schema and its checks, fake kernels, autocast, the ONNX node and its
function's signature, the structs of the compiled kernels, the C++ table, ``verify``'s inputs and grid, and the
benchmark's bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from mamba_export.contract.weights import CODES, SCALES, ZERO_POINTS

T = "T"
"""Dtype class: the operator's own dtype, fp32, fp16 or bf16, the same for all tensors of the class."""
R = "R"
"""Dtype class: fp32 or T, as the file chooses: a residual stream, or states that every step reads."""
S = "S"
"""Dtype class: fp32 or T, as the file chooses beside R: the states of a row that has a residual stream too."""
FP32 = "fp32"
"""Dtype class: fp32 whatever T is (float64 where a definition is computed in float64)."""
Q = "Q"
"""Dtype class: codes of a packed matrix, int4 or int8; of a form with zero points uint4 or uint8."""

NORMAL = "normal"
NEGATIVE = "negative"
WEIGHT = "weight"
"""How random values for tests are drawn: normal; ``-exp(normal)``; normal over the root of the first axis."""


@dataclass(frozen=True)
class Axis:
    """An axis as a linear form of sizes: ``d_inner``, ``d_conv - 1``, ``dt_rank + 2 * d_state``.

    Args:
        terms: (size, factor) pairs.
        constant: added to them.
    """

    terms: tuple[tuple[str, int], ...]
    constant: int = 0

    @classmethod
    def parse(cls, text: str) -> Axis:
        """The axis of a text such as ``"dt_rank + 2 * d_state"``."""
        terms: list[tuple[str, int]] = []
        constant = 0
        for word in text.replace("-", "+ -").split("+"):
            part = word.strip()
            if not part:  # before a leading minus
                continue
            sign = -1 if part.startswith("-") else 1
            factor, _, size = part.lstrip("- ").rpartition("*")
            if size.strip().isdigit():
                constant += sign * int(size)
            else:
                terms.append((size.strip(), sign * int(factor or 1)))
        return cls(tuple(terms), constant)

    def resolve(self, sizes: Mapping[str, int]) -> int:
        """Its number, from the sizes' numbers."""
        return sum(factor * sizes[name] for name, factor in self.terms) + self.constant

    def __str__(self) -> str:
        words = [name if factor == 1 else f"{factor} * {name}" for name, factor in self.terms]
        text = " + ".join(words)
        if self.constant:
            text += f" {'-' if self.constant < 0 else '+'} {abs(self.constant)}"
        return text


def axes(text: str) -> tuple[Axis, ...]:
    """The axes of a shape such as ``"batch, d_inner, d_conv - 1"``."""
    return tuple(Axis.parse(part) for part in text.split(","))


@dataclass(frozen=True)
class Tensor:
    """An input or output of an operator.

    Args:
        name: in the operator's signature, in the file's function and in the kernels' struct.
        axes: its shape.
        dtype: its class: T, R, S or FP32.
        without: of an optional input, what the ONNX name of a form that lacks it has behind the operator's;
            "" where its name has nothing more, and ``within`` is there. None where the input is always there.
        within: of an optional input, what the name of a form that has it has behind the operator's.
        strided: a kernel takes any strides over its first two axes, batch and length; the others are dense.
        weight: it is stored in the file, and does not change between calls.
        continues: of an output, the input of the next call that takes it: a state.
        null_is_zeros: kernels take a null pointer, and the torch operator None, for zeros, which they then
            need not read. A file always has the tensor.
        values: how tests draw it: NORMAL, NEGATIVE or WEIGHT.
        positive_unless: name of a flag; where it is off, tests draw small positive values.
        extremes: (shift, scale) pairs that tests apply to drawn values, one by one.
        packs: of a weight of K inputs and N outputs, whether a file may hold it as codes (K, N) in blocks
            along K.
        outputs_first: of a weight of a product, whether it is (N, K), as a PyTorch Linear keeps it.
    """

    name: str
    axes: tuple[Axis, ...]
    dtype: str
    without: str | None = None
    within: str = ""
    strided: bool = False
    weight: bool = False
    continues: str | None = None
    null_is_zeros: bool = False
    values: str = NORMAL
    positive_unless: str | None = None
    extremes: tuple[tuple[float, float], ...] = ()
    packs: bool = False
    outputs_first: bool = False

    @property
    def matrix(self) -> tuple[Axis, ...]:
        """Of a weight of a product: its axes as (K, N)."""
        return self.axes[::-1] if self.outputs_first else self.axes

    @property
    def is_optional(self) -> bool:
        """Whether the torch operator takes None for it."""
        return self.without is not None or self.null_is_zeros

    @property
    def layout(self) -> str:
        """The shape for people: ``(batch, d_inner, d_conv - 1)``."""
        return f"({', '.join(map(str, self.axes))}{',' if len(self.axes) == 1 else ''})"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape in numbers."""
        return tuple(axis.resolve(sizes) for axis in self.axes)


@dataclass(frozen=True)
class Attribute:
    """An attribute of an operator.

    Args:
        name: in the torch signature and in the file.
        kind: "flag" (bool in torch, int 0 or 1 in the file), "float" (finite, at least 0), "int" or "ints".
        default: in torch; the file always holds the attribute.
        derived: how the exporter fills it from sizes, as axes; torch has no such argument.
        within: of a flag that a file holds in a node's name, what a name has behind the operator's where the
            flag is on; such a node has no attribute of it. A runtime whose library is older than the flag then
            knows no kernel for the node and runs its function, where it would read past an attribute. None for
            an attribute of the node.
    """

    name: str
    kind: str
    default: bool | float | None = None
    derived: tuple[Axis, ...] = ()
    within: str | None = None


BLOCK = Attribute("block", "int")
"""Of a packed form: rows of a matrix that share a scale."""


def packed_input(weight: str, part: str) -> str:
    """Name of the input that holds a part of a packed weight."""
    return f"{weight}_{part}"


@dataclass(frozen=True)
class Size:
    """A symbolic size of an operator; every size is at least 1.

    Args:
        name: of the size.
        usual: its number in tests that vary another size.
        tried: the other numbers that ``verify`` checks every backend at.
        divides: name of a size that it must divide, or None.
        factors: of a size that is the product of two others, listed before it, their names. It is no field of
            the kernels' struct, and tests vary its factors.
    """

    name: str
    usual: int = 0
    tried: tuple[int, ...] = ()
    divides: str | None = None
    factors: tuple[str, str] | None = None


@dataclass(frozen=True)
class Form:
    """An operator as a file holds it: optional inputs are there, or the name is another; flags too.

    Args:
        name: of the node.
        inputs: those that it has, in the row's order.
        flags: values of the flags that its name holds, by attribute.
        packed: names of the operator's weights that the node holds as codes and scales in their place.
        sizes: those that the operator has not: numbers of blocks.
        attributes: those that the operator has not.
    """

    name: str
    inputs: tuple[Tensor, ...]
    flags: Mapping[str, bool] = field(default_factory=dict, hash=False)
    packed: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = ()
    attributes: tuple[Attribute, ...] = ()

    @property
    def has_zero_points(self) -> bool:
        """Whether codes of packed weights are unsigned, with zero points."""
        return any(tensor.name.endswith(f"_{ZERO_POINTS}") for tensor in self.inputs)


@dataclass(frozen=True)
class Operator:
    """An operator: its names, tensors, attributes and sizes.

    Args:
        name: of its ONNX node, in our domain.
        torch_name: of the torch operator, in our namespace; also the stem of its kernels' C names.
        inputs, outputs: in order, of the node, the function and the torch operator.
        attributes: in order.
        sizes: in the order of the kernels' struct.
        kernels: for which devices the compiled library has kernels: "cpu", "cuda".
        constant_weights: the kernels' struct says whether the weights are constants of the file.
        calls_products: the CUDA kernel calls back for large products, which ONNX Runtime has and TensorRT does
            not offer to its plugins.
        each_step_alone: a step's results are of its own inputs: flipping the sequence flips the results.
        cases: numbers of several sizes or attributes at once, the others as usual, at which ``verify`` checks
            too: they reach the kernels that are chosen by more than one size.
        version: rises when its meaning changes.
    """

    name: str
    torch_name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    sizes: tuple[Size, ...]
    kernels: tuple[str, ...] = ()
    constant_weights: bool = False
    calls_products: bool = False
    each_step_alone: bool = False
    cases: tuple[Mapping[str, float], ...] = ()
    version: int = 1
    _by_name: dict[str, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        object.__setattr__(self, "_by_name", by_name)
        known = {size.name for size in self.sizes}
        for tensor in (*self.inputs, *self.outputs):
            for axis in tensor.axes:
                unknown = {name for name, _ in axis.terms} - known
                if unknown:
                    raise ValueError(
                        f"{self.name}: {tensor.name} has an axis of unknown size {unknown}"
                    )

    def with_products(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes' numbers, and those of the sizes that are products of them."""
        numbers = dict(sizes)
        for size in self.sizes:
            if size.factors is not None:
                one, other = size.factors
                numbers[size.name] = numbers[one] * numbers[other]
        return numbers

    @property
    def free_sizes(self) -> tuple[Size, ...]:
        """The sizes that are no product of others: those that a call gives."""
        return tuple(size for size in self.sizes if size.factors is None)

    def tensor(self, name: str) -> Tensor:
        """An input or output by its name. KeyError where there is none."""
        return self._by_name[name]

    @property
    def has_plugin(self) -> bool:
        """Whether TensorRT has a plugin of each of its forms."""
        return "cuda" in self.kernels and not self.calls_products

    @property
    def node_attributes(self) -> tuple[Attribute, ...]:
        """The attributes that a node in a file holds: all but the flags that its name holds."""
        return tuple(one for one in self.attributes if one.within is None)

    @property
    def name_flags(self) -> tuple[Attribute, ...]:
        """The flags that a node's name holds."""
        return tuple(one for one in self.attributes if one.within is not None)

    def forms(self) -> Iterator[Form]:
        """The nodes that a file may hold.

        With all inputs, and without some or all of the optional ones; each with the flags of names off, and on.
        """
        optional = [tensor for tensor in self.inputs if tensor.without is not None]
        choices = [
            *itertools.repeat((False, True), len(self.name_flags)),
            *itertools.repeat((True, False), len(optional)),
        ]
        for chosen in itertools.product(*choices):
            flags = {flag.name: on for flag, on in zip(self.name_flags, chosen, strict=False)}
            there = chosen[len(flags) :]
            absent = {
                one.name for one, is_there in zip(optional, there, strict=True) if not is_there
            }
            name = self.name + "".join(
                one.within if is_there else one.without or ""
                for one, is_there in zip(optional, there, strict=True)
            )
            name += "".join(one.within or "" for one in self.name_flags if flags[one.name])
            inputs = tuple(one for one in self.inputs if one.name not in absent)
            yield Form(name, inputs, flags)

    def packed_forms(self) -> Iterator[Form]:
        """Further nodes that a file may hold: with codes of weights, without and with zero points.

        No torch operator has them: export writes them in the place of a form that has all inputs.
        """
        weights = [tensor for tensor in self.inputs if tensor.packs]
        blocks = {one.name: f"{one.name}_blocks" for one in weights}
        sizes = tuple(Size(blocks[one.name], divides=one.matrix[0].terms[0][0]) for one in weights)
        for suffix, parts in (
            ("Packed", (CODES, SCALES)),
            ("PackedAsymmetric", (CODES, SCALES, ZERO_POINTS)),
        ):
            inputs: list[Tensor] = []
            for one in self.inputs:
                if not one.packs:
                    inputs.append(one)
                    continue
                per_block = (*axes(blocks[one.name]), *one.matrix[1:])
                for part in parts:
                    name = packed_input(one.name, part)
                    shape = one.matrix if part == CODES else per_block
                    inputs.append(Tensor(name, shape, T if part == SCALES else Q, weight=True))
            if weights:
                names = tuple(one.name for one in weights)
                yield Form(self.name + suffix, tuple(inputs), {}, names, sizes, (BLOCK,))

    def like(self, output: Tensor) -> Tensor:
        """The first input of an output's shape and dtype class, which it follows. KeyError without one."""
        for tensor in self.inputs:
            if tensor.axes == output.axes and tensor.dtype == output.dtype:
                return tensor
        raise KeyError(output.name)

    def bytes_moved(
        self,
        sizes: Mapping[str, int],
        item_bytes: Mapping[str, int],
        absent: Collection[str] = (),
    ) -> int:
        """Bytes of every input read once and every output written once.

        Args:
            sizes: numbers of the sizes that are no products.
            item_bytes: bytes of an element, by dtype class (T, R, S, FP32).
            absent: names of optional inputs that are not there.
        """
        total = 0
        numbers = self.with_products(sizes)
        for tensor in (*self.inputs, *self.outputs):
            if tensor.name in absent:
                continue
            count = 1
            for number in tensor.shape(numbers):
                count *= number
            total += count * item_bytes[tensor.dtype]
        return total
