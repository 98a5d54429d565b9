"""``TrtSession``: an exported folder's engine in TensorRT or TensorRT-RTX, on a GPU. Needs no PyTorch."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mamba_export.backends.tensorrt.binding import bind_states, empty_state
from mamba_export.backends.tensorrt.engine import Execution, open_engine
from mamba_export.backends.tensorrt.profiles import refusal
from mamba_export.backends.tensorrt.state import GpuTensor, TrtState
from mamba_export.backends.tensorrt.stepper import TrtStepper
from mamba_export.errors import SessionError
from mamba_export.folder.metadata import read_metadata
from mamba_export.folder.tokenizer import Tokenizer, load_tokenizer
from mamba_export.generation.generate import GenerationMethods
from mamba_export.generation.sequence import check_sequence
from mamba_export.generation.state import check_state, model_arrays


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
        self.engine = open_engine(self.metadata.folder, self.metadata, device)
        self._gpu = self.engine.gpu
        self._gpu.activate()
        self._stream = self._gpu.stream()
        self._executions: dict[int, Execution] = {}
        self._idle: dict[int, list[Execution]] = {}
        self._lock = threading.Lock()

    @property
    def provider(self) -> str:
        """What computes, for people."""
        return f"{self.engine.library} on {self._gpu.name}"

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer. Raises SessionError where it has none."""
        return load_tokenizer(self.metadata.folder)

    def initial_state(self, batch: int) -> TrtState:
        """Zeros: what a batch of sequences starts from. Raises SessionError for a batch below 1."""
        if batch < 1:
            raise SessionError(f"batch is {batch}, expected at least 1")
        self._gpu.activate()
        zeros = [
            GpuTensor.zeros(info.past.dtype, info.past.resolve(batch), self._gpu, self._stream)
            for info in self.metadata.states
        ]
        self._stream.synchronize()
        return TrtState(zeros, self._stream)

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

    def run(
        self, sequence: ArrayLike, state: TrtState | None = None
    ) -> tuple[np.ndarray, TrtState]:
        """Read a part of a batch of sequences; arguments and results are those of ``OrtSession.run``.

        A sequence longer than the engine's profiles take is read in several runs.

        Raises:
            SessionError: the sequence or the state is of a wrong shape, dtype or batch, a token id is outside
                the vocabulary, no profile takes the request (the message names the ranges), or TensorRT failed.
        """
        array = check_sequence(sequence, self.metadata)
        outputs: list[np.ndarray] = []
        state = self._run(array, state, outputs)
        if self.metadata.last_logits_only:
            return outputs[-1], state
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=1), state

    def advance(self, sequence: ArrayLike, state: TrtState | None = None) -> TrtState:
        """``run`` for the state alone: the logits do not leave the GPU."""
        return self._run(check_sequence(sequence, self.metadata), state, None)

    def stepper(self, state: TrtState) -> TrtStepper:
        """A stepper that starts from ``state``, and leaves it as it is.

        Raises:
            SessionError: the model takes no tokens, the state does not fit it, or no profile takes its batch.
        """
        if not self.metadata.takes_tokens:
            raise SessionError("this model takes no tokens: drive it with run")
        self._check_state(state, None)
        profile = self._profile(state.batch, 1)
        self._gpu.activate()
        stream = self._gpu.stream()
        with self._lock:
            idle = self._idle.setdefault(profile, [])
            execution = idle.pop() if idle else None
        if execution is None:
            execution = self.engine.execution(profile, stream)
        return TrtStepper(execution, self.metadata, self._gpu, stream, state, idle.append)

    def _check_state(self, state: TrtState, batch: int | None) -> None:
        if not isinstance(state, TrtState):
            raise SessionError(
                f"state is another backend's ({type(state).__name__}): pass what run of this session "
                "returned, or session.state_from_numpy(state.numpy())"
            )
        check_state(state.tensors, self.metadata, batch)

    def _profile(self, batch: int, length: int) -> int:
        """Index of the profile for a run, the one for single steps first."""
        profiles = self.engine.description.profiles
        for index in reversed(range(len(profiles))):
            if profiles[index].takes(batch, length):
                return index
        raise SessionError(refusal(profiles, batch, length))

    def _parts(self, batch: int, length: int) -> Iterator[slice]:
        """The sequence in parts of nearly equal length that the profiles take."""
        longest = max(profile.length[2] for profile in self.engine.description.profiles)
        count = math.ceil(length / longest)
        bounds = [length * index // count for index in range(count + 1)]
        for start, end in itertools.pairwise(bounds):
            self._profile(batch, end - start)  # all of them before the first runs
        for start, end in itertools.pairwise(bounds):
            yield slice(start, end)

    def _run(
        self, array: np.ndarray, state: TrtState | None, outputs: list[np.ndarray] | None
    ) -> TrtState:
        batch, length = array.shape[:2]
        parts = list(self._parts(batch, length))
        if state is None:
            state = self.initial_state(batch)
        self._check_state(state, batch)
        self._gpu.activate()
        with self._lock:
            for part in parts:
                state = self._run_part(np.ascontiguousarray(array[:, part]), state, outputs)
        return state

    def _run_part(
        self, array: np.ndarray, state: TrtState, outputs: list[np.ndarray] | None
    ) -> TrtState:
        batch, length = array.shape[:2]
        profile = self._profile(batch, length)
        if profile not in self._executions:
            self._executions[profile] = self.engine.execution(profile, self._stream)
        execution = self._executions[profile]
        stream, gpu, info = self._stream, self._gpu, self.metadata.output
        sequence = GpuTensor.from_numpy(array, gpu, stream)
        output = GpuTensor(info.dtype, info.resolve(batch, length), gpu, stream)
        present = empty_state(self.metadata, batch, gpu, stream)
        execution.set_shape(self.metadata.sequence.name, array.shape)
        execution.set_address(self.metadata.sequence.name, sequence.address)
        execution.set_address(info.name, output.address)
        bind_states(execution, self.metadata, state, present)
        execution.enqueue(stream)
        if outputs is None:
            stream.synchronize()  # the buffers of this run are freed when it returns
        else:
            outputs.append(output.numpy())
        return present
