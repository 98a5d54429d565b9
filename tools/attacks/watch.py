"""What an attempt did: to files, to sockets, to memory, to the two streams."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attacks import odd

ROOT = Path(__file__).resolve().parents[2]

_READABLE = tuple(
    {
        os.path.realpath(path)
        for path in (
            str(ROOT),
            sys.prefix,
            sys.base_prefix,
            str(sysconfig.get_path("stdlib")),
            str(sysconfig.get_path("purelib")),
            "/usr",
            "/lib",
            "/lib64",
            "/etc",
            "/proc",
            "/sys",
            "/dev",
            *(path for path in sys.path if path),
        )
    }
)
"""Where the interpreter and its packages lie; an attempt may read there, and nowhere else but in its folder."""

_HARMLESS = ("/dev/", "/proc/")
_CHANGES = {
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
    "os.truncate": (0,),
}
"""Events that change a path, and which of their arguments it is."""

_SOCKETS = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"}
_LOCAL = {"socket.connect", "socket.bind"}
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _named(folder: str) -> str:
    """The path out of an attempt's folder that the attempt may name itself."""
    return os.path.realpath(os.path.join(folder, odd.OUTSIDE))  # noqa: PTH118


class Audit:
    """Python's own audit hook: notes what an attempt does outside of its folder, or with foreign code.

    It sees what Python code does. What libraries do in C++ is seen by ``snapshot``, and by the tests that trace
    system calls.
    """

    def __init__(self, scratch: Path) -> None:
        """``scratch`` is where temporary files belong."""
        self._scratch = os.path.realpath(scratch)
        self._folder: str | None = None
        self._events: list[str] = []
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def watching(self, folder: Path) -> Iterator[list[str]]:
        """Note events, with ``folder`` as the one that the attempt may touch."""
        self._events, self._folder = [], os.path.realpath(folder)
        try:
            yield self._events
        finally:
            self._folder = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        folder = self._folder
        if folder is None:
            return
        if event == "open":
            self._opened(folder, arguments)
        elif event in _SOCKETS:
            if event in _LOCAL and isinstance(arguments[1], (str, bytes)):
                return  # a file's name: how a process talks to its own children
            self._events.append(f"socket: {event} {arguments[1:]!r:.80}")
        elif event in _PROGRAMS:
            self._events.append(f"program: {event} {arguments[0]!r:.80}")
        elif event == "ctypes.dlopen":
            name = os.fsdecode(arguments[0] or "")
            if "/" in name and _below(os.path.realpath(name), folder):
                self._events.append(f"foreign code: opens the library {name}")
        elif event in _CHANGES:
            for index in _CHANGES[event]:
                self._outside(folder, event, arguments[index])

    def _opened(self, folder: str, arguments: tuple[Any, ...]) -> None:
        path, _, flags = arguments
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._outside(folder, "writes", path)
            return
        real = os.path.realpath(os.fsdecode(path))
        if not os.path.exists(real):  # noqa: PTH110  # nothing to read: an option named it
            return
        known = (folder, self._scratch, _named(folder), *_READABLE)
        if real != os.sep and not any(_below(real, one) for one in known):
            self._events.append(f"reads outside: {real}")

    def _outside(self, folder: str, what: str, path: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        name = os.fsdecode(path)
        path = Path(name).absolute()
        real = f"{os.path.realpath(path.parent)}/{path.name}"
        if any(_below(real, known) for known in (folder, self._scratch)):
            return
        # What is asked to write there may look for a place beside it; what it leaves, ``snapshot`` sees.
        if _below(real, str(Path(_named(folder)).parent)):
            return
        if not real.startswith(_HARMLESS):
            self._events.append(f"{what} outside: {real}")


def snapshot(folder: Path) -> dict[Path, str]:
    """Every path below a folder, with what it is: kind, permissions, content."""
    found = {}
    for where, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = Path(os.fsdecode(where)) / os.fsdecode(name)
            status = path.lstat()
            text = stat.filemode(status.st_mode)
            if stat.S_ISREG(status.st_mode):
                try:
                    text += hashlib.sha1(path.read_bytes()).hexdigest()
                except PermissionError:
                    text += f"{status.st_size} {status.st_mtime_ns}"
            elif stat.S_ISLNK(status.st_mode):
                text += str(path.readlink())
            found[path] = text
    return found


def differences(before: dict[Path, str], after: dict[Path, str]) -> list[Path]:
    """Paths that appeared, went or changed."""
    return sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )


class Streams:
    """Standard output and error of this process, its C++ libraries included, through pipes that never block."""

    def __init__(self, output: tuple[int, int], error: tuple[int, int]) -> None:
        self._readers = (output[0], error[0])
        os.dup2(output[1], 1)
        os.dup2(error[1], 2)
        for reader in self._readers:
            os.set_blocking(reader, False)
        # Python's own streams remember what they were opened on.
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(  # noqa: SIM115
            2, "w", closefd=False, encoding="utf-8", errors="backslashreplace", buffering=1
        )

    def take(self) -> tuple[str, str]:
        """What was written since the last call."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.flush()
        output, error = (
            drain(reader).decode("utf-8", "backslashreplace") for reader in self._readers
        )
        return output, error


def drain(reader: int) -> bytes:
    """All that a pipe holds now."""
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 1 << 20):
            parts.append(part)
    return b"".join(parts)


def reset_peak() -> None:
    """Start a new measurement of this process's peak memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_mib(field: str) -> float:
    """A field of this process's memory: VmHWM, the peak, or VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0
