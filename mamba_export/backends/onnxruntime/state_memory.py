"""Where the states of a session's batches lie on a GPU: after a prompt, while they decode, and before both.

A large state, such as the 11 GB of a Mamba-2 2.7B model at 64 sequences, has one block for what prompts leave
and for the steps that go on from there. With the block that prompts read, that is all that a session holds.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import numpy as np

from mamba_export.backends.onnxruntime import state_block
from mamba_export.backends.onnxruntime.device import DeviceTensor
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_block import BlockKind, BlockState, StateBlock
from mamba_export.generation.state import batch_sizes, start_array, start_shapes

_PIECE = 1 << 24  # bytes of zeros that are kept, to be copied as often as a block is long


class StateMemory:
    """The blocks of a session. Small ones are made anew for everybody; a large one serves all in turn.

    Args:
        model: with a stream, ``model.gpu``.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.kind = BlockKind.of(model)
        self._lock = threading.RLock()  # put may be called by the garbage collector, inside take
        self._kept: StateBlock | None = None  # the large one that was made last
        self._start: Start | None = None
        self._holders: list[weakref.WeakMethod[Callable[[], None]]] = []

    def tell(self, let_go: Callable[[], None]) -> None:
        """Have a bound method called before memory is asked for a large block: it gives up what lies idle."""
        self._holders.append(weakref.WeakMethod(let_go))

    def take(self, batch: int) -> StateBlock:
        """A block for the states of a batch, nobody else's until it is put back.

        Raises:
            SessionError: the GPU has no memory for it.
        """
        with self._lock:
            kept = self._kept
            if kept is not None and kept.batch == batch and not kept.is_taken:
                kept.is_taken = True
                return kept
            is_large = _is_large(self.kind, batch)
            if is_large:
                self._kept = None
        del kept
        if is_large:
            for holder in self._holders:
                let_go = holder()
                if let_go is not None:
                    let_go()
        block = StateBlock(self.kind, batch)
        block.is_taken = True
        if is_large:
            with self._lock:
                self._kept = block
        return block

    def take_again(self, block: StateBlock) -> bool:
        """Whether a block that was put back is free; it is the caller's then, until it is put back."""
        with self._lock:
            is_free = not block.is_taken
            block.is_taken = True
        return is_free

    def take_for(self, state: OrtState) -> StateBlock:
        """A block to go on from a state in: the one that it lies in, where it is large and free."""
        block = state.place.block if isinstance(state, BlockState) else None
        if block is not None and block.is_large and self.take_again(block):
            return block
        del block
        return self.take(state.batch)

    def put(self, block: StateBlock) -> None:
        """Give a block back; a state that it has lent may lie there still."""
        with self._lock:
            block.is_taken = False

    def start(self, batch: int) -> Start:
        """What a batch starts from; kept for the next. The caller does not hold the stream's lock."""
        with self._lock:
            if self._start is None or self._start.batch != batch:
                self._start = None
                self._start = Start(self.kind, batch)
            return self._start

    def initial_state(self, batch: int) -> BlockState:
        """The initial state of a batch."""
        start = self.start(batch)
        if start.state is not None:
            return start.state
        block = self.take(batch)
        try:
            with self.kind.gpu.lock:
                block.move_lent()
                start.queue_into(block)
                self.kind.gpu.wait()
            return block.lend()
        finally:
            self.put(block)


class Start:
    """What the states of a batch hold before anything was read, to be copied into blocks.

    A large one of zeros, which the states of our models start with, is copied from a piece of it.

    Attributes:
        gpu: the stream on which it is copied.
        state: the whole, where it is kept; nobody writes there.
    """

    def __init__(self, kind: BlockKind, batch: int) -> None:
        self.gpu = kind.gpu
        self.batch = batch
        self.state: BlockState | None = None
        metadata = kind.metadata
        if not _is_large(kind, batch) or any(state.start for state in metadata.states):
            self.state = StateBlock(kind, batch).state
            shapes = start_shapes(metadata, batch_sizes(metadata, batch))
            for tensor, state, shape in zip(
                self.state.tensors, metadata.states, shapes, strict=True
            ):
                if tensor.nbytes:
                    self._upload(tensor.address, start_array(state, shape))
            return
        self._zeros = DeviceTensor.empty("uint8", (_PIECE,), kind.device)
        self._upload(self._zeros.address, np.zeros(_PIECE, np.uint8))

    def queue_into(self, block: StateBlock) -> None:
        """Queue that a block of the batch holds it."""
        if self.state is not None:
            block.queue_copy_of(self.state)
            return
        address = block.state.place.memory.address
        for position in range(0, block.nbytes, _PIECE):
            part = min(_PIECE, block.nbytes - position)
            self.gpu.queue_copy(address + position, self._zeros.address, part)

    def _upload(self, address: int, array: np.ndarray) -> None:
        with self.gpu.lock:
            self.gpu.queue_upload(address, array)
            self.gpu.wait()


def _is_large(kind: BlockKind, batch: int) -> bool:
    return kind.bytes(batch) >= state_block.LARGE
