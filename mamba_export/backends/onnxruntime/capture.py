"""Capturing a run of ONNX Runtime in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import onnxruntime as ort

from mamba_export.backends.onnxruntime.cuda_stream import Graph
from mamba_export.backends.onnxruntime.loading import LoadedModel, plain_reason
from mamba_export.errors import SessionError


def capture(
    model: LoadedModel,
    binding: ort.IOBinding,
    then: Callable[[], None] | None = None,
    first: Callable[[], None] | None = None,
) -> Graph:
    """Note a run over what is bound, which runs nothing.

    The same was run before, and has done what happens once: cuBLAS has chosen, kernels are loaded. What the run
    computes in is memory of ONNX Runtime's arena, which has it back: runs of one session share one stream, so
    that none finds another's values there, and the arena never gives its memory away.

    Args:
        model: with a stream, ``model.gpu``.
        binding: inputs and outputs in memory that stays where it is.
        then: queues what is to follow in the same graph.
        first: queues what is to precede it there.

    Raises:
        SessionError: it cannot be captured.
    """
    gpu = model.gpu
    if gpu is None:
        raise ValueError("the model has no stream to capture on")
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    with gpu.lock:
        try:
            gpu.begin_capture()
            if first is not None:
                first()
            model.session.run_with_iobinding(binding, options)
            if then is not None:
                then()
        except BaseException as error:
            gpu.abandon_capture()
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            raise SessionError(plain_reason(error)) from error
        return gpu.end_capture()
