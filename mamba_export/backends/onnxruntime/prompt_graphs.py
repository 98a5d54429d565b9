"""Prompts in ONNX Runtime on an NVIDIA GPU, read by runs that are captured in CUDA graphs.

A recurrent state makes a prompt of any length a chain of parts. Their lengths are few (``prompt_parts``), so
that most come again: each is run plainly at first, then captured, and costs the host one launch from then on.
Memory is that of the largest part, whatever the prompt.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

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
from mamba_export.backends.onnxruntime.state_block import StateBlock
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.generation.captures import Captures
from mamba_export.generation.state import allocating

_RUNS_BEFORE_CAPTURE = 2
"""Plain runs of a part. What is read once or twice is not worth a capture, and a capture needs what happens
once, such as cuBLAS's choices and the loading of kernels, to have happened."""


class PromptGraphs:
    """The captured runs of a session over parts of prompts.

    Args:
        model: with a stream, ``model.gpu``, of a program that ``prompt_parts.why_not`` has nothing against.
    """

    def __init__(self, model: LoadedModel) -> None:
        if model.gpu is None:
            raise ValueError("the model has no stream to capture on")
        self._model = model
        self._gpu: GpuStream = model.gpu
        self._lock = threading.Lock()  # around what uses the memory
        self._memory = PromptMemory(model)
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

    def block_of(self, batch: int, arrays: Iterable[np.ndarray]) -> OrtState:
        """A state of these arrays whose tensors lie side by side, from where a prompt starts in one copy.

        Each goes there from the host at once: those of a batch may be most of a GPU's memory, which does not
        hold them twice.
        """
        block = StateBlock(self._model.metadata, batch, self._model.device, self._gpu)
        with self._gpu.lock:
            for tensor, array in zip(block.state.tensors, arrays, strict=True):
                if array.nbytes:
                    self._gpu.queue_upload(tensor.address, array)
            self._gpu.wait()
        return block.state

    def read(
        self, tokens: np.ndarray, state: OrtState, *, with_logits: bool
    ) -> tuple[np.ndarray | None, OrtState]:
        """Read a prompt.

        Args:
            tokens: (batch, length), checked.
            state: checked; left as it is.
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
        largest, start = largest_part(metadata, batch), 0
        while start < length:
            # Others may read theirs after each of the largest parts.
            end = start + largest if length - start >= 2 * largest else length
            wanted = logits
            if logits is not None and has_all_logits(metadata):
                wanted = logits[:, start:end]
            elif end < length:
                wanted = None
            state = self._read_in_memory(tokens[:, start:end], state, wanted)
            start = end
        return (None if logits is None else logits.view(NUMPY_DTYPES[output.dtype])), state

    def _read_in_memory(
        self, tokens: np.ndarray, state: OrtState, logits: np.ndarray | None
    ) -> OrtState:
        """Read tokens by parts that memory holds: smaller ones from then on where it is short."""
        batch = len(tokens)
        with self._lock:
            largest = self._memory.largest(batch)
            while True:
                try:
                    return self._read(self._memory.buffers(batch, largest), tokens, state, logits)
                except SessionError as error:
                    if not _is_of_memory(error) or largest <= LEAST:
                        raise
                largest //= 2

    def _read(
        self,
        buffers: Buffers,
        tokens: np.ndarray,
        state: OrtState,
        logits: np.ndarray | None,
    ) -> OrtState:
        gpu, metadata = self._gpu, self._model.metadata
        try:
            past, position = state, 0
            for length in part_lengths(tokens.shape[1], buffers.largest):
                part = self._memory.part(buffers, length)
                after = position + length
                with gpu.lock:
                    buffers.queue_past(past)
                    gpu.queue_upload(
                        buffers.tokens.address, np.ascontiguousarray(tokens[:, position:after])
                    )
                self._run(part)
                past = buffers.present.state
                if logits is not None and has_all_logits(metadata):
                    self._fetch(buffers.logits, logits[:, position:after])
                position = after
            # The GPU is at work meanwhile.
            result = StateBlock(metadata, buffers.batch, self._model.device, gpu)
            with gpu.lock:
                result.queue_copy_of(buffers.present.state)
            if logits is not None and not has_all_logits(metadata):
                self._fetch(buffers.logits, logits)
        finally:
            with gpu.lock:
                gpu.wait()
        return result.state

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
