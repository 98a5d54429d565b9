"""A run of attempts: workers one after another, and for each attempt what was found."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.watch import drain

HANGS_AFTER = 60.0
"""Seconds of an attempt, after which its process is ended and the attempt is a finding."""

_TOOLS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Result:
    """What an attempt came to.

    Args:
        number: with the seed, all that it takes to make it again.
        kind, what: of the attempt.
        code: exit code, or None.
        reasons: what is wrong; empty where the answer was right.
        seconds: of CPU time.
        stdout, stderr: where they were kept.
    """

    number: int
    kind: str
    what: str
    code: int | None
    reasons: tuple[str, ...]
    seconds: float
    stdout: str = ""
    stderr: str = ""


def environment(root: Path) -> dict[str, str]:
    """Of a worker: no home of the user's, no network, one thread."""
    # A compiler's cache, which PyTorch names in its own process's environment, is not the attempts'.
    others = ("MAMBA_EXPORT_", "TORCHINDUCTOR_", "TRITON_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    libraries = ("MAMBA_EXPORT_KERNELS", "MAMBA_EXPORT_LIBRARY", "MAMBA_EXPORT_TRT_PLUGIN")
    return {
        **kept,
        **{name: os.environ[name] for name in libraries if name in os.environ},
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "HF_HOME": str(root / "home" / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join([str(_TOOLS), str(_TOOLS.parent), *filter(None, sys.path)]),
    }


def run(
    numbers: Iterable[int],
    seed: int,
    *,
    on_result: Callable[[Result], None] = lambda _: None,
    keep: Path | None = None,
) -> list[Result]:
    """Make the attempts of these numbers.

    Args:
        numbers: of attempts.
        seed: of all that is random.
        on_result: called with each as it comes.
        keep: an empty folder where the attempts' files stay, and output with them; None for a temporary one.
    """
    results: list[Result] = []
    left = list(numbers)
    with tempfile.TemporaryDirectory(prefix="attack-") as temporary:
        root = Path(temporary if keep is None else keep).resolve()
        root.chmod(0o755)  # some attempts are made by a user who may do nothing there
        _make_material(root)
        while left:
            for result in _worker(left, seed, root, keep is not None):
                results.append(result)
                on_result(result)
                left.remove(result.number)
    return results


def _make_material(root: Path) -> None:
    """In a process of its own: what it loads is not the attempts'."""
    script = (
        "import sys, pathlib, attacks.material as m; m.make_material(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(root)],
        check=True,
        env={**environment(root), "TMPDIR": "/tmp"},
        cwd=root,
    )


def _worker(numbers: list[int], seed: int, root: Path, keep: bool) -> Iterator[Result]:
    """One process, until it is through, dies or hangs."""
    reader, writer = os.pipe()
    streams = [*_wide_pipe(), *_wide_pipe()]
    listed = root / "numbers"
    listed.write_text(" ".join(map(str, numbers)))
    command = [sys.executable, "-m", "attacks.worker", "--root", str(root), "--seed", str(seed)]
    command += [
        "--numbers",
        str(listed),
        "--channel",
        str(writer),
        "--streams",
        ",".join(map(str, streams)),
    ]
    command += ["--keep"] if keep else []
    process = subprocess.Popen(
        command,
        pass_fds=(writer, *streams),
        env=environment(root),
        cwd=root,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(writer)
    last: dict[str, Any] = {}
    lines = _lines(reader)
    try:
        for line in lines:
            if line is None:  # it hangs
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                yield _end(last, f"hangs: no end within {HANGS_AFTER:.0f} s", streams)
                return
            if "done" in line:
                last = {}
                yield Result(
                    number=line["done"],
                    kind=line["kind"],
                    what=line["what"],
                    code=line["code"],
                    reasons=tuple(line["reasons"]),
                    seconds=line["seconds"],
                    stdout=line.get("stdout", ""),
                    stderr=line.get("stderr", ""),
                )
            else:
                last.update(line)
        code = process.wait()
        if last:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            yield _end(last, f"the process ends: {how}", streams)
        elif code:
            raise RuntimeError(f"a worker ended with {code}: {_said(streams)}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for one in (reader, *streams):
            os.close(one)


def _wide_pipe() -> tuple[int, int]:
    import fcntl

    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    return reader, writer


def _lines(reader: int) -> Iterator[dict[str, Any] | None]:
    """What a worker tells; None where it says nothing for too long."""
    buffer = b""
    deadline = time.monotonic() + HANGS_AFTER
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            yield None
            return
        part = os.read(reader, 1 << 16)
        if not part:
            return
        deadline = time.monotonic() + HANGS_AFTER
        *whole, buffer = (buffer + part).split(b"\n")
        yield from map(json.loads, whole)


def _said(streams: list[int]) -> str:
    os.set_blocking(streams[2], False)
    return drain(streams[2]).decode("utf-8", "backslashreplace")


def _end(last: dict[str, Any], reason: str, streams: list[int]) -> Result:
    stderr = _said(streams)
    said = " | ".join(line.strip() for line in stderr.splitlines()[:12])
    return Result(
        number=last["start"],
        kind=last.get("kind", "of the suite itself"),
        what=last.get("what", ""),
        code=None,
        reasons=(f"{reason} {said[:500]}".strip(),),
        seconds=0.0,
        stderr=stderr,
    )
