"""docs/report/index.html: the page that the records in tools/records make."""

from __future__ import annotations

import os
from pathlib import Path

from bench.record import write_whole
from report.page import page
from report.product import product_records
from report.record import RECORDS, newest_records

PAGE = "docs/report/index.html"


def committed_page(root: Path) -> str:
    """The page's text.

    Args:
        root: of the repository.

    Raises:
        MambaExportError: a record is none.
    """
    records = newest_records(root / RECORDS)
    folder = (root / PAGE).parent

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, folder)).as_posix()

    return page(records, product_records(root), link)


def write_page(root: Path) -> Path:
    """Write it.

    Returns:
        The file.

    Raises:
        MambaExportError: a record is none, or the file cannot be written.
    """
    text = committed_page(root)
    file = root / PAGE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)
    return file
