"""Runs jobs, each in a process of its own, and gives their points as they come."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from cost.endings import ended
from cost.job import Job
from cost.point import DECODE, PREFILL, Point

_TOOLS = Path(__file__).resolve().parents[1]
_LONGEST_LINE = 160
_FOLDERS = re.compile(r"(?:/[^/\s]+)+/")
"""Of a path: this machine's are nothing to a record."""


def run_job(job: Job, seconds: float) -> Iterator[Point]:
    """Points of a job; a process that ends otherwise, or is ended for its time, gives a point that says so.

    Args:
        job: to run.
        seconds: after which it is ended.
    """
    places = [os.fspath(_TOOLS), os.fspath(_TOOLS.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    command = [sys.executable, "-m", "cost.worker", job.to_text()]
    last: Point | None = None
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                point = _point(line)
                if point is not None:
                    last = point
                    yield point
            code = process.wait()
        finally:
            is_late = not timer.is_alive()
            timer.cancel()
            process.kill()
            process.wait()
        if code:
            errors.seek(0)
            why = (
                f"limit of time: ended after {seconds:g} s"
                if is_late
                else _last_line(errors.read()) or f"the process ended with code {code}"
            )
            yield ended(job, last, why)


def run_apart(job: Job, seconds: float) -> Iterator[Point]:
    """``run_job`` with a process for each length, so that the most it held is that length's."""
    for length in job.lengths:
        if not (job.reads or job.writes):
            break
        for point in run_job(dataclasses.replace(job, lengths=[length], batches=()), seconds):
            yield point
            is_good = point.value is not None
            if point.kind == PREFILL:
                job = dataclasses.replace(job, reads=is_good)
                if point.value is not None:
                    times = [*job.times, (length, 1e-6 * point.value * length)]
                    job = dataclasses.replace(job, times=times)
            if point.kind == DECODE:
                job = dataclasses.replace(job, writes=is_good)
    if job.batches:
        yield from run_job(dataclasses.replace(job, lengths=()), seconds)


def _point(line: str) -> Point | None:
    """A point; None for what else a library may print."""
    try:
        return Point(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _FOLDERS.sub("", lines[-1])[:_LONGEST_LINE] if lines else ""
