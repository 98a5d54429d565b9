"""Signals at random moments of an export, a verification, a build: nothing is left, OUT is old or new."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from attacks.attempt import Attempt, Outcome
from attacks.material import CHECKPOINT, EXPORTED, Place

_PATIENCE = 30.0

_LOADED = ("torch", "onnxscript", "onnxruntime", "mamba_export.cli.app", "mamba_export.export")
"""What a command has loaded before it does anything, so that a signal soon after meets its work."""


@functools.cache
def _processes() -> ForkServerContext:
    """Where children come from: a process with one thread. The worker has several, and a fork of one may wait
    for ever for a lock that another held."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_LOADED))
    first = context.Process(target=_nothing)  # its imports are not an attempt's time
    first.start()
    first.join()
    return context


def _nothing() -> None:
    """Of the first child, which is started so that the server of children has loaded everything."""


def _start(arguments: list[str], ready: Event | None = None) -> BaseProcess:
    """Start a command; ``ready`` is set when its code begins: until then a signal meets multiprocessing's."""
    child = _processes().Process(target=_child, args=(arguments, ready))
    child.start()
    return child


def signal_at_random(place: Place) -> Attempt:
    """A process runs the command, and gets the signal."""
    rng, folder = place.rng, place.folder
    _processes()
    place.copy(CHECKPOINT, "source")
    place.copy(EXPORTED)
    stands = rng.random() < 0.5
    if stands:
        place.copy(EXPORTED, "out")
    arguments = rng.choice(
        (
            ["export", "source", "-o", "out", "--force"],
            ["export", "source", "-o", "out", "--force"],
            ["build", "model", "--bundle", "out", "--force"],
            ["build", "model", "--force"],
            ["verify", "model", "--quick", "--model", "source"],
        )
    )
    number = rng.choice((signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL))
    delay = rng.random() * (0.15 if "--bundle" in arguments else 0.9)

    def run() -> tuple[int | None, bool]:
        ready = _processes().Event()
        child = _start(arguments, ready)
        ready.wait(_PATIENCE)
        time.sleep(delay)
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, number)
        code = _code(child)
        return code, code is not None

    def check(outcome: Outcome) -> Iterator[str]:
        if not isinstance(outcome.value, tuple):
            return
        code, ended = outcome.value
        if not ended:
            yield f"does not end within {_PATIENCE:.0f} s of the signal"
            return
        if "Traceback" in outcome.stderr:
            yield f"traceback: {outcome.stderr.strip()[-200:]}"
        if code not in (0, 2, -number, 128 + number):
            yield f"exit code {code}"
        out = folder / "out"
        if stands and not out.is_dir():
            yield "OUT is gone"
        if out.is_dir():
            yield from _whole(out, bundle="--bundle" in arguments)

    names = (folder / "out", folder / "model") if "verify" not in arguments else ()
    beside = tuple(folder / name for name in (".mamba-export",)) if number == signal.SIGKILL else ()
    attempt = Attempt(
        f"{signal.Signals(number).name} after {delay:.2f} s: {' '.join(arguments[:2])}",
        call=run,
        writes=(*names, *beside),
        check=check,
    )
    if number == signal.SIGKILL:  # what it was writing may lie there, hidden, until the next run
        attempt.writes = (folder,)
        attempt.leftovers = ()
    return attempt


def two_at_once(place: Place) -> Attempt:
    """Two runs to one OUT: where it does not stand, exactly one may say that it wrote it."""
    rng, out = place.rng, place.folder / "out"
    place.copy(CHECKPOINT, "source")
    place.copy(EXPORTED)
    force = rng.random() < 0.3
    arguments = rng.choice(
        (["export", "source", "-o", "out"], ["build", "model", "--bundle", "out"])
    )
    arguments = [*arguments, *(["--force"] if force else [])]
    delay = rng.random() * 0.05
    _processes()

    def run() -> list[int | None]:
        children = []
        for _ in range(2):
            children.append(_start(arguments))
            time.sleep(delay)
        return [_code(child) for child in children]

    def check(outcome: Outcome) -> Iterator[str]:
        codes = sorted(outcome.value or (), key=str)
        if codes not in ([0, 2], *([[0, 0]] if force else [])):
            yield f"exit codes {codes}: {outcome.stderr.strip()[:200]}"
        yield from _whole(out, bundle="--bundle" in arguments)

    what = f"twice at once: {' '.join(arguments)}"
    return Attempt(what, call=run, writes=(out,), check=check)


def _code(child: BaseProcess) -> int | None:
    """A child's exit code; None where it does not end, and it is ended."""
    child.join(_PATIENCE)
    code = child.exitcode
    if code is None:
        child.kill()
        child.join()
    return code


def _child(arguments: list[str], ready: Event | None) -> None:
    from mamba_export.cli.app import main

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    code = 70
    try:
        if ready is not None:
            ready.set()
        main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:  # before the command's own handlers
        code = 128 + signal.SIGINT
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _whole(out: Path, *, bundle: bool) -> Iterator[str]:
    """What is missing in OUT, which is an export, or what a bundle is."""
    names = {path.name for path in out.iterdir()}
    export = {"model.onnx", "model.onnx.data", "mamba_export.json", "tokenizer.json"}
    if not export <= names and not (bundle and {"model.onnx", "DEPLOY.md"} <= names):
        yield f"OUT is torn: it holds {', '.join(sorted(names)) or 'nothing'}"
