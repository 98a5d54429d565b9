"""Points of series that end before their time."""

from __future__ import annotations

from cost.job import SCANS, Job
from cost.point import DECODE, PREFILL, SCAN, THROUGHPUT, Point


def failed(kind: str, who: str, at: int, error: Exception) -> Point:
    """A measurement that raised: mostly memory."""
    from bench.measure import reason  # with PyTorch, which the others do without

    return Point(kind, who, at, None, reason(error))


def ended(job: Job, last: Point | None, why: str) -> Point:
    """The point at which a process ended: the one after its last, or the first.

    Args:
        job: of the process.
        last: point that it gave; None for none.
        why: it ended.
    """
    if job.form == SCANS:
        where = last or Point(SCAN, job.who, job.lengths[0], None)
        return Point(SCAN, where.who, where.at, None, why)
    if last is not None and last.kind == PREFILL and job.writes:
        return Point(DECODE, job.who, last.at, None, why)
    before = last.at if last is not None else 0
    if last is None or last.kind != THROUGHPUT:
        later = [length for length in job.lengths if length > before]
        if later:
            return Point(PREFILL if job.reads else DECODE, job.who, later[0], None, why)
        before = 0
    more = [batch for batch in job.batches if batch > before] or [before]
    return Point(THROUGHPUT, job.who, more[0], None, why)
