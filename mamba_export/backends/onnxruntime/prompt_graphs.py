"""Prompts in ONNX Runtime on an NVIDIA GPU, read by runs that are captured in CUDA graphs.

A recurrent state makes a prompt of any length a chain of parts. Their lengths are few (``prompt_parts``), so
that most come again: each is run plainly at first, then captured, and costs the host one launch from then on.
Memory is that of the largest part, whatever the prompt.
"""

from __future__ import annotations

import collections
import threading
import warnings

import numpy as np
import onnxruntime as ort

from mamba_export.backends.onnxruntime.binding import (
    bind_input,
    bind_output,
    bind_states,
    execute,
)
from mamba_export.backends.onnxruntime.capture import capture
from mamba_export.backends.onnxruntime.cuda_stream import GpuStream, Graph
from mamba_export.backends.onnxruntime.device import DeviceTensor, storage_dtype
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.prompt_parts import (
    LEAST,
    has_all_logits,
    largest_part,
    part_lengths,
)
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_block import StateBlock
from mamba_export.errors import MambaExportWarning, SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.generation.state import allocating

_RUNS_BEFORE_CAPTURE = 2
"""Plain runs of a part. What is read once or twice is not worth a capture, and a capture needs what happens
once, such as cuBLAS's choices and the loading of kernels, to have happened."""
_MOST_PARTS = 64  # that are remembered, with their graphs
_IDLE_BYTES = 1 << 28  # of memory that is kept for batch sizes other than the last


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
        self._lock = threading.Lock()  # one prompt at a time: the memory is shared
        self._buffers: collections.OrderedDict[int, _Buffers] = collections.OrderedDict()
        self._parts: collections.OrderedDict[tuple[int, int], _Part] = collections.OrderedDict()
        self.capture_problem: str | None = None  # what a capture failed for

    @property
    def captured(self) -> list[tuple[int, int]]:
        """(batch, length) of every part that is replayed."""
        with self._lock:
            return [key for key, part in self._parts.items() if part.graph is not None]

    def block_of(self, state: OrtState) -> OrtState:
        """A copy of a state whose tensors lie side by side, from where a prompt starts in one copy."""
        block = StateBlock(self._model.metadata, state.batch, self._model.device, self._gpu)
        with self._gpu.lock:
            block.queue_copy_of(state)
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
        batch, metadata = len(tokens), self._model.metadata
        result = StateBlock(metadata, batch, self._model.device, self._gpu)
        with self._lock:
            kept = self._buffers.get(batch)
            largest = largest_part(metadata, batch) if kept is None else kept.largest
            del kept
            while True:
                try:
                    self._read(self._buffers_of(batch, largest), tokens, state, logits, result)
                    return result.state
                except SessionError as error:
                    if not _is_of_memory(error) or largest <= LEAST:
                        raise
                largest //= 2

    def _read(
        self,
        buffers: _Buffers,
        tokens: np.ndarray,
        state: OrtState,
        logits: np.ndarray | None,
        result: StateBlock,
    ) -> None:
        gpu, metadata = self._gpu, self._model.metadata
        try:
            past, position = state, 0
            for length in part_lengths(tokens.shape[1], buffers.largest):
                part = self._part(buffers, length)
                after = position + length
                with gpu.lock:
                    buffers.past.queue_copy_of(past)
                    gpu.queue_upload(
                        buffers.tokens.address, np.ascontiguousarray(tokens[:, position:after])
                    )
                self._run(part)
                past = buffers.present.state
                if logits is not None and has_all_logits(metadata):
                    self._fetch(buffers.logits, logits[:, position:after])
                position = after
            with gpu.lock:
                result.queue_copy_of(buffers.present.state)
            if logits is not None and not has_all_logits(metadata):
                self._fetch(buffers.logits, logits)
        finally:
            with gpu.lock:
                gpu.wait()

    def _run(self, part: _Part) -> None:
        wanted = part.graph is None and part.runs >= _RUNS_BEFORE_CAPTURE
        if wanted and self.capture_problem is None:
            try:
                part.graph = capture(self._model, part.binding)
            except SessionError as error:
                self.capture_problem = str(error)
                warnings.warn(
                    f"prompts are read without CUDA graphs, and slower: {error}",
                    MambaExportWarning,
                    stacklevel=2,
                )
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

    def _part(self, buffers: _Buffers, length: int) -> _Part:
        key = buffers.batch, length
        part = self._parts.pop(key, None) or _Part(self._model, buffers, length)
        self._parts[key] = part
        if len(self._parts) > _MOST_PARTS:
            self._parts.popitem(last=False)
        return part

    def _buffers_of(self, batch: int, largest: int) -> _Buffers:
        buffers = self._buffers.pop(batch, None)
        if buffers is None or buffers.largest != largest:
            del buffers
            self._forget_parts(batch)
            buffers = _Buffers(self._model, batch, largest)
        self._buffers[batch] = buffers
        idle = sum(each.nbytes for each in self._buffers.values()) - buffers.nbytes
        while idle > _IDLE_BYTES:
            oldest, gone = self._buffers.popitem(last=False)
            self._forget_parts(oldest)
            idle -= gone.nbytes
        return buffers

    def _forget_parts(self, batch: int) -> None:
        for key in [key for key in self._parts if key[0] == batch]:
            del self._parts[key]


class _Buffers:
    """What prompts of a batch are read in: every part reads and writes the same memory.

    States are not in place: a graph may write one before it has read it for the last time, and a copy of all
    states takes microseconds.
    """

    def __init__(self, model: LoadedModel, batch: int, largest: int) -> None:
        assert model.gpu is not None
        metadata = model.metadata
        ids, output = metadata.inputs[0], metadata.outputs[0]
        self.batch = batch
        self.largest = largest
        self.past, self.present = (
            StateBlock(metadata, batch, model.device, model.gpu) for _ in range(2)
        )
        self.tokens = DeviceTensor.empty(ids.dtype, (batch, largest), model.device)
        shape = output.resolve(_sizes(model, batch, largest))
        self.logits = DeviceTensor.empty(output.dtype, shape, model.device)
        self.nbytes = 2 * self.past.nbytes + self.tokens.nbytes + self.logits.nbytes


class _Part:
    """A run over so many tokens of each sequence."""

    def __init__(self, model: LoadedModel, buffers: _Buffers, length: int) -> None:
        metadata = model.metadata
        ids, output = metadata.inputs[0], metadata.outputs[0]
        shape = output.resolve(_sizes(model, buffers.batch, length))
        self.runs = 0
        self.graph: Graph | None = None
        self.binding: ort.IOBinding = model.session.io_binding()
        self._buffers = buffers  # a binding, and a graph, hold addresses only
        bind_input(self.binding, ids.name, buffers.tokens.start((buffers.batch, length)))
        bind_states(self.binding, metadata, buffers.past.state, buffers.present.state)
        bind_output(self.binding, output.name, buffers.logits.start(shape))


def _sizes(model: LoadedModel, batch: int, length: int) -> dict[str, int]:
    names = map(str, model.metadata.inputs[0].shape)
    return dict(zip(names, (batch, length), strict=True))


def _is_of_memory(error: SessionError) -> bool:
    """Whether memory was short, in the words of ONNX Runtime, CUDA or ours."""
    text = str(error).lower()
    return any(words in text for words in ("alloc", "out of memory", "available memory"))
