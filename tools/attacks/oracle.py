"""What a right answer is. Every attempt is judged here, and nowhere else.

A command exits with 0, with 1 where it is a verification that printed a failed check, or with 2 and one line
on standard error ("error: ..."). A call of the API returns, or raises a MambaExportError. Nothing but what was
asked for changes; no socket; no code of a folder; within bounds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from attacks.attempt import Attempt, Outcome
from mamba_export.errors import MambaExportError

SECONDS = 20.0
"""Of CPU time. The slowest right answer, a verification of the tiny model, takes one."""

PEAK_MIB = 1500.0
"""Above what the process had. TensorRT-RTX takes 800 for any engine."""

SECRET = "the-secret-of-the-attack-suite"
"""Stands in a file outside of the attempt's folder: it must turn up nowhere."""

_MOST_EVENTS = 5
"""Of an attempt, in the report: one that writes a folder elsewhere has hundreds."""

_NET = "MAMBA_EXPORT_TRACEBACK"
"""The command line's last net says how to see a traceback: a sign that no good line was written."""


def judge(attempt: Attempt, outcome: Outcome) -> list[str]:
    """What is wrong with an outcome, in words; empty where nothing is."""
    answer = _command if attempt.call is None else _call
    found = list(answer(attempt, outcome))
    found += list(dict.fromkeys(outcome.events))[:_MOST_EVENTS]
    found += _changes(attempt, outcome)
    if SECRET in outcome.stdout or SECRET in outcome.stderr:
        found.append("prints a file from outside")
    if outcome.seconds > SECONDS:
        found.append(f"takes {outcome.seconds:.0f} s")
    if outcome.peak_mib > PEAK_MIB:
        found.append(f"takes {outcome.peak_mib:.0f} MiB")
    return found + list(attempt.check(outcome))


def _command(attempt: Attempt, outcome: Outcome) -> Iterator[str]:
    if outcome.error is not None:
        yield f"traceback: {type(outcome.error).__name__}: {str(outcome.error)[:200]}"
        return
    if "Traceback (most recent call last)" in outcome.stderr:
        yield f"traceback: {_last_line(outcome.stderr)}"
    if _NET in outcome.stderr:
        yield f"traceback that the net caught: {outcome.stderr.strip()[:300]}"
    if "panicked at" in outcome.stderr:
        yield "a Rust panic's text on standard error"
    if attempt.any_code:
        return
    code = outcome.code
    if code == 0:
        if attempt.refuse or attempt.fails:
            yield "accepted"
    elif code == 1:
        if not _failed_table(attempt, outcome):
            yield "exit code 1, and no failed check printed"
    elif code == 2:
        if not outcome.stdout.lstrip().startswith(
            "Usage:"
        ):  # the help of a command without arguments
            yield from _message(outcome.stderr, attempt.arguments or [])
    else:
        yield f"exit code {code}"


def _failed_table(attempt: Attempt, outcome: Outcome) -> bool:
    arguments = attempt.arguments or []
    if "verify" not in arguments and "--verify" not in arguments:
        return False
    return bool(re.search(r"FAIL|fail|\"passed\": false|no check", outcome.stdout + outcome.stderr))


def _message(stderr: str, arguments: list[str]) -> Iterator[str]:
    """What is wrong with the message of exit code 2."""
    lines = [line for line in stderr.split("\n") if line.strip()]
    if not lines:
        yield "exit code 2 without a message"
    elif len(lines) > 1:
        yield f"{len(lines)} lines on standard error: {' | '.join(line[:80] for line in lines)[:300]}"
    elif not lines[0].startswith("error: ") or len(lines[0]) < len("error: ") + 4:
        yield f"no message: {lines[0][:200]}"
    elif len(lines[0]) > 2000 + len("".join(arguments)):
        yield f"a message of {len(lines[0])} characters"
    for character in sorted(set(stderr) - {"\n"}):
        if (
            unicodedata.category(character) in ("Cc", "Cs")
            or character in "\u202a\u202b\u202d\u202e\u2066"
        ):
            yield f"control character {character!a} on standard error"


def _call(attempt: Attempt, outcome: Outcome) -> Iterator[str]:
    error = outcome.error
    if error is None:
        if attempt.refuse:
            yield f"accepted: {outcome.value!r:.100}"
    elif isinstance(error, attempt.may_raise):
        yield from () if str(error).strip() else ("an error without a message",)
    elif not isinstance(error, MambaExportError):
        yield f"raw error: {type(error).__name__}: {str(error)[:200]}"
    elif "\n" in str(error) or not str(error):
        yield f"message of several lines, or none: {str(error)[:200]!r}"


def _changes(attempt: Attempt, outcome: Outcome) -> Iterator[str]:
    good = outcome.error is None and outcome.code in (0, 1)
    allowed = (*attempt.leftovers, *(attempt.writes if good else ()))
    wrong = [path for path in outcome.changed if not _within(path, allowed)]
    if wrong:
        names = ", ".join(ascii(path.name) for path in wrong[:5])
        yield f"{'changes' if good else 'leaves or loses'} {len(wrong)} paths: {names}"


def _within(path: Path, allowed: tuple[Path, ...]) -> bool:
    return any(path == one or one in path.parents for one in allowed)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]
