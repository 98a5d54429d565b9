"""``OrtSession``: an exported folder in ONNX Runtime, on a CPU or an NVIDIA GPU."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import onnxruntime as ort

from mamba_export.backends.onnxruntime import prompt_parts
from mamba_export.backends.onnxruntime.binding import run_once
from mamba_export.backends.onnxruntime.cuda_graph import StepGraphs
from mamba_export.backends.onnxruntime.device import DeviceTensor
from mamba_export.backends.onnxruntime.graph_stepper import GraphStepper
from mamba_export.backends.onnxruntime.loading import check_version, open_session
from mamba_export.backends.onnxruntime.prompt_graphs import PromptGraphs
from mamba_export.backends.onnxruntime.providers import Provider
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_block import BlockState, gathered
from mamba_export.backends.onnxruntime.state_memory import StateMemory
from mamba_export.backends.onnxruntime.stepper import GrowingStepper, OrtStepper
from mamba_export.backends.onnxruntime.streamer import GraphStreamer, OrtStreamer
from mamba_export.contract.program import split_axis
from mamba_export.errors import SessionError
from mamba_export.folder.metadata import read_metadata
from mamba_export.folder.tokenizer import Tokenizer, load_tokenizer
from mamba_export.generation.generate import GenerationMethods
from mamba_export.generation.sampling import Sampler
from mamba_export.generation.state import (
    alike,
    batch_sizes,
    check_state,
    model_arrays,
    start_array,
    start_shapes,
)
from mamba_export.generation.values import (
    Inputs,
    check_inputs,
    check_samples,
    check_tokens_alone,
    returned,
)


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
        self._kept_start: tuple[dict[str, int], OrtState] | None = None
        sizes = (size for state in self.metadata.states for size in state.past.shape)
        self._state_axes = {split_axis(size)[1] for size in sizes if isinstance(size, str)}
        # A step can be captured where its buffers stay: a state that grows takes others every time.
        has_graphs = self._model.gpu is not None and not self.metadata.grows
        memory = StateMemory(self._model) if has_graphs else None
        self._graphs = None if memory is None else StepGraphs(self._model, memory)
        reads_graphs = memory is not None and prompt_parts.why_not(self.metadata) is None
        self._prompts = PromptGraphs(self._model, memory) if memory and reads_graphs else None

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the provider that computes."""
        return str(self._model.session.get_providers()[0])

    @property
    def splits_prompts(self) -> bool:
        """Whether ``run`` and ``advance`` read any length in bounded memory, by captured parts."""
        return self._prompts is not None

    @property
    def capture_problem(self) -> str | None:
        """Why prompts are read without CUDA graphs; None where nothing is known against it."""
        if self._prompts is not None:
            return self._prompts.capture_problem
        if self._model.gpu is None:
            return (
                "the session has no CUDA stream of its own, which our kernels on CUDA need and make"
            )
        return prompt_parts.why_not(self.metadata)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer. Raises SessionError where it has none."""
        return load_tokenizer(self.metadata.folder)

    def initial_state(self, batch: int) -> OrtState:
        """What a batch of sequences starts from: each state's start value; what grows has length 0.

        Raises:
            SessionError: a batch below 1, or a state whose size the batch does not tell.
        """
        if self._prompts is not None:
            return self._prompts.initial_state(batch)
        return self._start_state(batch_sizes(self.metadata, batch))

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
        states = alike(states, OrtState)
        blocks = [one for one in states if self._is_block(one)]
        if len(blocks) < len(states) or not blocks[0].kind.has_batches:
            return OrtState.concatenate(states)
        rows = [(one, row) for one in blocks for row in range(one.batch)]
        return gathered(blocks[0].kind, rows)

    def run(self, inputs: Inputs, state: OrtState | None = None) -> tuple[Any, OrtState]:
        """Run the program, on a part of a batch of sequences where it has states.

        Args:
            inputs: of a program with one input its array, as token ids (batch, length), integers in [0,
                vocab_size), or floats (batch, length, d_model); of several a mapping by name, or a tuple in
                order. ``metadata.inputs`` tells of them. Batch and length are at least 1.
            state: what the call for the part before returned; None at the start. It is left as it is.

        Returns:
            Of a program with one output its array, of several a dict by name. Of a language model: logits
            (batch, length, vocab_size), or (batch, 1, vocab_size) of the last step where the file was exported
            with ``--last-logits-only``; of a backbone the last hidden state (batch, length, d_model). In
            the program's dtypes; bf16 is ``ml_dtypes.bfloat16``. And the state after this part, on the device
            (empty for a program without states).

        Raises:
            SessionError: an input or the state is of a wrong shape, dtype or batch, a token id is outside the
                vocabulary, or ONNX Runtime failed (memory).
        """
        checked = check_inputs(inputs, self.metadata)
        if state is not None:
            self._check_state(state, checked.sizes)
        if self._prompts is not None:
            return self._prompts.read(checked.first, state, with_logits=True)
        start = self._start_state(checked.sizes) if state is None else state
        outputs, new_state = run_once(self._model, checked, start)
        return returned(outputs, self.metadata), new_state

    def advance(self, inputs: Inputs, state: OrtState | None = None) -> OrtState:
        """``run`` for the state alone: the outputs do not leave the device."""
        checked = check_inputs(inputs, self.metadata)
        if state is not None:
            self._check_state(state, checked.sizes)
        if self._prompts is not None:
            return self._prompts.read(checked.first, state, with_logits=False)[1]
        start = self._start_state(checked.sizes) if state is None else state
        return run_once(self._model, checked, start, with_outputs=False)[1]

    def stepper(self, state: OrtState) -> OrtStepper | GrowingStepper | GraphStepper:
        """A stepper that starts from ``state``, and leaves it as it is.

        Raises:
            SessionError: the model takes no tokens or more than tokens, or the state does not fit it.
        """
        self._check_start(state)
        if self._graphs is not None:
            return GraphStepper(self._graphs, state)
        if self.metadata.grows:
            return GrowingStepper(self._model, state)
        return OrtStepper(self._model, state)

    def streamer(self, state: OrtState | None = None) -> OrtStreamer | GraphStreamer:
        """Drive a program without tokens, such as one that reads sensors, one sample at a time.

        Args:
            state: what to start from, left as it is; None for the initial state of one sequence.

        Raises:
            SessionError: the program is not of the form that is driven so, as one of several inputs is not; or
                the state does not fit it.
        """
        check_samples(self.metadata)
        state = self.initial_state(1) if state is None else state
        self._check_state(state)
        return (OrtStreamer if self._model.gpu is None else GraphStreamer)(self._model, state)

    def chooser(self, state: OrtState, sampler: Sampler, tokens: np.ndarray) -> GraphStepper | None:
        """A stepper that chooses tokens on the device; None where that cannot be done.

        Args:
            state: what to start from; it is left as it is.
            sampler: how tokens are chosen.
            tokens: (batch,) what its first step reads, trusted to be in [0, vocab_size).

        Raises:
            SessionError: the model takes no tokens or more than tokens, or the state does not fit it.
        """
        self._check_start(state)
        return None if self._graphs is None else GraphStepper(self._graphs, state, sampler, tokens)

    def _is_block(self, state: OrtState) -> TypeGuard[BlockState]:
        """Whether a state lies in a block that was made for this program."""
        return isinstance(state, BlockState) and state.kind.metadata is self.metadata

    def _check_start(self, state: OrtState) -> None:
        check_tokens_alone(self.metadata)
        self._check_state(state)

    def _check_state(self, state: OrtState, sizes: Mapping[str, int] | None = None) -> None:
        if not isinstance(state, OrtState):
            raise SessionError(
                f"state is a {type(state).__name__}: pass what run returned, or OrtState.from_numpy(...)"
            )
        # A block was made for this program: its batch alone can be another than that of the inputs.
        if self._is_block(state) and all(
            sizes[axis] == state.batch for axis in self._state_axes if sizes
        ):
            return
        check_state(state.tensors, self.metadata, sizes)

    def _start_state(self, sizes: Mapping[str, int]) -> OrtState:
        """The initial state, kept: a state is never modified, and copying it to a GPU takes a while."""
        known = {axis: sizes[axis] for axis in self._state_axes if axis in sizes}
        kept = self._kept_start
        if kept is None or kept[0] != known:
            shapes = start_shapes(self.metadata, sizes)
            starts = map(start_array, self.metadata.states, shapes)
            self._kept_start = None  # a GPU may not hold both
            start = OrtState([DeviceTensor.from_numpy(array, self.device) for array in starts])
            kept = self._kept_start = (known, start)
        return kept[1]
