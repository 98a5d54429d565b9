"""What prompts are read in on a GPU: memory of a batch, and the runs bound to it. The latest are kept."""

from __future__ import annotations

import collections
import weakref

import onnxruntime as ort

from mamba_export.backends.onnxruntime.binding import bind_input, bind_output, bind_states
from mamba_export.backends.onnxruntime.cuda_stream import Graph
from mamba_export.backends.onnxruntime.device import DeviceTensor
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.prompt_parts import largest_part
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_block import StateBlock

_MOST_PARTS = 64  # that are remembered, with their graphs
_IDLE_BYTES = 1 << 28  # of memory that is kept for batch sizes other than the last


class Buffers:
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
        self._in_past: weakref.ref[OrtState] | None = None  # whose content the parts read
        self.tokens = DeviceTensor.empty(ids.dtype, (batch, largest), model.device)
        shape = output.resolve(_sizes(model, batch, largest))
        self.logits = DeviceTensor.empty(output.dtype, shape, model.device)
        self.nbytes = 2 * self.past.nbytes + self.tokens.nbytes + self.logits.nbytes

    def queue_past(self, state: OrtState) -> None:
        """Queue a copy of the state that the next part starts from, unless it is the one before's.

        Parts do not change it, and most prompts start from the same, which is as large as all states.
        """
        if self._in_past is not None and self._in_past() is state:
            return
        self._in_past = None
        self.past.queue_copy_of(state)
        if state is not self.present.state:  # which every part changes
            self._in_past = weakref.ref(state)


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
    """The buffers and the runs of the prompts that were read last. For one thread at a time."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
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

    def buffers(self, batch: int, largest: int) -> Buffers:
        """Of a batch, for parts of up to ``largest`` tokens.

        Raises:
            SessionError: the GPU has no memory for them.
        """
        buffers = self._buffers.pop(batch, None)
        if buffers is None or buffers.largest != largest:
            del buffers
            self._forget_parts(batch)
            buffers = Buffers(self._model, batch, largest)
        self._buffers[batch] = buffers
        idle = sum(each.nbytes for each in self._buffers.values()) - buffers.nbytes
        while idle > _IDLE_BYTES:
            oldest, gone = self._buffers.popitem(last=False)
            self._forget_parts(oldest)
            idle -= gone.nbytes
        return buffers

    def _forget_parts(self, batch: int) -> None:
        for key in [key for key in self.parts if key[0] == batch]:
            del self.parts[key]
