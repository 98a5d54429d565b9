"""What makes a record worth nothing: a row that is faster than the hardware can be."""

from __future__ import annotations

from collections.abc import Iterable

from bench.rows import LIMIT, Row, comparisons
from mamba_export.errors import MambaExportError


class RefusedRecordError(MambaExportError):
    """A record in which a row beats its limit: then the limit is wrong, or the work was not done."""


def check_limits(rows: Iterable[Row], where: str) -> None:
    """Compare every row with the limit of the same work.

    Args:
        rows: of one record.
        where: what the message calls the record.

    Raises:
        RefusedRecordError: a row beats its limit; the message names the first, its time and the limit.
    """
    for comparison in comparisons(rows):
        limit = comparison.row(LIMIT)
        if limit is None or limit.milliseconds is None:
            continue
        for row in comparison.rows:
            if row.milliseconds is not None and row.milliseconds < limit.milliseconds:
                raise RefusedRecordError(
                    f"{where} is refused: {row.what}: {row.implementation} takes {row.milliseconds:.4g} ms, "
                    f"less than the limit of {limit.milliseconds:.4g} ms ({limit.note}): "
                    "a rate was measured too low, or the work was not done"
                )
