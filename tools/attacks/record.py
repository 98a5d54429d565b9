"""The record of a run of attack, and the page that is made from it: docs/reliability.md."""

from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from attacks.campaign import Result
from attacks.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RECORDS = ROOT / "tests" / "records"

Record = dict[str, Any]

_PACKAGES = ("onnxruntime", "onnx", "tokenizers", "safetensors", "torch", "tensorrt-rtx-cu13")
_START, _END = "<!-- figures: written by tools/attack.py --docs -->", "<!-- end of the figures -->"


def make(results: list[Result], *, seed: int) -> Record:
    """The record of a run: when, of which commit, with which versions; by kind, how many answers were right."""
    kinds = {}
    for kind in KINDS:
        mine = [result for result in results if result.kind == kind.name]
        if mine:
            kinds[kind.name] = {
                "attempts": len(mine),
                "right": sum(not result.reasons for result in mine),
                "exit_codes": dict(sorted(Counter(str(result.code) for result in mine).items())),
            }
    wrong = [result for result in results if result.reasons]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "clean": not _git("status", "--porcelain"),
        "command": f"python tools/attack.py --count {len(results)} --seed {seed}",
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "attempts": len(results),
        "right": len(results) - len(wrong),
        "found": len(wrong),
        "kinds": kinds,
        "findings": [
            {"number": one.number, "kind": one.kind, "what": one.what, "reasons": list(one.reasons)}
            for one in wrong
        ],
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def path_in(folder: Path) -> Path:
    """Of today's record."""
    return folder / f"{datetime.date.today().isoformat()}-attack.json"


def newest() -> Record:
    """The newest record of the repository."""
    return json.loads(max(RECORDS.glob("*-attack.json")).read_text(encoding="utf-8"))


def figures(record: Record) -> str:
    """The lines of the page that a record holds."""
    rows = [
        f"| {kind} | {row['attempts']:,} | {row['attempts'] - row['right']} |"
        for kind, row in record["kinds"].items()
    ]
    versions = ", ".join(
        f"{name} {version}" for name, version in record["versions"].items() if version
    )
    return "\n".join(
        (
            f"{record['date']}, commit {record['commit']}, seed {record['seed']}, {versions}:",
            "",
            "| kind | attempts | wrong answers |",
            "|---|---:|---:|",
            *rows,
            f"| all | {record['attempts']:,} | {record['found']} |",
        )
    )


def with_figures(page: str, record: Record) -> str:
    """A page with a record's figures between its marks."""
    between = f"{_START}\n\n{figures(record)}\n\n{_END}"
    return re.sub(
        f"{re.escape(_START)}.*{re.escape(_END)}", lambda _: between, page, flags=re.DOTALL
    )


def write_page() -> None:
    """Write the newest record's figures into the page."""
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), newest()), encoding="utf-8")
