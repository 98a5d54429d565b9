"""``OrtSession``: an exported folder in ONNX Runtime, on a CPU or an NVIDIA GPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike

from mamba_export.backends.onnxruntime.binding import (
    bind_host_output,
    bind_input,
    bind_states,
    empty_state,
    execute,
)
from mamba_export.backends.onnxruntime.cuda_graph import GraphStepper, StepGraphs
from mamba_export.backends.onnxruntime.device import DeviceTensor, storage_dtype
from mamba_export.backends.onnxruntime.loading import Provider, check_version, open_session
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.stepper import OrtStepper
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import read_metadata
from mamba_export.folder.tokenizer import Tokenizer, load_tokenizer
from mamba_export.generation.generate import GenerationMethods
from mamba_export.generation.sampling import Sampler
from mamba_export.generation.sequence import check_sequence
from mamba_export.generation.state import check_state, model_arrays


class OrtSession(GenerationMethods):
    """An exported model, loaded.

    ``generate`` and ``stream`` write text; ``run`` is for those who drive the loop themselves. A session
    may be used by several threads at once: a state is never modified, and every call, stepper and
    generation has buffers of its own.

    Args:
        folder: what ``mamba-export export`` wrote.
        providers: ONNX Runtime's execution providers, best first, as names or (name, options); None for
            CUDA where the installed ONNX Runtime has it and a GPU works, else the CPU.
        threads: of the CPU provider; None lets ONNX Runtime choose.
        session_options: ONNX Runtime's, used instead of ours; then ``threads`` belongs there, and our
            library is registered on them.
        native: whether our compiled kernels run the nodes of our domain, or their function bodies in
            standard ONNX. None for the kernels where they are installed and cover the provider, which is
            the CPU, or CUDA with a GPU that they were built for; True makes their absence an error.

    Attributes:
        metadata: what the folder says of itself.
        device: where states lie.
        native: whether our compiled kernels run.

    Raises:
        SessionError: ONNX Runtime is too old, the folder is not ours or is damaged, this ONNX Runtime
            cannot run the file, or the kernels are wanted and absent, or do not load.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        session_options: ort.SessionOptions | None = None,
        native: bool | None = None,
    ) -> None:
        check_version()
        self.metadata = read_metadata(folder)
        self._model = open_session(self.metadata, providers, threads, session_options, native)
        self.device = self._model.device
        self.native = self._model.native
        self._kept_start: tuple[int, OrtState] | None = None
        self._graphs = None if self._model.gpu is None else StepGraphs(self._model)

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the provider that computes."""
        return str(self._model.session.get_providers()[0])

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer. Raises SessionError where it has none."""
        return load_tokenizer(self.metadata.folder)

    def initial_state(self, batch: int) -> OrtState:
        """Zeros: what a batch of sequences starts from. Raises SessionError for a batch below 1."""
        if batch < 1:
            raise SessionError(f"batch is {batch}, expected at least 1")
        zeros = [
            np.zeros(info.past.resolve(batch), NUMPY_DTYPES[info.past.dtype])
            for info in self.metadata.states
        ]
        return OrtState.from_numpy(zeros, self.device)

    def state_from_numpy(self, arrays: Sequence[np.ndarray]) -> OrtState:
        """A state from what ``OrtState.numpy()`` returned, or from floats of another dtype.

        Args:
            arrays: one a state tensor, in the metadata's order; converted to the model's dtypes.

        Raises:
            SessionError: their count or shapes are not those of this model's states.
        """
        state = OrtState.from_numpy(model_arrays(arrays, self.metadata), self.device)
        check_state(state.tensors, self.metadata)
        return state

    def concatenate(self, states: Sequence[OrtState]) -> OrtState:
        """One state of all their sequences, in order."""
        return OrtState.concatenate(states)

    def run(
        self, sequence: ArrayLike, state: OrtState | None = None
    ) -> tuple[np.ndarray, OrtState]:
        """Read a part of a batch of sequences.

        Args:
            sequence: token ids (batch, length), integers in [0, vocab_size); for a model without tokens
                floats (batch, length, d_model). Batch and length are at least 1.
            state: what the call for the part before returned; None at the start. It is left as it is.

        Returns:
            Logits (batch, length, vocab_size), or (batch, 1, vocab_size) of the last step where the file
            was exported with ``--last-logits-only``; for a model without tokens the last hidden state
            (batch, length, d_model). In the file's dtype; bf16 is ``ml_dtypes.bfloat16``. And the state
            after this part, on the device.

        Raises:
            SessionError: the sequence or the state is of a wrong shape, dtype or batch, a token id is
                outside the vocabulary, or ONNX Runtime failed (memory).
        """
        array = check_sequence(sequence, self.metadata)
        info = self.metadata.output
        output = np.empty(info.resolve(*array.shape[:2]), storage_dtype(info.dtype))
        new_state = self._run(array, state, output)
        return output.view(NUMPY_DTYPES[info.dtype]), new_state

    def advance(self, sequence: ArrayLike, state: OrtState | None = None) -> OrtState:
        """``run`` for the state alone: the logits do not leave the device."""
        return self._run(check_sequence(sequence, self.metadata), state, None)

    def stepper(self, state: OrtState) -> OrtStepper | GraphStepper:
        """A stepper that starts from ``state``, and leaves it as it is.

        Raises:
            SessionError: the model takes no tokens, or the state does not fit it.
        """
        self._check_start(state)
        if self._graphs is not None:
            return GraphStepper(self._graphs, state)
        return OrtStepper(self._model, state)

    def chooser(self, state: OrtState, sampler: Sampler, tokens: np.ndarray) -> GraphStepper | None:
        """A stepper that chooses tokens on the device; None where that cannot be done.

        Args:
            state: what to start from; it is left as it is.
            sampler: how tokens are chosen.
            tokens: (batch,) what its first step reads, trusted to be in [0, vocab_size).

        Raises:
            SessionError: the model takes no tokens, or the state does not fit it.
        """
        self._check_start(state)
        return None if self._graphs is None else GraphStepper(self._graphs, state, sampler, tokens)

    def _check_start(self, state: OrtState) -> None:
        if not self.metadata.takes_tokens:
            raise SessionError("this model takes no tokens: drive it with run")
        self._check_state(state)

    def _check_state(self, state: OrtState, batch: int | None = None) -> None:
        if not isinstance(state, OrtState):
            raise SessionError(
                f"state is a {type(state).__name__}: pass what run returned, or OrtState.from_numpy(...)"
            )
        check_state(state.tensors, self.metadata, batch)

    def _start(self, batch: int) -> OrtState:
        """The initial state, kept: a state is never modified, and copying zeros to a GPU takes a while."""
        kept = self._kept_start
        if kept is None or kept[0] != batch:
            kept = self._kept_start = (batch, self.initial_state(batch))
        return kept[1]

    def _run(
        self, array: np.ndarray, state: OrtState | None, output: np.ndarray | None
    ) -> OrtState:
        batch = array.shape[0]
        if state is None:
            state = self._start(batch)
        self._check_state(state, batch)
        # These are held until the graph has run: the binding knows addresses only.
        sequence = DeviceTensor.from_numpy(array, self.device)
        new_state = empty_state(self.metadata, batch, self.device)

        binding = self._model.session.io_binding()
        bind_input(binding, self.metadata.sequence.name, sequence)
        bind_states(binding, self.metadata, state, new_state)
        info = self.metadata.output
        if output is None:
            binding.bind_output(info.name, self.device.name, self.device.index)
        else:
            bind_host_output(binding, info.name, info.dtype, output)
        execute(self._model, binding)
        return new_state
