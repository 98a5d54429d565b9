"""plugins/kernels/common/cuda/tuning.cuh: which row of measured sizes an architecture gets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "plugins/kernels/common/cuda"
COMPILER = shutil.which("c++") or shutil.which("g++")
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include "tuning.cuh"
using namespace mamba;

constexpr bool is_sorted() {
  int before = 0;
  for (const TuningRow& row : kTunings) {
    if (row.architecture <= before) return false;
    before = row.architecture;
  }
  return true;
}
static_assert(is_sorted(), "rows go from old to new");
static_assert(most_splits().split_channels >= kMeasuredOnH100.split_channels);

int main(int, char** arguments) {
  const Tuning& t = tuning_of(std::atoi(arguments[1]));
  for (const TuningRow& row : kTunings) {
    if (&row.tuning == &t) std::printf("%d", row.architecture);
  }
  for (int64_t value : {t.split_channels, t.shortest_part, t.most_parts, t.large_convolution,
                        t.most_step_rows, t.most_step_products, t.most_skinny_rows,
                        t.most_skinny_products, t.most_skinny_weights, t.most_token_products,
                        t.most_batch_channels, t.fewest_batch_rows, t.most_batch_weights,
                        t.most_shared_batch_weights}) {
    std::printf(" %lld", static_cast<long long>(value));
  }
}
"""


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_an_architecture_gets_its_row(tmp_path: Path) -> None:
    source, binary = tmp_path / "program.cpp", tmp_path / "program"
    source.write_text(PROGRAM)
    command = [str(COMPILER), "-std=c++17", "-Wall", f"-I{FOLDER}", str(source), "-o", str(binary)]
    subprocess.run(command, check=True)

    def row(architecture: int) -> list[int]:
        printed = subprocess.run(
            [str(binary), str(architecture)], check=True, capture_output=True, text=True
        ).stdout
        return [int(word) for word in printed.split()]

    # No GPU, older than all, between two rows, newer than all.
    rows = {0: 75, 61: 75, 75: 75, 87: 86, 89: 86, 90: 90, 103: 100, 110: 100, 121: 120, 200: 120}
    assert {architecture: row(architecture)[0] for architecture in rows} == rows
    # The records were measured with these on an H100.
    assert row(90)[1:] == [
        1024,
        128,
        64,
        1 << 21,
        4,
        64_000_000,
        32,
        220_000_000,
        8_000_000,
        8_000_000,
        64 * 5120,
        17,
        9_000_000,
        14_000_000,
    ]
