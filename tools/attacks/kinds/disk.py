"""Disks that are full, file sizes that are limited, standard output that is closed or full."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attacks.attempt import Attempt, Outcome
from attacks.material import CHECKPOINT, EXPORTED, Place


def full(place: Place) -> Attempt:
    """A write fails, somewhere: of an export, a bundle or an engine."""
    rng = place.rng
    arguments, weight = rng.choice(
        (
            (["export", "source", "-o", "disk/out"], 90_000),
            (["build", "model", "--bundle", "disk/bundle"], 90_000),
            (["build", "model"], 1_700_000),
        )
    )
    place.copy(CHECKPOINT, "source")
    place.copy(EXPORTED)
    disk = place.folder / "disk"
    disk.mkdir()
    limit = rng.choice((0, 1, 4096, rng.randrange(weight)))
    on_disk = rng.random() < 0.5 and "disk/" in arguments[-1] and _may_mount()
    writes = (disk, place.folder / "model") if arguments == ["build", "model"] else (disk,)

    def whole(outcome: Outcome) -> Iterator[str]:
        out = place.folder / arguments[-1]
        expected = {"export": ("model.onnx.data", "mamba_export.json"), "build": ("model.onnx",)}
        if outcome.code == 0 and "disk/" in arguments[-1] and not on_disk:
            for name in expected[arguments[0]]:
                if not (out / name).is_file() or (out / name).stat().st_size > limit:
                    yield f"exit code 0, and {name} is not there as it should be"

    around = (lambda: _small_disk(disk, limit)) if on_disk else (lambda: _file_limit(limit))
    kind = "a disk" if on_disk else "files"
    return Attempt(
        f"{kind} of {limit} bytes: {arguments[0]}",
        arguments,
        writes=writes,
        around=around,
        check=whole,
    )


@contextlib.contextmanager
def _file_limit(limit: int) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def _may_mount() -> bool:
    return os.geteuid() == 0 and sys.platform == "linux" and shutil.which("mount") is not None


_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def _small_disk(where: Path, size: int) -> Iterator[None]:
    """A file system in memory, of at least a page; a file limit where mounting is forbidden."""
    options = f"size={max(size, 4096)},mode=0777".encode()
    if _LIBC.mount(b"tmpfs", os.fsencode(where), b"tmpfs", 0, options) != 0:
        assert ctypes.get_errno() in (errno.EPERM, errno.EACCES, errno.ENOSYS)
        with _file_limit(size):
            yield
        return
    try:
        yield
        left = [path.name for path in where.iterdir()]
        if left not in ([], ["out"], ["bundle"]):
            (where.parent / f"left on the disk: {left}"[:200]).touch()
    finally:
        _LIBC.umount2(os.fsencode(where), 2)


def standard_output(place: Place) -> Attempt:
    """Standard output is closed, full, or a pipe that nobody reads."""
    rng = place.rng
    place.copy(EXPORTED)
    way = rng.choice(("closed", "full", "no reader"))
    arguments = rng.choice(
        (
            ["run", "model", "--prompt", "ab", "--max-new-tokens", "2"],
            ["run", "model", "--prompt", "ab", "--max-new-tokens", "2", "--json"],
            ["doctor"],
            ["doctor", "--json"],
            ["library-path"],
            ["--help"],
            ["--version"],
            ["build", "model", "--bundle", "bundle"],
        )
    )

    @contextlib.contextmanager
    def changed() -> Iterator[None]:
        kept = os.dup(1)
        if way == "full":
            device = os.open("/dev/full", os.O_WRONLY)
            os.dup2(device, 1)
            os.close(device)
        elif way == "no reader":
            reader, writer = os.pipe()
            os.dup2(writer, 1)
            os.close(reader)
            os.close(writer)
        else:
            os.close(1)
        stream: Any = sys.stdout
        # As the interpreter starts: where there is no descriptor, there is no stream.
        ours: Any = None if way == "closed" else open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
        sys.stdout = ours
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                ours.flush()
            sys.stdout = stream
            os.dup2(kept, 1)
            os.close(kept)

    return Attempt(
        f"standard output {way}: {' '.join(arguments[:1])}",
        arguments,
        writes=(place.folder / "bundle",),
        leftovers=(place.folder / "bundle",),  # written before the last line is printed
        around=changed,
        any_code=way == "no reader",  # as a pipe that closed ends a process
    )
