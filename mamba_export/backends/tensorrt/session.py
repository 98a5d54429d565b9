"""``TrtSession``: an exported folder's engine in TensorRT or TensorRT-RTX, on a GPU. Needs no PyTorch."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mamba_export import given
from mamba_export.backends.tensorrt.binding import bind_pasts, bind_presents, new_state
from mamba_export.backends.tensorrt.captured_steps import CapturedSteps
from mamba_export.backends.tensorrt.engine import Execution, open_engine
from mamba_export.backends.tensorrt.profiles import check_grown, refusal
from mamba_export.backends.tensorrt.state import GpuTensor, TrtState
from mamba_export.backends.tensorrt.stepper import GrowingStepper, TrtStepper
from mamba_export.backends.tensorrt.streamer import TrtStreamer
from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.contract.program import Value
from mamba_export.errors import SessionError
from mamba_export.fields import LARGEST_SIZE
from mamba_export.folder.metadata import read_metadata
from mamba_export.folder.tokenizer import Tokenizer, load_tokenizer
from mamba_export.generation.captures import Captures
from mamba_export.generation.generate import GenerationMethods
from mamba_export.generation.state import (
    batch_sizes,
    check_reach,
    check_state,
    model_arrays,
    start_array,
    start_shapes,
)
from mamba_export.generation.values import (
    CheckedInputs,
    Inputs,
    check_inputs,
    check_samples,
    check_tokens_alone,
    known_shape,
    returned,
)


class TrtSession(GenerationMethods):
    """An exported model's engine, loaded; the same use as ``OrtSession``.

    Several sessions of one engine share its weights. A session may be used by several threads: runs take
    turns, and every stepper has an execution context of its own.

    Args:
        folder: what ``mamba-export export`` and ``mamba-export build`` wrote.
        device: index of the GPU.

    Attributes:
        metadata: what the folder says of the model.
        engine: the engine, shared with other sessions.

    Raises:
        MambaExportError: there is no GPU, or none that the engine runs on; the engine, TensorRT or the plugin
            is missing, damaged, or of another version, runtime or model; the GPU has too little memory.
    """

    def __init__(self, folder: str | Path, *, device: int = 0) -> None:
        self.metadata = read_metadata(folder)
        device = given.integer(device, "device", 0, LARGEST_SIZE, SessionError)
        self.engine = open_engine(self.metadata.folder, self.metadata, device)
        self._gpu = self.engine.gpu
        self._gpu.activate()
        self._stream = self._gpu.stream()
        self._executions: dict[int, Execution] = {}
        self._idle: dict[int, list[Execution]] = {}
        self._lock = threading.Lock()
        self._captures = Captures("steps run")

    @property
    def provider(self) -> str:
        """What computes, for people."""
        return f"{self.engine.library} on {self._gpu.name}"

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer. Raises SessionError where it has none."""
        return load_tokenizer(self.metadata.folder)

    def initial_state(self, batch: int) -> TrtState:
        """What a batch of sequences starts from: each state's start value; what grows has length 0.

        Raises:
            SessionError: a batch below 1, or a state whose size the batch does not tell.
        """
        return self._start_state(batch_sizes(self.metadata, batch))

    def _start_state(self, sizes: Mapping[str, int]) -> TrtState:
        self._gpu.activate()
        tensors = []
        for info, shape in zip(
            self.metadata.states, start_shapes(self.metadata, sizes), strict=True
        ):
            if info.start == 0:
                tensors.append(GpuTensor.zeros(info.past.dtype, shape, self._gpu, self._stream))
            else:
                array = start_array(info, shape)
                tensors.append(GpuTensor.from_numpy(array, self._gpu, self._stream))
        self._stream.synchronize()
        return TrtState(tensors, self._stream)

    def state_from_numpy(self, arrays: Sequence[np.ndarray]) -> TrtState:
        """A state from what ``TrtState.numpy()`` returned, or from floats of another dtype.

        Args:
            arrays: one a state tensor, in the metadata's order; converted to the model's dtypes.

        Raises:
            SessionError: their count or shapes are not those of this model's states.
        """
        converted = model_arrays(arrays, self.metadata)
        self._gpu.activate()
        tensors = [GpuTensor.from_numpy(array, self._gpu, self._stream) for array in converted]
        state = TrtState(tensors, self._stream)
        check_state(state.tensors, self.metadata)
        return state

    def concatenate(self, states: Sequence[TrtState]) -> TrtState:
        """One state of all their sequences, in order."""
        return TrtState.concatenate(states)

    def run(self, inputs: Inputs, state: TrtState | None = None) -> tuple[Any, TrtState]:
        """Run the program; arguments and results are those of ``OrtSession.run``.

        A sequence longer than the engine's profiles take is read in several runs, where the program has states.

        Raises:
            SessionError: an input or the state is of a wrong shape, dtype or batch, a token id is outside the
                vocabulary, no profile takes the request (the message names the ranges), or TensorRT failed.
        """
        parts: list[list[np.ndarray]] = []
        new_state = self._run(check_inputs(inputs, self.metadata), state, parts)
        outputs = [
            self._joined(value, list(column))
            for value, column in zip(self.metadata.outputs, zip(*parts, strict=True), strict=True)
        ]
        return returned(outputs, self.metadata), new_state

    def advance(self, inputs: Inputs, state: TrtState | None = None) -> TrtState:
        """``run`` for the state alone: the outputs do not leave the GPU."""
        return self._run(check_inputs(inputs, self.metadata), state, None)

    @staticmethod
    def _joined(value: Value, parts: list[np.ndarray]) -> np.ndarray:
        """An output of a sequence that was read in parts; of one without a length the last part's."""
        if len(parts) == 1 or LENGTH not in value.shape:
            return parts[-1]
        return np.concatenate(parts, axis=value.shape.index(LENGTH))

    def stepper(self, state: TrtState) -> TrtStepper | GrowingStepper:
        """A stepper that starts from ``state``, and leaves it as it is.

        Raises:
            SessionError: the model takes no tokens, the state does not fit it, or no profile takes its batch.
        """
        check_tokens_alone(self.metadata)
        self._check_state(state, None)
        if self.metadata.grows:
            return GrowingStepper(self.run, state)
        return TrtStepper(self._steps(state))

    def streamer(self, state: TrtState | None = None) -> TrtStreamer:
        """Drive a program without tokens one sample at a time; arguments are those of ``OrtSession.streamer``.

        Raises:
            SessionError: the program is not of the form that is driven so, the state does not fit it, or no
                profile takes single steps of its batch.
        """
        check_samples(self.metadata)
        state = self.initial_state(1) if state is None else state
        self._check_state(state, None)
        return TrtStreamer(self._steps(state))

    def _steps(self, state: TrtState) -> CapturedSteps:
        profile = self._profile(state.batch, 1)
        self._gpu.activate()
        stream = self._gpu.stream()
        with self._lock:
            idle = self._idle.setdefault(profile, [])
            execution = idle.pop() if idle else None
        if execution is None:
            execution = self.engine.execution(profile, stream)
        return CapturedSteps(
            execution, self.metadata, self._gpu, stream, state, self._captures, idle.append
        )

    def _check_state(self, state: TrtState, sizes: Mapping[str, int] | None) -> None:
        if not isinstance(state, TrtState):
            raise SessionError(
                f"state is another backend's ({type(state).__name__}): pass what run of this session "
                "returned, or session.state_from_numpy(state.numpy())"
            )
        check_state(state.tensors, self.metadata, sizes)

    def _profile(self, batch: int, length: int) -> int:
        """Index of the profile for a run, the one for single steps first."""
        profiles = self.engine.description.profiles
        for index in reversed(range(len(profiles))):
            if profiles[index].takes(batch, length):
                return index
        raise SessionError(refusal(profiles, batch, length))

    def _parts(self, inputs: CheckedInputs, batch: int, length: int) -> Iterator[CheckedInputs]:
        """The sequence in parts of nearly equal length that the profiles take."""
        longest = max(profile.length[2] for profile in self.engine.description.profiles)
        count = math.ceil(length / longest) if self._can_be_split else 1
        bounds = [length * index // count for index in range(count + 1)]
        for start, end in itertools.pairwise(bounds):
            self._profile(batch, end - start)  # all of them before the first runs
        for start, end in itertools.pairwise(bounds):
            yield self._part(inputs, start, end) if count > 1 else inputs

    @property
    def _can_be_split(self) -> bool:
        """Whether runs over parts of a sequence are the run over the whole of it."""
        outputs = self.metadata.outputs
        return bool(self.metadata.states) and (
            self.metadata.takes_tokens or all(LENGTH in value.shape for value in outputs)
        )

    def _part(self, inputs: CheckedInputs, start: int, end: int) -> CheckedInputs:
        arrays = {}
        for value in self.metadata.inputs:
            array = inputs.arrays[value.name]
            if LENGTH in value.shape:
                axis = value.shape.index(LENGTH)
                array = array[(*[slice(None)] * axis, slice(start, end))]
            arrays[value.name] = array
        return CheckedInputs(arrays, {**inputs.sizes, LENGTH: end - start})

    def _run(
        self,
        inputs: CheckedInputs,
        state: TrtState | None,
        outputs: list[list[np.ndarray]] | None,
    ) -> TrtState:
        # A program without a batch or a length fits any.
        first = self.engine.description.profiles[0]
        batch = inputs.sizes.get(BATCH, first.batch[0])
        length = inputs.sizes.get(LENGTH, first.length[0])
        parts = list(self._parts(inputs, batch, length))
        if state is None:
            state = self._start_state(inputs.sizes)
        self._check_state(state, inputs.sizes)
        check_reach(state.tensors, self.metadata, inputs.sizes)
        self._gpu.activate()
        with self._lock:
            for part in parts:
                profile = self._profile(batch, part.sizes.get(LENGTH, length))
                state = self._run_part(profile, part, state, outputs)
        return state

    def _run_part(
        self,
        profile: int,
        inputs: CheckedInputs,
        state: TrtState,
        outputs: list[list[np.ndarray]] | None,
    ) -> TrtState:
        check_grown(self.engine.description.profiles[profile], self.metadata, state.tensors)
        if profile not in self._executions:
            self._executions[profile] = self.engine.execution(profile, self._stream)
        execution = self._executions[profile]
        stream, gpu = self._stream, self._gpu
        # These are held until the run has ended: an execution knows addresses only.
        held = {
            name: GpuTensor.from_numpy(np.ascontiguousarray(array), gpu, stream)
            for name, array in inputs.arrays.items()
        }
        for name, tensor in held.items():
            execution.set_shape(name, tensor.shape)
            execution.set_address(name, tensor.address)
        bind_pasts(execution, self.metadata, state)
        present = new_state(execution, self.metadata, state)
        bind_presents(execution, self.metadata, present)
        results = []
        for info in self.metadata.outputs:
            shape = known_shape(info, inputs.sizes) or execution.output_shape(info.name)
            results.append(GpuTensor(info.dtype, shape, gpu, stream))
            execution.set_address(info.name, results[-1].address)
        execution.enqueue(stream)
        if outputs is None:
            stream.synchronize()  # the buffers of this run are freed when it returns
        else:
            outputs.append([result.numpy() for result in results])
        return present
