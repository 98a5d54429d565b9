"""The faults of ``test_sabotage_cuda``, which needs a GPU, fit the sources as they are."""

from __future__ import annotations

from pathlib import Path

from cuda_faults import FAULTS, SUPPORT
from planted_faults import patched


def test_every_fault_has_its_place_in_the_sources(tmp_path: Path) -> None:
    sources = patched(tmp_path, FAULTS, SUPPORT)
    planted = "".join(file.read_text() for file in (sources / "plugins").rglob("*.cu*"))
    for number, fault in enumerate(FAULTS, 1):
        assert f"is_planted({number})" in planted, fault.name
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
