"""The kernel that chooses tokens on a GPU: as the host does, and as float64 does where a border is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_provider import NEEDS_CUDA_KERNELS

from mamba_export import contract
from mamba_export.backends.onnxruntime.cuda_stream import (
    CHOOSE_BEST,
    CHOOSE_DRAWN,
    CHOOSE_NOTHING,
    NOT_CHOSEN,
    ChoiceOptions,
    ChooseParams,
    GpuStream,
)
from mamba_export.backends.onnxruntime.device import Device, DeviceTensor
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.generation.sampling import Sampler, Sampling

pytestmark = NEEDS_CUDA_KERNELS


def choose(
    stream: GpuStream, logits: DeviceTensor, sampling: Sampling, draws: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    batch, vocab_size = logits.shape
    device = logits.device
    options = stream.host_array((64,), np.uint8)
    choice = ChoiceOptions.from_buffer(options.data)
    choice.choice = CHOOSE_BEST if sampling.temperature == 0 else CHOOSE_DRAWN
    choice.temperature, choice.top_k, choice.top_p = (
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
    )
    choice.repetition_penalty = sampling.repetition_penalty
    host_draws = stream.host_array((batch,), np.float64)
    host_draws[:] = draws
    chosen = stream.host_array((batch,), np.int64)
    scores = DeviceTensor.empty("fp32", logits.shape, device)
    following = DeviceTensor.empty("int64", (batch,), device)
    marks = torch.from_numpy(seen.astype(np.uint8)).cuda()
    torch.cuda.synchronize()
    params = ChooseParams(
        batch=batch,
        vocab_size=vocab_size,
        dtype=contract.DTYPES.index(logits.dtype),
        logits=logits.address,
        scores=scores.address,
        seen=marks.data_ptr(),
        options=options.ctypes.data,
        draws=host_draws.ctypes.data,
        next=following.address,
        chosen=chosen.ctypes.data,
    )
    stream.choose(params)
    stream.wait()
    tokens = chosen.copy()
    np.testing.assert_array_equal(following.numpy(), np.maximum(tokens, 0))
    if sampling.repetition_penalty != 1:
        rows = np.arange(batch)
        expected = seen.copy()
        expected[rows[tokens >= 0], tokens[tokens >= 0]] = True
        np.testing.assert_array_equal(marks.cpu().numpy().astype(bool), expected)
    return tokens


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 31, 256, 50280])
def test_choices_are_those_of_the_host(vocab_size: int, dtype: str) -> None:
    """Draws may differ where a rounded exponential moves a border: at most one in a hundred here."""
    stream = GpuStream(0)
    rng = np.random.default_rng(vocab_size)
    options = [
        Sampling(),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=40),
        Sampling(temperature=1.3, top_p=0.9),
        Sampling(temperature=1.0, top_k=50, top_p=0.5, repetition_penalty=1.2),
        Sampling(temperature=2.0, top_p=1e-4),
        Sampling(temperature=1e-30),
    ]
    differ, count = 0, 0
    for sampling in options:
        values = rng.normal(size=(8, vocab_size)) * rng.choice([0.1, 1, 5], (8, 1))
        values[4:] = values[4:].round(1)  # ties
        torch_dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
        rounded = torch.from_numpy(values).to(torch_dtype)
        bits = rounded.view(torch.int16).numpy() if dtype == "bf16" else rounded.numpy()
        if dtype == "bf16":
            import ml_dtypes

            bits = bits.view(ml_dtypes.bfloat16)
        logits = DeviceTensor.from_numpy(bits, Device("cuda", 0))
        prompts = [rng.integers(0, vocab_size, 20) for _ in range(8)]
        host = Sampler(sampling, prompts, vocab_size)
        seen = np.zeros((8, vocab_size), bool) if host.seen is None else host.seen.copy()
        draws = Sampler(sampling, prompts, vocab_size).draws()
        found = choose(stream, logits, sampling, draws, seen)
        expected = host.sample(rounded.float().numpy())
        if sampling.temperature == 0:
            np.testing.assert_array_equal(found, expected)
        differ += int((found != expected).sum())
        count += 8
    assert differ <= count / 50, f"{differ} of {count} differ"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("batch", "vocab_size"), [(1, 50277), (3, 200_000), (12, 4099), (40, 1025), (70, 257)]
)
def test_rows_of_any_number_and_length(batch: int, vocab_size: int, dtype: str) -> None:
    """Blocks share a row by the batch, and read 16 bytes at once: rows begin anywhere between them."""
    stream = GpuStream(0)
    rng = np.random.default_rng(batch)
    values = rng.normal(size=(batch, vocab_size)).astype(NUMPY_DTYPES[dtype])
    logits = DeviceTensor.from_numpy(values, Device("cuda", 0))
    prompts = [rng.integers(0, vocab_size, 20) for _ in range(batch)]
    differ = 0
    for sampling in (
        Sampling(),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=0.9, top_k=20, top_p=0.8),
        Sampling(temperature=0.2, top_p=0.7),
    ):
        host = Sampler(sampling, prompts, vocab_size)
        seen = np.zeros((batch, vocab_size), bool) if host.seen is None else host.seen.copy()
        draws = Sampler(sampling, prompts, vocab_size).draws()
        found = choose(stream, logits, sampling, draws, seen)
        expected = host.sample(values.astype(np.float32))
        if sampling.temperature == 0:
            np.testing.assert_array_equal(found, expected)
        differ += int((found != expected).sum())
    assert differ <= batch // 20, f"{differ} of {2 * batch} differ"


SLOPES = [2.0**-16, 2.0**-13, 3 * 2.0**-13, 2.0**-9, 3 * 2.0**-7, 2.0**-5, 2.0**-4]
"""By what logits descend from token to token. The kernel's first bins are 2^-5 wide: they hold up to 2,048
scores of these, or one each, which lies on a bin's border or does not. Every logit is a number of fp32."""


def last_kept(slope: float, count: int, top_k: int, top_p: float) -> tuple[int, float]:
    """Of logits that descend: the last token that stays by ``Sampling``'s rules in float64.

    Returns:
        The token, and by what part of the weight that top_p drops its border lies off a token's.
    """
    weights = np.exp(-slope * np.arange(count))
    if 0 < top_k < count:
        weights = weights[:top_k]
    below = weights[::-1].cumsum()  # of the least so many
    if top_p == 1:
        return len(weights) - 1, 1.0
    off = below / below[-1] / (1 - top_p) - 1
    return len(weights) - 1 - int((off <= 0).sum()), float(np.abs(off).min())


@pytest.mark.parametrize("batch", [len(SLOPES), 70])  # 8 blocks share a row, and one has it alone
@pytest.mark.parametrize("descends", [True, False], ids=["descends", "ascends"])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [
        *((top_k, 1.0) for top_k in (1, 2, 33, 100, 257, 400)),
        *((0, top_p) for top_p in (0.999, 0.92, 0.62, 0.1, 0.001)),
        (400, 0.9),
        (33, 0.5),
    ],
)
def test_the_last_token_that_is_kept_is_exact(
    top_k: int, top_p: float, descends: bool, batch: int
) -> None:
    """A draw next to the row's end tells it: the greatest where logits descend, the least where they ascend."""
    count = 50_277
    steps = np.arange(count) if descends else np.arange(count)[::-1]
    values = np.float32(-np.resize(SLOPES, (batch, 1)) * steps)
    kept = [last_kept(slope, count, top_k, top_p) for slope in SLOPES]
    assert min(off for _, off in kept) > 2e-6, "weights in fp32 may move a border by a token"
    expected = [token if descends else count - 1 - token for token, _ in kept]
    draws = np.full(batch, np.nextafter(1.0, 0.0) if descends else 0.0)
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p)
    logits = DeviceTensor.from_numpy(values, Device("cuda", 0))
    found = choose(GpuStream(0), logits, sampling, draws, np.zeros((batch, count), bool))
    np.testing.assert_array_equal(found, np.resize(expected, batch))


def test_two_choices_have_slots_that_take_turns() -> None:
    stream = GpuStream(0)
    device = Device("cuda", 0)
    batch, vocab_size = 3, 1000
    values = np.random.default_rng(0).normal(size=(batch, vocab_size)).astype(np.float32)
    logits = DeviceTensor.from_numpy(values, device)
    memory = stream.host_array((64,), np.uint8)
    options = ChoiceOptions.from_buffer(memory.data)
    options.choice, options.temperature = CHOOSE_DRAWN, 1.0
    options.repetition_penalty = options.top_p = 1.0
    draws = stream.host_array((2, batch), np.float64)
    draws[:] = np.random.default_rng(1).random((2, batch))
    chosen = stream.host_array((2, batch), np.int64)
    turns = DeviceTensor.from_numpy(np.zeros((batch, 4), np.float16), device)  # of int64's size
    scores, seen = (DeviceTensor.empty("fp32", logits.shape, device) for _ in range(2))
    following = DeviceTensor.empty("int64", (batch,), device)
    params = ChooseParams(
        batch=batch,
        vocab_size=vocab_size,
        dtype=contract.DTYPES.index("fp32"),
        logits=logits.address,
        scores=scores.address,
        seen=seen.address,
        options=memory.ctypes.data,
        draws=draws.ctypes.data,
        next=following.address,
        chosen=chosen.ctypes.data,
        turns=turns.address,
    )
    weights = np.exp(values - values.max(-1, keepdims=True)).cumsum(-1, dtype=np.float64)
    for step in range(5):
        slot = step % 2
        chosen[:] = NOT_CHOSEN
        stream.choose(params)
        stream.wait_choice(chosen[slot])
        expected = (weights <= draws[slot, :, None] * weights[:, -1:]).sum(-1)
        np.testing.assert_array_equal(chosen[slot], expected)
        assert (chosen[1 - slot] == NOT_CHOSEN).all()
        if step == 1:  # steps whose logits are read are turns, too
            options.choice = CHOOSE_NOTHING
            stream.choose(params)
            stream.choose(params)
            stream.wait()
            np.testing.assert_array_equal(scores.numpy(), values)
            options.choice = CHOOSE_DRAWN


def test_logits_that_are_not_finite_are_told() -> None:
    stream = GpuStream(0)
    values = np.zeros((4, 1000), np.float32)
    values[0, 999], values[1, 3], values[2, :] = np.nan, np.inf, -np.inf
    values[3, 5] = -np.inf  # a token that is ruled out is none of this
    logits = DeviceTensor.from_numpy(values, Device("cuda", 0))
    none = np.zeros((4, 1000), bool)
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        assert choose(stream, logits, sampling, np.zeros(4), none).tolist() == [-1, -1, -1, 0]
