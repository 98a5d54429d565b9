"""How much memory a process holds, and how much it held at most."""

from __future__ import annotations

from pathlib import Path

from mamba_export.errors import MambaExportError


def _status(name: str) -> int:
    """A line of this process's status in Linux, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        raise MambaExportError("memory is measured by /proc/self/status, which Linux has") from None
    line = next(one for one in lines if one.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def available_bytes() -> int:
    """Memory that this machine can still give."""
    line = next(
        one for one in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in one
    )
    return 1024 * int(line.split()[1])


def release(device: str) -> None:
    """Give back what is kept and not used, so that it does not count as held."""
    if device == "cuda":
        from bench import gpu

        gpu.release_memory()


class Held:
    """Memory beyond what was held when this was made: of the process, or of the GPU.

    On a GPU it is what all of it holds after a measurement: allocators keep the most that they needed, since
    the last ``release``.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = self._now()

    def most(self) -> int:
        """The most until now."""
        most = self._now() if self._device == "cuda" else _status("VmHWM")
        return max(0, most - self._before)

    def _now(self) -> int:
        if self._device == "cpu":
            return _status("VmRSS")
        from bench import gpu

        return gpu.used_bytes()
