"""Rows of a benchmark for tests. Figures of a GPU in here are made up, to test what is done with them."""

from __future__ import annotations

from bench.rows import LIMIT, OURS, Row

ROWS = [
    Row("scan", "slow", 10.0), Row("scan", "fast", 2.0), Row("scan", "absent", None, "not installed"),
]  # fmt: skip
SCAN = {"dtype": "bf16", "batch": 1, "d_inner": 1536, "length": 512, "d_state": 16}
PREFILL = {"model": "130m", "dtype": "fp16", "batch": 1, "length": 512}
MADE_UP = [
    Row.of("scan", SCAN, OURS, 0.020),
    Row.of("scan", SCAN, "mamba_ssm", 0.040),
    Row.of("scan", SCAN, LIMIT, 0.010, "exponentials"),
    Row.of("scan", {**SCAN, "dtype": "fp32"}, OURS, 0.0777),
    Row.of("prefill", PREFILL, OURS, 2.5),
    Row.of("prefill", PREFILL, "mamba_ssm", None, "not installed (No module named 'mamba_ssm')"),
    Row.of("prefill", PREFILL, LIMIT, 0.5, "products"),
    Row.of("prefill", {**PREFILL, "batch": 64}, OURS, 55.5),
    *(
        Row.of("decode", {"model": model, "dtype": "fp16", "batch": 1}, name, time)
        for model, times in (("130m", (0.4, 2.0, 0.1)), ("2.8b", (2.4, 5.0, 1.9)))
        for name, time in zip((OURS, "mamba_ssm", LIMIT), times, strict=True)
    ),
    *(
        Row.of(
            "long",
            {"model": "130m", "dtype": "fp16", "batch": 1, "tokens_read": n},
            OURS,
            0.4,
            "2 GB",
        )
        for n in (1_000, 1_000_000)
    ),
]
