"""A stand-in for CUDA under ONNX Runtime: the stream and the captures of a session, on the CPU.

Work that is queued is done when somebody waits for it, and work between the begin and the end of a capture is
noted in place of being run, as CUDA does: what is run twice, not at all or from memory that has changed since
gives other numbers.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mamba_export.backends.onnxruntime.cuda_graph import StepGraphs
from mamba_export.backends.onnxruntime.cuda_stream import (
    CHOOSE_DRAWN,
    CHOOSE_NOTHING,
    NOT_CHOSEN,
    ChoiceOptions,
    ChooseParams,
)
from mamba_export.backends.onnxruntime.device import Device, DeviceTensor
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.prompt_graphs import PromptGraphs
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.state_memory import StateMemory
from mamba_export.errors import SessionError
from mamba_export.generation.sampling import Sampling, penalise, warp


class FakeStream:
    """A ``GpuStream`` whose device is the CPU."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.noted: list[Callable[[], None]] | None = None
        self.queued: list[Callable[[], None]] = []
        self.runs = 0
        self.choices = 0
        self.problem = ""

    def queue(self, work: Callable[[], None]) -> None:
        assert self.lock.locked()
        (self.queued if self.noted is None else self.noted).append(work)

    def copy(self, to: int, source: int, size: int) -> None:
        self.queue_copy(to, source, size)
        self.wait()

    def queue_copy(self, to: int, source: int, size: int) -> None:
        self.queue(lambda: ctypes.memmove(to, source, size) and None)

    def queue_upload(self, to: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        staged = array.tobytes()
        self.queue(lambda: ctypes.memmove(to, staged, len(staged)) and None)

    def wait(self) -> None:
        assert self.lock.locked()
        assert self.noted is None, "a capture cannot wait"
        while self.queued:
            self.queued.pop(0)()

    def wait_choice(self, chosen: np.ndarray) -> None:
        """What is queued after the choice is left undone, as late as it may be on a GPU."""
        assert self.lock.locked()
        while (chosen == NOT_CHOSEN).any():
            assert self.queued, "nothing that is queued chooses"
            self.queued.pop(0)()

    def choose(self, params: ChooseParams) -> None:
        self.queue(lambda: self._choose(params))

    def begin_capture(self) -> None:
        assert self.lock.locked()
        self.noted = []

    def end_capture(self) -> Any:
        graph, self.noted = self.noted, None
        if self.problem:
            raise SessionError(self.problem)
        return graph

    def abandon_capture(self) -> None:
        self.noted = None

    def run(self, graph: Any) -> None:
        self.launch(graph)
        self.wait()

    def launch(self, graph: Any) -> None:
        self.runs += 1
        for work in graph:
            self.queue(work)

    def device_memory(self, size: int) -> DeviceTensor:
        return DeviceTensor.empty("uint8", (size,), Device())

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def _choose(self, params: ChooseParams) -> None:
        """What plugins/kernels/decode/cuda/sample.cu does, by the functions that define it."""
        self.choices += 1
        options = ChoiceOptions.from_address(params.options)
        shape = (params.batch, params.vocab_size)

        def array(address: int, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
            pointer = ctypes.cast(address, ctypes.POINTER(kind))
            return np.ctypeslib.as_array(pointer, shape)

        turns = array(params.turns, ctypes.c_int64, shape[:1])
        slot = int(turns[0])
        turns[:] = 1 - slot
        logits = array(params.logits, ctypes.c_float, shape)
        if options.choice == CHOOSE_NOTHING:
            array(params.scores, ctypes.c_float, shape)[:] = logits
            return
        seen = array(params.seen, ctypes.c_uint8, shape)
        draws = array(params.draws, ctypes.c_double, (2, *shape[:1]))[slot]
        if options.repetition_penalty != 1:
            logits = penalise(logits, seen.astype(bool), options.repetition_penalty)
        tokens = logits.argmax(axis=-1)
        if options.choice == CHOOSE_DRAWN:
            sampling = Sampling(options.temperature, options.top_k, options.top_p)
            weights = np.exp(warp(logits, sampling)).cumsum(axis=-1, dtype=np.float64)
            tokens = (weights <= (draws * weights[:, -1])[:, None]).sum(axis=-1)
        finite = np.isfinite(logits.max(axis=-1))
        if options.repetition_penalty != 1:
            seen[np.arange(shape[0]), tokens] = 1
        array(params.next, ctypes.c_int64, shape[:1])[:] = np.where(finite, tokens, 0)
        chosen = array(params.chosen, ctypes.c_int64, (2, *shape[:1]))[slot]
        assert (chosen == NOT_CHOSEN).all(), "the host waits for no choice in this slot"
        chosen[:] = np.where(finite, tokens, -1)


class FakeInference:
    """ONNX Runtime's session, whose runs are noted while the stream is captured."""

    def __init__(self, session: Any, stream: FakeStream) -> None:
        self.session = session
        self.stream = stream
        self.failure: Callable[[], BaseException] | None = None

    def io_binding(self) -> Any:
        return self.session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        assert self.stream.lock.locked(), "others may be capturing"
        assert (options is None) == (self.stream.noted is None)
        if self.stream.noted is not None and self.failure is not None:
            raise self.failure()
        self.stream.queue(lambda: self.session.run_with_iobinding(binding))
        if options is None:
            self.stream.wait()


def on_graphs(folder: Path) -> tuple[OrtSession, FakeStream, FakeInference]:
    """A session whose steps are captured."""
    session = OrtSession(folder, providers=["CPUExecutionProvider"], threads=1, native=True)
    stream = FakeStream()
    inference = FakeInference(session._model.session, stream)
    old = session._model
    session._model = LoadedModel(inference, old.metadata, old.device, True, stream)  # type: ignore[arg-type]
    session._graphs = StepGraphs(session._model, StateMemory(session._model))
    return session, stream, inference


def on_prompt_graphs(folder: Path) -> tuple[OrtSession, FakeStream, FakeInference]:
    """A session whose steps are captured, and its prompts."""
    session, stream, inference = on_graphs(folder)
    assert session._graphs is not None
    session._prompts = PromptGraphs(session._model, session._graphs.states)
    return session, stream, inference
