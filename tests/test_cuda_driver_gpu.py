"""The driver on whatever GPU is here: memory, copies, CUDA graphs, and what goes wrong."""

from __future__ import annotations

import gc
import threading

import ml_dtypes
import numpy as np
import pytest

from mamba_export.backends.tensorrt.cuda_driver import (
    CudaError,
    Gpu,
    OutOfMemoryError,
    Stream,
    has_gpu,
)
from mamba_export.errors import SessionError

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> Gpu:
    gpu = Gpu()
    gpu.activate()
    return gpu


@pytest.fixture
def stream(gpu: Gpu) -> Stream:
    return gpu.stream()


def test_the_gpu(gpu: Gpu) -> None:
    assert has_gpu()
    assert gpu.name.isprintable()
    assert 5.0 <= float(gpu.capability) < 20


def test_copies(gpu: Gpu, stream: Stream) -> None:
    source = np.full((3, 5), 7, ml_dtypes.bfloat16)
    one, other = gpu.allocate(source.nbytes), gpu.allocate(source.nbytes)
    stream.upload(one.address, source)
    stream.copy(other.address, one.address, source.nbytes)
    stream.zero(other.address, 8)
    result = np.empty_like(source)
    stream.download(result, other.address)
    stream.synchronize()
    assert result.astype(float).ravel().tolist() == [0.0] * 4 + [7.0] * 11


def test_a_graph_reads_and_writes_host_memory_when_it_is_launched(gpu: Gpu, stream: Stream) -> None:
    source = gpu.host_array((3, 5), np.dtype(np.float32))
    result = gpu.host_array((3, 5), np.dtype(np.float32))
    memory = gpu.allocate(source.nbytes)

    def work() -> None:
        stream.upload(memory.address, source)
        stream.download(result, memory.address)

    result[:] = -1
    graph = stream.capture(work)
    stream.synchronize()
    assert (result == -1).all(), "captured work does not run"
    for value in (1.0, 2.0):
        source[:] = value
        graph.launch()
        stream.synchronize()
        np.testing.assert_array_equal(result, source)


def test_a_capture_that_fails_leaves_the_stream_as_it_was(gpu: Gpu, stream: Stream) -> None:
    def fail() -> None:
        stream.zero(memory.address, 4)
        raise ValueError("inside")

    memory = gpu.allocate(4)
    with pytest.raises(ValueError, match="inside"):
        stream.capture(fail)
    with pytest.raises(CudaError, match="CUDA_ERROR_STREAM_CAPTURE"):
        stream.capture(stream.synchronize)
    result = np.ones(1, np.float32)
    stream.capture(lambda: stream.zero(memory.address, 4)).launch()
    stream.download(result, memory.address)
    stream.synchronize()
    assert result[0] == 0


def test_memory_is_freed_by_any_thread(gpu: Gpu) -> None:
    before = gpu.free_memory()
    blocks = [gpu.allocate(1 << 30)]
    assert gpu.free_memory() <= before - (1 << 30)
    thread = threading.Thread(target=blocks.clear)
    thread.start()
    thread.join()
    assert gpu.free_memory() >= before - (1 << 24)


def test_host_memory_outlives_the_array_for_its_views(gpu: Gpu) -> None:
    view = gpu.host_array((4, 2), np.dtype(np.int64))[1:]
    view[:] = 5
    gc.collect()
    assert view.sum() == 30


def test_too_much_memory_says_how_much_there_is(gpu: Gpu) -> None:
    with pytest.raises(OutOfMemoryError, match=r"\d+ MiB of memory free and \d+ MiB more"):
        gpu.allocate(1 << 50)
    assert gpu.allocate(1 << 20).nbytes == 1 << 20


def test_a_gpu_that_is_not_there() -> None:
    for index in (-1, 99):
        with pytest.raises(SessionError, match=rf"there is no GPU {index}: this machine has \d+"):
            Gpu(index)
