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

from cost.job import SCANS, Job
from cost.point import DECODE, PREFILL, SCAN, THROUGHPUT, Point

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
            yield _ended(job, last, why)


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


def _ended(job: Job, last: Point | None, why: str) -> Point:
    """The point at which a process ended: the one after its last."""
    if job.form == SCANS:
        where = last or Point(SCAN, job.who, job.lengths[0], None)
        return Point(SCAN, where.who, where.at, None, why)
    if last is None:
        kind, at = (
            (PREFILL if job.reads else DECODE, job.lengths[0])
            if job.lengths
            else (THROUGHPUT, job.batches[0])
        )
        return Point(kind, job.who, at, None, why)
    if last.kind == PREFILL:
        return Point(DECODE, job.who, last.at, None, why)
    if last.kind == THROUGHPUT:
        after = [batch for batch in job.batches if batch > last.at]
        return Point(THROUGHPUT, job.who, after[0] if after else last.at, None, why)
    later = [length for length in job.lengths if length > last.at]
    if later:
        return Point(PREFILL, job.who, later[0], None, why)
    return Point(THROUGHPUT, job.who, job.batches[0] if job.batches else 1, None, why)
