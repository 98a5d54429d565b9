"""The process of one job: a line of JSON a point on stdout, as soon as it is measured.

python -m cost.worker JOB
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cost import job as forms
from cost.endings import ended, failed
from cost.growth import Growth
from cost.job import Job
from cost.memory import Held, release
from cost.point import DECODE, MEMORY, PREFILL, THROUGHPUT, Point
from cost.subjects import Exported, MambaSsm, Subject, Transformer

_TURNS, _TURNS_SECONDS = 4, 3.0  # measurements of a written token, and until when another begins


def points_of(job: Job) -> Iterator[Point]:
    """Every point of a job."""
    if job.form == forms.SCANS:
        from cost.scan_points import scan_points  # needs PyTorch, which costs the others a second

        config = job.config
        yield from scan_points(
            job.device, job.dtype, config["d_inner"], config["d_state"], job.lengths, job.limit
        )
    else:
        yield from _model_points(job)


def _model_points(job: Job) -> Iterator[Point]:
    held = Held(job.device)
    try:
        subject = _subject(job)
    except Exception as error:  # it may not be installed
        yield ended(job, None, failed("", job.who, 0, error).note)
        return
    growth = Growth(job.limit, job.times)
    reads, writes = job.reads, job.writes
    for length in job.lengths:
        release(job.device)
        if reads:
            yield (point := _read(subject, job.who, length, growth))
            reads = point.value is not None
        if writes:
            yield (point := _written(subject, job.who, length))
            writes = point.value is not None
        if reads or writes:
            yield Point(MEMORY, job.who, length, held.most())
    for batch in job.batches:
        yield (point := _throughput(subject, job.who, batch, job.context))
        if point.value is None:
            break


def _subject(job: Job) -> Subject:
    path = Path(job.path)
    if job.form == forms.EXPORTED:
        return Exported(path, job.device, job.steps)
    if job.form == forms.MAMBA_SSM:
        from bench.published import config_of

        return MambaSsm(config_of(job.size), job.dtype, job.steps)
    captured = job.form == forms.CAPTURED
    return Transformer(path, job.device, job.steps, captured=captured)


def _read(subject: Subject, who: str, length: int, growth: Growth) -> Point:
    why = growth.why_not(length)
    if why:
        return Point(PREFILL, who, length, None, why)

    def microseconds() -> float:
        seconds = subject.prefill_seconds(length)
        growth.add(length, seconds)
        return 1e6 * seconds / length

    return _measured(PREFILL, who, length, microseconds)


def _written(subject: Subject, who: str, length: int) -> Point:
    """The least of some measurements: on a CPU two of them differ by up to a half, at any length."""

    def milliseconds() -> float:
        begun = time.perf_counter()
        least = subject.decode_seconds(1, length)
        for _ in range(_TURNS - 1):
            if time.perf_counter() - begun > _TURNS_SECONDS:
                break
            least = min(least, subject.decode_seconds(1, length))
        return 1e3 * least

    return _measured(DECODE, who, length, milliseconds)


def _throughput(subject: Subject, who: str, batch: int, context: int) -> Point:
    return _measured(THROUGHPUT, who, batch, lambda: batch / subject.decode_seconds(batch, context))


def _measured(kind: str, who: str, at: int, measure: Callable[[], float]) -> Point:
    try:
        return Point(kind, who, at, measure())
    except Exception as error:  # mostly memory: the series ends, and the others go on
        return failed(kind, who, at, error)


def main() -> None:
    """Measure the job that the command line holds."""
    for point in points_of(Job.from_text(sys.argv[1])):
        print(json.dumps(dataclasses.asdict(point)), flush=True)


if __name__ == "__main__":
    main()
