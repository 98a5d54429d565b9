"""What prompts are read in on a GPU: memory of a batch, and the runs bound to it. The latest are kept."""

from __future__ import annotations

import collections
import weakref

import numpy as np
import onnxruntime as ort

from mamba_export.backends.onnxruntime.binding import bind_input, bind_output, bind_states
from mamba_export.backends.onnxruntime.cuda_stream import Graph
from mamba_export.backends.onnxruntime.device import DeviceTensor, storage_dtype
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.prompt_parts import largest_part
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_block import StateBlock
from mamba_export.backends.onnxruntime.state_memory import Start, StateMemory

_MOST_PARTS = 64  # that are remembered, with their graphs
_IDLE_BYTES = 1 << 28  # of memory that is kept for batch sizes other than the last


class Buffers:
    """What prompts of a batch are read in: every part reads and writes the same memory.

    States are not in place: a graph may write one before it has read it for the last time, and a copy of all
    states takes microseconds.

    Args:
        model: with a stream, ``model.gpu``.
        start: what the batch starts from.
        past: what every part reads.
        present: what every part writes; others use it between prompts.
        largest: tokens of each sequence in the largest part.

    Raises:
        SessionError: the GPU has no memory for them.
    """

    def __init__(
        self, model: LoadedModel, start: Start, past: StateBlock, present: StateBlock, largest: int
    ) -> None:
        metadata = model.metadata
        ids, output = metadata.inputs[0], metadata.outputs[0]
        self.batch = batch = past.batch
        self.largest = largest
        self.past, self.present = past, present
        self._gpu = start.gpu
        self._start = start
        self._host_logits: np.ndarray | None = None
        self._in_past: weakref.ref[OrtState | Start] | None = None  # whose content the parts read
        self.tokens = DeviceTensor.empty(ids.dtype, (batch, largest), model.device)
        shape = output.resolve(_sizes(model, batch, largest))
        self.logits = DeviceTensor.empty(output.dtype, shape, model.device)
        self.nbytes = 2 * self.past.nbytes + self.tokens.nbytes + self.logits.nbytes

    def queue_past(self, state: OrtState | None) -> None:
        """Queue a copy of the state that the next part starts from, unless it is the one before's.

        Parts do not change it, and most prompts start from the same, which is as large as all states.

        Args:
            state: None for the start of a sequence.
        """
        state = self._start.state if state is None else state
        source = self._start if state is None else state
        if state is self.past.state or (self._in_past is not None and self._in_past() is source):
            return
        self._in_past = None
        if state is None:
            self._start.queue_into(self.past)
        else:
            self.past.queue_copy_of(state)
        if state is not self.present.state:  # which every part changes
            self._in_past = weakref.ref(source)

    def queue_last_logits(self) -> None:
        """Queue a copy to the host of all logits, of a program that returns those of the last step alone.

        It runs right behind the part: the host waits once, for both.
        """
        if self._host_logits is None:
            logits = self.logits
            self._host_logits = self._gpu.host_array(logits.shape, storage_dtype(logits.dtype))
        host = self._host_logits
        self._gpu.queue_copy(host.ctypes.data, self.logits.address, host.nbytes)

    def last_logits(self) -> np.ndarray:
        """What was copied, once the stream was waited for; the next copy overwrites it."""
        assert self._host_logits is not None
        return self._host_logits


class Part:
    """A run over so many tokens of each sequence."""

    def __init__(self, model: LoadedModel, buffers: Buffers, length: int) -> None:
        metadata = model.metadata
        ids, output = metadata.inputs[0], metadata.outputs[0]
        shape = output.resolve(_sizes(model, buffers.batch, length))
        self.runs = 0  # plain ones
        self.graph: Graph | None = None
        self.binding: ort.IOBinding = model.session.io_binding()
        self._buffers = buffers  # a binding, and a graph, hold addresses only
        bind_input(self.binding, ids.name, buffers.tokens.start((buffers.batch, length)))
        bind_states(self.binding, metadata, buffers.past.state, buffers.present.state)
        bind_output(self.binding, output.name, buffers.logits.start(shape))


def _sizes(model: LoadedModel, batch: int, length: int) -> dict[str, int]:
    names = map(str, model.metadata.inputs[0].shape)
    return dict(zip(names, (batch, length), strict=True))


class PromptMemory:
    """The buffers and the runs of the prompts that were read last. For one thread at a time.

    Args:
        model: with a stream, ``model.gpu``.
        states: where the states lie.
    """

    def __init__(self, model: LoadedModel, states: StateMemory) -> None:
        self._model = model
        self._states = states
        self._buffers: collections.OrderedDict[int, Buffers] = collections.OrderedDict()
        self.parts: collections.OrderedDict[tuple[int, int], Part] = collections.OrderedDict()

    def largest(self, batch: int) -> int:
        """Tokens of the largest part that prompts of a batch were read by last; at first what is best."""
        kept = self._buffers.get(batch)
        return largest_part(self._model.metadata, batch) if kept is None else kept.largest

    def part(self, buffers: Buffers, length: int) -> Part:
        """The run over so many tokens in these buffers."""
        key = buffers.batch, length
        part = self.parts.pop(key, None) or Part(self._model, buffers, length)
        self.parts[key] = part
        if len(self.parts) > _MOST_PARTS:
            self.parts.popitem(last=False)
        return part

    def take(self, batch: int, largest: int) -> Buffers:
        """Buffers of a batch, for parts of up to ``largest`` tokens; to be put back.

        Raises:
            SessionError: the GPU has no memory for them.
        """
        kept = self._buffers.pop(batch, None)
        while sum(each.nbytes for each in self._buffers.values()) > _IDLE_BYTES:
            oldest = next(iter(self._buffers))
            del self._buffers[oldest]
            self._forget_parts(oldest)
        is_free = kept is not None and self._states.take_again(kept.present)  # else it decodes
        if kept is not None and is_free and kept.largest == largest:
            self._buffers[batch] = kept
            return kept
        self._forget_parts(batch)
        present = kept.present if kept is not None and is_free else self._states.take(batch)
        try:
            past = StateBlock(self._states.kind, batch) if kept is None else kept.past
            buffers = Buffers(self._model, self._states.start(batch), past, present, largest)
        except BaseException:
            self._states.put(present)
            raise
        self._buffers[batch] = buffers
        return buffers

    def put(self, buffers: Buffers) -> None:
        """Give buffers back; a state that lies there may be lent."""
        self._states.put(buffers.present)

    def let_go(self) -> None:
        """Give up the memory of large states."""
        for batch in [b for b, each in self._buffers.items() if each.past.is_large]:
            del self._buffers[batch]
            self._forget_parts(batch)

    def _forget_parts(self, batch: int) -> None:
        for key in [key for key in self.parts if key[0] == batch]:
            del self.parts[key]
