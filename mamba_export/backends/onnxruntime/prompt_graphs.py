"""Prompts in ONNX Runtime on an NVIDIA GPU, read by runs that are captured in CUDA graphs.

A recurrent state makes a prompt of any length a chain of parts. Their lengths are few (``prompt_parts``), so
that most come again: each is run plainly at first, then captured, and costs the host one launch from then on.
Memory is that of the largest part, whatever the prompt.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from mamba_export.backends.onnxruntime.binding import execute
from mamba_export.backends.onnxruntime.capture import capture
from mamba_export.backends.onnxruntime.cuda_stream import GpuStream
from mamba_export.backends.onnxruntime.device import DeviceTensor, storage_dtype
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.prompt_memory import Buffers, Part, PromptMemory
from mamba_export.backends.onnxruntime.prompt_parts import (
    LEAST,
    has_all_logits,
    largest_part,
    part_lengths,
)
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_memory import StateMemory
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.generation.captures import Captures
from mamba_export.generation.state import allocating

_RUNS_BEFORE_CAPTURE = 2
"""Plain runs of a part. What is read once or twice is not worth a capture, and a capture needs what happens
once, such as cuBLAS's choices and the loading of kernels, to have happened."""


@dataclass
class _Reading:
    """Tokens on their way: (batch, length), and where their logits go, if anywhere.

    Args:
        past: what the next part starts from; None for the start of a sequence.
        is_ours: nobody else holds ``past``.
        position: how many of each sequence were read.
    """

    tokens: np.ndarray
    logits: np.ndarray | None
    past: OrtState | None
    is_ours: bool
    position: int = 0


class PromptGraphs:
    """The captured runs of a session over parts of prompts.

    Args:
        model: with a stream, ``model.gpu``, of a program that ``prompt_parts.why_not`` has nothing against.
        states: where the states lie.
    """

    def __init__(self, model: LoadedModel, states: StateMemory) -> None:
        if model.gpu is None:
            raise ValueError("the model has no stream to capture on")
        self._model = model
        self._gpu: GpuStream = model.gpu
        self._lock = threading.Lock()  # around what uses the memory
        self._states = states
        self._memory = PromptMemory(model, states)
        states.tell(self._let_go)
        self._captures = Captures("prompts are read")

    @property
    def capture_problem(self) -> str | None:
        """What a capture failed for; None where none has."""
        return self._captures.problem

    @property
    def captured(self) -> list[tuple[int, int]]:
        """(batch, length) of every part that is replayed."""
        with self._lock:
            return [key for key, part in self._memory.parts.items() if part.graph is not None]

    def initial_state(self, batch: int) -> OrtState:
        """What a batch starts from, whose tensors lie side by side: a prompt starts from it in one copy."""
        return self._states.initial_state(batch)

    def read(
        self, tokens: np.ndarray, state: OrtState | None, *, with_logits: bool
    ) -> tuple[np.ndarray | None, OrtState]:
        """Read a prompt.

        Args:
            tokens: (batch, length), checked.
            state: checked; left as it is. None for the start.
            with_logits: whether the logits are wanted.

        Returns:
            The logits as the program returns them, or None, and the state after the prompt.

        Raises:
            SessionError: ONNX Runtime or CUDA failed, above all where memory does not hold the shortest parts.
        """
        batch, length = tokens.shape
        metadata = self._model.metadata
        output = metadata.outputs[0]
        logits = None
        if with_logits:
            shape = (batch, length if has_all_logits(metadata) else 1, metadata.vocab_size)
            with allocating(shape, storage_dtype(output.dtype).itemsize):
                logits = np.empty(shape, storage_dtype(output.dtype))
        largest, start, result = largest_part(metadata, batch), 0, None
        while start < length:
            # Others may read theirs after each of the largest parts.
            end = start + largest if length - start >= 2 * largest else length
            wanted = logits
            if logits is not None and has_all_logits(metadata):
                wanted = logits[:, start:end]
            elif end < length:
                wanted = None
            past = state if result is None else result
            reading = _Reading(tokens[:, start:end], wanted, past, is_ours=result is not None)
            result = self._read_in_memory(reading)
            start = end
        assert result is not None
        return (None if logits is None else logits.view(NUMPY_DTYPES[output.dtype])), result

    def _read_in_memory(self, reading: _Reading) -> OrtState:
        """Read tokens by parts that memory holds: smaller ones from then on where it is short."""
        batch = len(reading.tokens)
        with self._lock:
            largest = self._memory.largest(batch)
            while True:
                buffers = None
                try:
                    buffers = self._memory.take(batch, largest)
                    return self._read(buffers, reading)
                except SessionError as error:
                    if not _is_of_memory(error) or largest <= LEAST:
                        raise
                finally:
                    if buffers is not None:
                        self._memory.put(buffers)
                largest //= 2

    def _read(self, buffers: Buffers, reading: _Reading) -> OrtState:
        gpu, tokens, logits = self._gpu, reading.tokens, reading.logits
        has_all = has_all_logits(self._model.metadata)
        try:
            for length in part_lengths(tokens.shape[1] - reading.position, buffers.largest):
                part = self._memory.part(buffers, length)
                before, after = reading.position, reading.position + length
                with gpu.lock:
                    buffers.queue_past(reading.past)
                    if reading.past is not None and reading.is_ours:
                        buffers.present.take_back(reading.past)
                    buffers.present.move_lent()
                    reading.past = buffers.past.state  # still, if the part fails
                    gpu.queue_upload(
                        buffers.tokens.address, np.ascontiguousarray(tokens[:, before:after])
                    )
                self._run(part)
                reading.past, reading.position = buffers.present.state, after
                if logits is not None and has_all:
                    self._fetch(buffers.logits, logits[:, before:after])
            if logits is not None and not has_all:
                with gpu.lock:
                    buffers.queue_last_logits()
            result = buffers.present.lend()  # the GPU is at work meanwhile
        finally:
            with gpu.lock:
                gpu.wait()
        if logits is not None and not has_all:
            logits[:] = buffers.last_logits()
        return result

    def _let_go(self) -> None:
        if self._lock.acquire(blocking=False):  # else a prompt is being read
            try:
                self._memory.let_go()
            finally:
                self._lock.release()

    def _run(self, part: Part) -> None:
        wanted = part.graph is None and part.runs >= _RUNS_BEFORE_CAPTURE
        if wanted and self.capture_problem is None:
            try:
                part.graph = capture(self._model, part.binding)
            except SessionError as error:
                self._captures.give_up(error)
        if part.graph is None:
            execute(self._model, part.binding)
            part.runs += 1
        else:
            with self._gpu.lock:
                self._gpu.launch(part.graph)

    def _fetch(self, source: DeviceTensor, to: np.ndarray) -> None:
        """Copy logits, which lie without gaps on the device, to the host once they are there."""
        stored = to if to.flags.c_contiguous else np.empty(to.shape, to.dtype)
        with self._gpu.lock:
            self._gpu.copy(stored.ctypes.data, source.address, stored.nbytes)
        if stored is not to:
            to[:] = stored


def _is_of_memory(error: SessionError) -> bool:
    """Whether memory was short, in the words of ONNX Runtime, CUDA or ours."""
    text = str(error).lower()
    return any(words in text for words in ("alloc", "out of memory", "available memory"))
