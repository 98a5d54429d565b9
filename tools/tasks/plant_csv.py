"""Samples of a plant's sensors as CSV: written whole, read one at a time as they come."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bench.record import write_whole
from mamba_export.errors import MambaExportError
from mamba_export.printing import printable
from tasks.plant import CHANNELS, DT

TIME = "time_s"
_LARGEST = float(np.finfo(np.float32).max)


def write_samples(path: Path, readings: np.ndarray) -> None:
    """Write the readings (length, 3) of one plant, with a head and the time of each.

    Raises:
        MambaExportError: the file cannot be written.
    """
    rows = [",".join((TIME, *CHANNELS))]
    for index, row in enumerate(readings.tolist()):
        rows.append(",".join([f"{index * DT:g}", *(f"{value:.6g}" for value in row)]))
    write_whole(path, "\n".join(rows) + "\n")


def read_samples(lines: Iterable[str], name: str) -> Iterator[np.ndarray]:
    """The samples of a CSV, each as soon as its line is there; other columns than the sensors' are passed over.

    Args:
        lines: with a head.
        name: of where they come from, for errors.

    Yields:
        (3,) fp32, in the order of ``CHANNELS``.

    Raises:
        MambaExportError: a sensor's column is missing, a row is cut short, or a value is no finite number; the
            message names the line and the column.
    """
    rows = csv.reader(lines)
    try:
        head = [one.strip() for one in next(rows, [])]
        for channel in CHANNELS:
            if channel not in head:
                raise MambaExportError(
                    f"{name}: has no column {channel}: the head names the sensors {', '.join(CHANNELS)}"
                )
        places = [head.index(channel) for channel in CHANNELS]
        for row in rows:
            if not row:
                continue
            where = f"{name}, line {rows.line_num}"
            if len(row) != len(head):
                raise MambaExportError(
                    f"{where}: has {len(row)} values, the head {len(head)} names"
                )
            yield np.array(
                [_number(row[place], head[place], where) for place in places], np.float32
            )
    except csv.Error as error:
        raise MambaExportError(f"{name}, line {rows.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise MambaExportError(f"{name}: is no text ({error.reason})") from error


def _number(text: str, channel: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= _LARGEST:  # false for NaN too
        raise MambaExportError(
            f"{where}: {channel} is {printable(text.strip()[:40])!r}, expected a finite number: leave samples "
            "out in which a sensor is missing"
        )
    return value
