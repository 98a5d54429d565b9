"""The hand-overs of the scan on tensor cores, under ThreadSanitizer: its source, compiled for a CPU.

compute-sanitizer's racecheck does not follow barriers that only some of a block's threads share. Here each of
the threads is one of the CPU's, and every hand-over that is weakened is reported.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from planted_faults import Fault, Patch, patched
from test_hostile_native import cuda_headers

CPP = Path(__file__).parent / "cpp"
SUPPORT = [
    Patch("cuda/numeric.cuh", f'asm("{name}.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));', f"y = {to};")
    for name, to in (("ex2", "exp2f(x)"), ("lg2", "log2f(x)"), ("rcp", "1.f / x"))
] + [
    Patch("cuda/overlap.cuh", 'asm volatile("prefetch.global.L2 [%0];" ::"l"(address));', ""),
    Patch("cuda/scan_stages.cuh", 'asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");',
          "threads::arrive(barrier);"),
    Patch("cuda/scan_stages.cuh", 'asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");',
          "threads::wait(barrier, threads);"),
    Patch("cuda/scan_mma.cu", "extern __shared__ __align__(16) unsigned char memory[];",
          "unsigned char* const memory = threads::shared_memory;"),
    # Several threads may write it: the same number.
    Patch("cuda/scan_eights.cuh", "tile.not_finite = tile_index + 1;",
          "__atomic_store_n(&tile.not_finite, tile_index + 1, __ATOMIC_RELAXED);"),
    # What launches it stays out.
    Patch("cuda/scan_mma.cu", "// Channels of a block, were every",
          "}  // namespace\n}  // namespace mamba\n#if 0\n// Channels of a block, were every"),
    Patch("cuda/scan_mma.cu", "  });\n}\n\n}  // namespace mamba", "  });\n}\n\n}  // namespace mamba\n#endif"),
]  # fmt: skip
"""The source for a CPU. Products of matrices compile to nothing there."""


def unordered(name: str, file: str, barrier: str) -> Fault:
    """A wait that lets its thread on in time, so that none hangs, and orders nothing."""
    old = f"wait({barrier}, kHandOver);"
    new = f"FAULT ? threads::wait_unordered({barrier}, kHandOver) : {old}"
    return Fault(name, "ThreadSanitizer", Patch(f"cuda/{file}", old, new))


HAND_OVERS = [
    unordered("the first tile is filled", "scan_mma.cu", "kFilled"),
    unordered("the next tile is filled", "scan_mma.cu", "kFilled + next_stage"),
    unordered("the sums before are stored", "scan_mma.cu", "kStored + stage"),
    unordered("a tile is free", "scan_eights.cuh", "kFree + stage"),
    unordered("sums are there", "scan_eights.cuh", "kSummed + stage"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``scan_threads`` of tests/cpp."""
    headers, compiler = cuda_headers(), shutil.which("g++")
    if headers is None or compiler is None:
        pytest.skip("needs g++ and CUDA's headers: cuda_runtime.h")
    folder = tmp_path_factory.mktemp("threads")
    kernels = patched(folder, HAND_OVERS, SUPPORT) / "plugins" / "kernels"
    built = folder / "scan_threads"
    done = subprocess.run(
        [
            *(compiler, "-std=c++17", "-O1", "-g1", "-fsanitize=thread", "-pthread", "-w"),
            *(f"-I{CPP}", f"-I{kernels}", f"-I{headers}", CPP / "scan_threads.cpp", "-o", built),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return built


def run(program: Path, number: int) -> subprocess.CompletedProcess[str]:
    """With the hand-over of this number weakened; it ends at the first report."""
    return subprocess.run(
        [program, str(number)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"TSAN_OPTIONS": "halt_on_error=1"},
    )


def test_no_thread_reads_what_another_may_be_writing(program: Path) -> None:
    done = run(program, 0)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr[:3000]


@pytest.mark.parametrize(
    "number", range(1, len(HAND_OVERS) + 1), ids=[one.name for one in HAND_OVERS]
)
def test_a_hand_over_that_orders_nothing_is_reported(program: Path, number: int) -> None:
    done = run(program, number)
    assert done.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
