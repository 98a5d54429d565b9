"""What goes into a session's ``run`` and what comes out: checks of the inputs, the form of the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mamba_export import given as user
from mamba_export.contract.program import Value, split_axis
from mamba_export.errors import SessionError, first_line
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata
from mamba_export.generation.finite import check_kept

Inputs = ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...]
"""Of one input its array; of several a mapping by name, or a tuple in the program's order."""


@dataclass(frozen=True)
class CheckedInputs:
    """Inputs of one run.

    Args:
        arrays: by name, in the program's order, in the program's dtypes.
        sizes: of the symbolic axes that the inputs have.
    """

    arrays: dict[str, np.ndarray]
    sizes: dict[str, int]

    @property
    def first(self) -> np.ndarray:
        """The first input: the token ids of a language model."""
        return next(iter(self.arrays.values()))


def check_inputs(inputs: Inputs, metadata: Metadata) -> CheckedInputs:
    """The program's inputs as arrays of the right dtypes.

    Args:
        inputs: see ``Inputs``. Integers where the program takes integers, numbers where it takes floats, bools
            where it takes bools.
        metadata: says which.

    Returns:
        int64 token ids, floats in the file's dtype, and so on; and the sizes.

    Raises:
        SessionError: an input is missing or unknown, not of its shape or kind, a dynamic axis is of length 0
            (which would end the process inside ONNX Runtime), inputs disagree about an axis, a token id is
            outside the vocabulary, or a number would spoil the states (``check_kept``). The message names the
            input, its expected shape and dtype.
    """
    given = _by_name(inputs, metadata.inputs)
    sizes: dict[str, int] = {}
    arrays = {}
    for index, value in enumerate(metadata.inputs):
        array = as_array(given[value.name], value.name)
        _check_shape(array, value, sizes)
        _check_kind(array, value)
        if index == 0 and metadata.tokens is not None and array.size:
            _check_tokens(array, metadata.tokens.vocab_size)
        _check_range(array, value)
        arrays[value.name] = array.astype(NUMPY_DTYPES[value.dtype], copy=False)
        check_kept(arrays[value.name], value, metadata)
    return CheckedInputs(arrays, sizes)


def step_tokens(tokens: Any, batch: int, metadata: Metadata) -> np.ndarray:
    """The tokens of a step, one a sequence, checked: a GPU would read outside of the embedding's memory.

    Args:
        tokens: the user's.
        batch: of the stepper.
        metadata: of a language model.

    Returns:
        (batch,) integers in [0, vocab_size).

    Raises:
        SessionError: they are none.
    """
    array = as_array(tokens, "tokens")
    if array.shape != (batch,) or array.dtype.kind not in "iu":
        raise SessionError(
            f"tokens have shape {array.shape} and dtype {array.dtype}, expected ({batch},) integers: one for "
            "each sequence"
        )
    _check_tokens(array, metadata.vocab_size)
    return array


def step_sample(sample: Any, batch: int, metadata: Metadata) -> np.ndarray:
    """What a step of a program without tokens reads, one sample of each sequence, checked.

    Args:
        sample: the user's.
        batch: of the stepper.
        metadata: of a program that ``check_samples`` takes.

    Returns:
        (batch, ...), the input's axes without the length, in the input's dtype.

    Raises:
        SessionError: it is something else.
    """
    [value] = metadata.inputs
    array = as_array(sample, value.name)
    expected = (batch, *value.shape[2:])
    if array.shape != expected:
        raise SessionError(
            f"a step of {value.name} has shape {array.shape}, expected {expected}: one sample of each sequence"
        )
    _check_kind(array, value)
    _check_range(array, value)
    array = array.astype(NUMPY_DTYPES[value.dtype], copy=False)
    check_kept(array, value, metadata)
    return array


def check_samples(metadata: Metadata) -> None:
    """Raise SessionError unless a program reads and returns samples alone, which is what a streamer drives.

    It has one input (batch, length, ...) that is no tokens, outputs of the same form, every other axis of a
    fixed size, and states, which do not grow.
    """
    values = (*metadata.inputs, *metadata.outputs)
    first = metadata.inputs[0].shape[:2]
    fits = len(metadata.inputs) == 1 and not metadata.takes_tokens
    fits = fits and bool(metadata.states) and not metadata.grows
    fits = fits and len(set(first)) == 2 and all(isinstance(size, str) for size in first)
    if not fits or not all(
        value.shape[:2] == first and all(isinstance(size, int) for size in value.shape[2:])
        for value in values
    ):
        raise SessionError(
            f"{metadata.folder} holds another program than one of an input (batch, length, ...) that is no "
            "tokens, of such outputs, and of states of fixed size: drive it with run"
        )


def check_tokens_alone(metadata: Metadata) -> None:
    """Raise SessionError unless tokens are the only input, which is what generation and steppers drive."""
    if not metadata.takes_tokens:
        raise SessionError(
            f"{metadata.folder} holds a model without tokens, which cannot generate: drive it with run"
        )
    if len(metadata.inputs) > 1:
        names = ", ".join(value.name for value in metadata.inputs[1:])
        raise SessionError(
            f"{metadata.folder} holds a model that takes more than tokens ({names}): drive it with run"
        )


def returned(outputs: Sequence[np.ndarray], metadata: Metadata) -> Any:
    """Outputs in the program's order, as ``run`` returns them: of one its array, of several a dict by name."""
    if len(outputs) == 1:
        return outputs[0]
    return {value.name: array for value, array in zip(metadata.outputs, outputs, strict=True)}


def known_shape(value: Value, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of an output in numbers; None where it depends on more than the sizes of the inputs."""
    try:
        return value.resolve(sizes)
    except KeyError:
        return None


def _by_name(inputs: Inputs, expected: Sequence[Value]) -> Mapping[str, Any]:
    names = [value.name for value in expected]
    if isinstance(inputs, Mapping):
        for name in inputs:
            if name not in names:
                raise SessionError(f"there is no input {name}: the inputs are {', '.join(names)}")
        for value in expected:
            if value.name not in inputs:
                raise SessionError(
                    f"input {value.name} is missing: expected {value.layout} of {value.dtype}"
                )
        return inputs
    if len(expected) == 1:
        return {names[0]: inputs}
    if not isinstance(inputs, tuple) or len(inputs) != len(expected):
        raise SessionError(
            f"the program takes {len(expected)} inputs: pass a mapping by name, or a tuple of "
            f"{', '.join(names)}"
        )
    return dict(zip(names, inputs, strict=True))


def as_array(given: Any, name: str) -> np.ndarray:
    """Whatever holds numbers (lists, arrays, tensors of PyTorch on any device) as an array.

    Args:
        given: the user's.
        name: for errors.

    Raises:
        SessionError: it is ragged, or cannot be an array.
    """
    try:
        if hasattr(given, "detach"):  # a tensor of PyTorch, which is not imported for the question
            given = given.detach().cpu()
            given = given.float() if str(given.dtype) == "torch.bfloat16" else given
        return np.asarray(given)
    except ValueError as error:
        raise SessionError(
            f"{name} is ragged: sequences of one batch have one length; call run for each length"
        ) from error
    except Exception as error:  # what a foreign object's conversion raises
        raise SessionError(
            f"{name} is {user.shown(given)}, which is no array: {first_line(error)}"
        ) from error


def _check_shape(array: np.ndarray, value: Value, sizes: dict[str, int]) -> None:
    found = f"{value.name} has shape {array.shape}, expected {value.layout}"
    if array.ndim != len(value.shape):
        raise SessionError(found)
    dynamic = [
        (size, length)
        for size, length in zip(value.shape, array.shape, strict=True)
        if isinstance(size, str)
    ]
    if any(length == 0 for _, length in dynamic):
        names = " and ".join(dict.fromkeys(size for size, _ in dynamic))
        raise SessionError(f"{found} with {names} at least 1")
    for size, length in dynamic:
        factor, name = split_axis(size)
        if length % factor:
            raise SessionError(
                f"{found}, and {factor} does not divide {length}: pad it to the next multiple"
            )
        known = factor * sizes.setdefault(name, length // factor)
        if known != length:
            raise SessionError(f"{found} with {size} {known}, as another input has it")
    if array.shape != value.resolve(sizes):
        raise SessionError(found)


def _check_kind(array: np.ndarray, value: Value) -> None:
    kind = NUMPY_DTYPES[value.dtype].kind
    if kind == "b":
        expected, fits = "bools", array.dtype.kind == "b"
    elif kind in "iu":
        expected, fits = "integers", array.dtype.kind in "iu"
    else:
        expected = "numbers"
        fits = is_numeric(array)
    if not fits:
        raise SessionError(f"{value.name} has dtype {array.dtype}, expected {expected}")


def is_numeric(array: np.ndarray) -> bool:
    """Whether an array holds real numbers, those of ``ml_dtypes`` included; bools count as 0 and 1."""
    return array.dtype.kind in "fiu" or array.dtype in NUMPY_DTYPES.values()


def _check_range(array: np.ndarray, value: Value) -> None:
    wanted = NUMPY_DTYPES[value.dtype]
    if wanted.kind not in "iu" or np.can_cast(array.dtype, wanted) or array.size == 0:
        return
    limits = np.iinfo(wanted)
    if int(array.min()) < limits.min or int(array.max()) > limits.max:
        raise SessionError(
            f"{value.name} has values that {value.dtype} cannot hold: they are in [{limits.min}, {limits.max}]"
        )


def _check_tokens(tokens: np.ndarray, vocab_size: int) -> None:
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise SessionError(
            f"token id {wrong} is outside the vocabulary: ids are in [0, {vocab_size})"
        )
