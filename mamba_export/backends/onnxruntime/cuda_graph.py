"""The step of a batch that decodes in ONNX Runtime on an NVIDIA GPU, captured in a CUDA graph.

States stay in the graph's own buffers. The next token is chosen on the device and
lies where the model reads it, so that a token costs the host one launch and one number to read. Two choices
have slots to lie in, so that a step may be launched before the host has read what the one ahead chose.
"""

from __future__ import annotations

import ctypes
import functools
import threading

import numpy as np
import onnxruntime as ort

from mamba_export import contract
from mamba_export.backends.onnxruntime.binding import (
    bind_input,
    bind_output,
    bind_states,
    execute,
)
from mamba_export.backends.onnxruntime.capture import capture
from mamba_export.backends.onnxruntime.cuda_stream import (
    CHOOSE_BEST,
    CHOOSE_DRAWN,
    CHOOSE_NOTHING,
    NOT_CHOSEN,
    ChoiceOptions,
    ChooseParams,
    GpuStream,
    Graph,
)
from mamba_export.backends.onnxruntime.device import DeviceTensor
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_block import BlockKind, BlockState, StateBlock
from mamba_export.backends.onnxruntime.state_memory import StateMemory
from mamba_export.errors import SessionError
from mamba_export.generation.captures import Captures
from mamba_export.generation.sampling import Sampler, divisor
from mamba_export.generation.state import step_sizes

_SLOTS = 2  # of the choices of steps that are under way


class StepGraph:
    """The buffers of a batch that decodes, and the CUDA graph of its step.

    Args:
        model: with a stream, ``model.gpu``.
        block: where the states lie: of the batch, and the graph's alone while it is in use.
        captures: of the session.

    Raises:
        SessionError: the GPU has no memory for the buffers.
    """

    def __init__(self, model: LoadedModel, block: StateBlock, captures: Captures) -> None:
        if model.gpu is None:
            raise ValueError("the model has no stream to capture on")
        self._model = model
        self._captures = captures
        self._gpu: GpuStream = model.gpu
        self.batch = batch = block.batch
        metadata, device = model.metadata, model.device
        output = metadata.outputs[0]
        shape = output.resolve(step_sizes(metadata, batch))
        self._tokens = DeviceTensor.empty("int64", (batch, 1), device)
        self._logits = DeviceTensor.empty(output.dtype, shape, device)
        self._scores = DeviceTensor.empty("fp32", shape, device)
        # A byte a token; bytes are no dtype of a model's tensors.
        self._seen = DeviceTensor.empty("fp16", (batch, -(-shape[-1] // 2)), device)
        self.block = block
        # Our layers may write a state where they read it. The graph of somebody else's module may write one
        # before it has read it for the last time.
        self._present = block if metadata.model else StateBlock(BlockKind.of(model), batch)
        self._starts = False  # whether the next step is the first
        self._host_tokens = self._gpu.host_array((batch,), np.int64)
        self._slots = DeviceTensor.empty("int64", (batch,), device)
        self._chosen = self._gpu.host_array((_SLOTS, batch), np.int64)
        self._draws = self._gpu.host_array((_SLOTS, batch), np.float64)
        self._launched = self._read = 0  # choices since the start
        self._options = ChoiceOptions()
        self._sent_options = b""  # those on the device
        self._device_options = DeviceTensor.empty("uint8", (ctypes.sizeof(ChoiceOptions),), device)
        self._choice = CHOOSE_NOTHING
        self._params = ChooseParams(
            batch=batch,
            vocab_size=shape[-1],
            dtype=contract.DTYPES.index(output.dtype),
            logits=self._logits.address,
            scores=self._scores.address,
            seen=self._seen.address,
            options=self._device_options.address,
            draws=self._draws.ctypes.data,
            next=self._tokens.address,
            chosen=self._chosen.ctypes.data,
            turns=self._slots.address,
        )
        self._step = self._bind()
        self._graph: Graph | None = None
        self._has_run = False

    @property
    def is_captured(self) -> bool:
        """Whether steps after the first are replayed."""
        return self._graph is not None

    @property
    def capture_problem(self) -> str | None:
        """What a capture failed for; None where none has."""
        return self._captures.problem

    def start(self, state: OrtState) -> None:
        """Let the next step go on from a state, which is left as it is.

        One that lies in the block already is moved by the first step, if somebody holds it by then.
        """
        with self._gpu.lock:
            self._gpu.queue_upload(self._slots.address, np.zeros(self.batch, np.int64))
            if not self.block.holds(state):
                self.block.move_lent()
                self.block.queue_copy_of(state)
            self._gpu.wait()
        self._launched = self._read = 0
        self._starts = True

    def set_choice(self, sampler: Sampler | None) -> None:
        """Choose the tokens to come as a sampler would; None for no choice."""
        if sampler is None:
            self._choice = CHOOSE_NOTHING
            return
        sampling = sampler.sampling
        self._choice = CHOOSE_BEST if sampling.temperature == 0 else CHOOSE_DRAWN
        self._options.temperature = float(divisor(sampling))
        self._options.top_k = min(sampling.top_k, np.iinfo(np.int32).max)
        self._options.top_p = sampling.top_p
        self._options.repetition_penalty = sampling.repetition_penalty
        if sampler.seen is not None:
            seen = np.ascontiguousarray(sampler.seen)
            with self._gpu.lock:
                self._gpu.copy(self._seen.address, seen.ctypes.data, seen.nbytes)

    @property
    def is_ahead(self) -> bool:
        """Whether a step is under way, or done, whose choice nobody has read."""
        return self._launched > self._read

    def set_tokens(self, tokens: np.ndarray) -> None:
        """(batch,) tokens that the next step reads, where they are not those that were chosen.

        No step that was launched may still read others.
        """
        self._host_tokens[:] = tokens
        with self._gpu.lock:
            self._gpu.queue_copy(
                self._tokens.address, self._host_tokens.ctypes.data, self._host_tokens.nbytes
            )

    def launch(self, draws: np.ndarray | None) -> None:
        """Launch a step that reads one token a sequence, and chooses the next.

        Args:
            draws: (batch,) numbers in [0, 1) for the choice; None where it draws nothing.

        Raises:
            SessionError: ONNX Runtime or CUDA failed.
        """
        slot = self._launched % _SLOTS
        if draws is not None:
            self._draws[slot] = draws
        self._chosen[slot] = NOT_CHOSEN
        self._advance(self._choice)

    def chosen(self) -> np.ndarray:
        """Of the first step that was launched and not read: (batch,) int64, valid until the next launch.

        It is -1 where the largest logit is not finite.

        Raises:
            SessionError: CUDA failed.
        """
        tokens = self._chosen[self._read % _SLOTS]
        with self._gpu.lock:
            self._gpu.wait_choice(tokens)
        self._read += 1
        return tokens

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Of a step that reads these (batch,) tokens: (batch, vocab_size) fp32, valid until the next.

        The GPU makes fp32 of them: NumPy takes 1 to 2 ns a number.

        Raises:
            SessionError: ONNX Runtime or CUDA failed.
        """
        self.set_tokens(tokens)
        self._advance(CHOOSE_NOTHING)
        self._read += 1
        with self._gpu.lock:
            self._gpu.copy(
                self._host_logits.ctypes.data, self._scores.address, self._host_logits.nbytes
            )
        return self._host_logits[:, 0]

    def finish(self) -> bool:
        """Wait for a step that nobody reads; False where somebody else uses the stream just now."""
        if not self.is_ahead:
            return True
        # No blocking: the garbage collector may come here from within a use of the stream.
        if not self._gpu.lock.acquire(blocking=False):
            return False
        try:
            self._gpu.wait()
        finally:
            self._gpu.lock.release()
        return True

    def _advance(self, choice: int) -> None:
        self._options.choice = choice
        self._send_options()
        if self._starts:
            with self._gpu.lock:
                self.block.move_lent()
            self._starts = False
        if self._graph is None and self._has_run and self.capture_problem is None:
            self._capture()
        self._launched += 1  # first: an interrupt may come once it is launched
        try:
            if self._graph is None:
                self._run_uncaptured()
            else:
                with self._gpu.lock:
                    self._gpu.launch(self._graph)
        except Exception:
            self._launched -= 1
            raise

    @functools.cached_property
    def _host_logits(self) -> np.ndarray:
        return self._gpu.host_array(self._scores.shape, np.float32)

    def _send_options(self) -> None:
        options = bytes(self._options)
        if options != self._sent_options:
            with self._gpu.lock:
                self._gpu.queue_upload(
                    self._device_options.address, np.frombuffer(options, np.uint8)
                )
            self._sent_options = options

    def _run_uncaptured(self) -> None:
        execute(self._model, self._step)
        with self._gpu.lock:
            self._queue_rest()
            self._gpu.wait()
        self._has_run = True

    def _queue_rest(self) -> None:
        """Queue what follows the model's run in a step."""
        if self._present is not self.block:
            self.block.queue_copy_of(self._present.state)
        self._gpu.choose(self._params)

    def _capture(self) -> None:
        """Capture a step, which runs nothing. A model that cannot be captured runs uncaptured.

        The step before has done what happens once: cuBLAS has chosen, kernels are loaded.
        """
        try:
            self._graph = capture(self._model, self._step, self._queue_rest)
        except SessionError as error:
            self._captures.give_up(error)

    def _bind(self) -> ort.IOBinding:
        binding = self._model.session.io_binding()
        bind_input(binding, self._model.metadata.inputs[0].name, self._tokens)
        bind_states(binding, self._model.metadata, self.block.state, self._present.state)
        bind_output(binding, self._model.metadata.outputs[0].name, self._logits)
        return binding


class StepGraphs:
    """The step graphs of a session: one that is idle is kept for the next generation of its batch size.

    Args:
        model: with a stream, ``model.gpu``.
        states: where the states lie.
    """

    def __init__(self, model: LoadedModel, states: StateMemory) -> None:
        self._model = model
        self.states = states
        states.tell(self._let_go)
        self._captures = Captures("steps run")
        self.metadata = model.metadata
        self._idle: StepGraph | None = None
        self._ending: list[StepGraph] = []  # of which a step is under way, in their memory
        self._lock = threading.RLock()  # put may be called by the garbage collector, inside take

    def take(self, state: OrtState) -> StepGraph:
        """A graph to go on from a state, nobody else's until it is put back."""
        with self._lock:
            graph, self._idle = self._idle, None
            self._ending = [one for one in self._ending if not one.finish()]
        if graph is not None and graph.batch == state.batch:
            is_best = graph.block.holds(state) or not graph.block.is_large
            is_best = is_best or not isinstance(state, BlockState) or state.place.block is None
            if is_best and self.states.take_again(graph.block):
                return graph
        # One of another size goes, and its memory, before the new one asks for its own.
        del graph
        block = self.states.take_for(state)
        try:
            return StepGraph(self._model, block, self._captures)
        except BaseException:
            self.states.put(block)
            raise

    def put(self, graph: StepGraph) -> None:
        """Give a graph back. One whose state somebody holds is theirs."""
        if not graph.finish():
            with self._lock:
                self._ending.append(graph)
        if not graph.block.is_lent:
            self.states.put(graph.block)
            with self._lock:
                self._idle = graph

    def _let_go(self) -> None:
        with self._lock:
            if self._idle is not None and self._idle.block.is_large:
                self._idle = None
