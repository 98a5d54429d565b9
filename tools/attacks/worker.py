"""The process in which attempts are made, many in one; ``campaign`` starts it, and another where it dies.

It writes a line of JSON to its channel before and after each attempt, so that its death has a number.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attacks import watch
from attacks.attempt import Attempt, Outcome
from attacks.kinds import choose, randomness
from attacks.material import Place
from attacks.oracle import judge

_MEMORY = 6 << 30
"""Address space above what the process has: enough for an engine, and a stop for a bomb."""


def attempt_of(seed: int, number: int, root: Path) -> tuple[str, Attempt, Path]:
    """The kind, the attempt of a seed and a number, always the same, and its folder, with its files written."""
    rng = randomness(seed, number)
    kind = choose(rng)
    folder = root / f"attempt-{number}"
    folder.mkdir()
    os.chdir(folder)  # an attempt names its files from there
    return kind.name, kind.make(Place(root, folder, rng)), folder


def perform(
    attempt: Attempt, folder: Path, root: Path, audit: watch.Audit, streams: watch.Streams
) -> Outcome:
    """Make an attempt; nothing that it raises passes, the end of the process excepted."""
    streams.take()
    before = _everything(folder, root)
    base = watch.memory_mib("VmRSS")
    watch.reset_peak()
    start = time.process_time()
    code: int | None = None
    error: BaseException | None = None
    value: Any = None
    with audit.watching(folder) as events:
        try:
            with attempt.around():
                if attempt.call is not None:
                    value, code = attempt.call(), 0
                else:
                    from mamba_export.cli.app import main

                    main(attempt.arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        except BaseException as raised:
            error = raised
    seconds = time.process_time() - start
    stdout, stderr = streams.take()
    peak = watch.memory_mib("VmHWM") - base
    os.chdir(root)
    changed = watch.differences(before, _everything(folder, root))
    return Outcome(code, error, value, stdout, stderr, seconds, peak, list(events), changed)


def _everything(folder: Path, root: Path) -> dict[Path, str]:
    return {
        path: text
        for one in (folder, root / "outside", root / "home")
        for path, text in watch.snapshot(one).items()
    }


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    now = int(watch.memory_mib("VmSize")) << 20
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def main() -> None:
    """Make the attempts of some numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--numbers", required=True)
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--streams", required=True)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    reader_1, writer_1, reader_2, writer_2 = map(int, given.streams.split(","))
    channel = os.fdopen(given.channel, "w", encoding="utf-8")

    def tell(**line: Any) -> None:
        channel.write(json.dumps(line) + "\n")
        channel.flush()

    import torch  # once, before anything is measured

    torch.set_num_threads(1)
    streams = watch.Streams((reader_1, writer_1), (reader_2, writer_2))
    faulthandler.enable(2)
    audit = watch.Audit(given.root / "tmp")
    sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    for number in map(int, Path(given.numbers).read_text().split()):
        tell(start=number)
        kind, attempt, folder = attempt_of(given.seed, number, given.root)
        tell(number=number, kind=kind, what=attempt.what)
        with _bounded_memory():
            outcome = perform(attempt, folder, given.root, audit, streams)
        reasons = judge(attempt, outcome)
        tell(
            done=number,
            kind=kind,
            what=attempt.what,
            code=outcome.code,
            reasons=reasons,
            seconds=round(outcome.seconds, 3),
            **({"stdout": outcome.stdout, "stderr": outcome.stderr} if given.keep else {}),
        )
        del outcome, attempt
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
