"""A signal at every moment at which Python may call a handler, one after the other: whole or nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mamba_export
from mamba_export.cli.signals import ending_well
from mamba_export.files import (
    end_left,
    new_file,
    new_files,
    new_folder,
    outputs,
    renames,
    write_text,
)
from mamba_export.interrupts import deferred

PACKAGE = str(Path(mamba_export.__file__).parent)
MARKER = "ours.json"
NAMES = ["a.txt", MARKER]

Work = Callable[[], object]


class StopError(Exception):
    """What a handler of an application raises."""


def fill(folder: Path, text: str) -> None:
    for name in NAMES:
        write_text(folder / name, text)


def moments(work: Work) -> list[int]:
    """Do the work; the numbers of its moments: where a function begins, and where a call has ended.

    There CPython looks for signals that have come. Of the moments in one function that is called from one line
    of this package, through the same others, the first and the last count; far below it none.
    """
    count = 0
    first: dict[tuple[object, ...], int] = {}
    last: dict[tuple[object, ...], int] = {}

    def event(frame: FrameType, what: str, argument: Any) -> None:
        nonlocal count
        count += 1
        if frame.f_code is moments.__code__:  # its end
            return
        path: list[object] = [what, getattr(argument, "__qualname__", "")]
        caller: FrameType | None = frame
        while caller is not None and PACKAGE not in caller.f_code.co_filename:
            path.append(caller.f_code)
            caller = caller.f_back
        if caller is not None:
            path += [caller.f_code, caller.f_lineno]
        if len(path) <= 7:
            first.setdefault(tuple(path), count)
            last[tuple(path)] = count

    sys.setprofile(event)
    try:
        work()
    finally:
        sys.setprofile(None)
    return sorted({*first.values(), *last.values()})


def interrupted(
    work: Work, number: int, moment: int, second: int = 0
) -> tuple[BaseException | None, list[int]]:
    """Do the work with a signal at a moment, and another so many calls after the first was answered.

    Returns:
        What ended the work, and the signals that were sent: none while they are the system's to answer.
    """
    count = since = 0
    sent: list[int] = []

    def send() -> None:
        if callable(signal.getsignal(number)):
            sent.append(number)
            signal.raise_signal(number)

    def event(*_: object) -> None:
        nonlocal count
        count += 1
        if count == moment:
            send()  # where its handler raises, Python calls this function no more

    def call(*_: object) -> None:
        nonlocal since
        since += bool(sent)
        if since == second:
            send()

    ended: BaseException | None = None
    if second:
        sys.settrace(call)
    sys.setprofile(event)
    try:
        work()
    except (SystemExit, KeyboardInterrupt, StopError) as error:
        ended = error
    finally:
        sys.setprofile(None)
        sys.settrace(None)
    return ended, sent


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """At the end handlers are as they were: a block that was not ended leaves its own. Garbage stays."""
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    report = sys.unraisablehook
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        # A signal that is sent once more, soon, is not for whatever runs then.
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
        sys.unraisablehook = report
        for number, handler in handlers.items():
            signal.signal(number, handler)


def folder(tmp: Path) -> None:
    with new_folder(tmp / "made" / "out", marker=MARKER, force=True) as new:
        fill(new, "new")


def files(tmp: Path) -> None:
    with new_files(tmp / "made" / "out", last=MARKER) as new:
        fill(new, "new")


def file(tmp: Path) -> None:
    with new_file(tmp / "made" / "out") as new:
        write_text(new, "new")


def state(tmp: Path) -> object:
    """What stands there: names and texts of all files, hidden ones too."""
    return {
        str(path.relative_to(tmp)): path.read_text() if path.is_file() else None
        for path in tmp.rglob("*")
    }


def place(tmp: Path, old: str) -> None:
    made = tmp / "made"
    if made.is_dir():
        for path in sorted(made.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        made.rmdir()
    if old == "a folder":
        (made / "out").mkdir(parents=True)
        fill(made / "out", "old")
    elif old == "a file":
        made.mkdir()
        (made / "out").write_text("old")


CASES: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "a folder, exchanged": (folder, "a folder", True),
    "a folder, file by file": (folder, "a folder", False),
    "a new folder": (folder, "nothing", True),
    "a new folder, without the rename": (folder, "nothing", False),
    "files": (files, "a folder", True),
    "a file": (file, "a file", True),
}


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one: it is emptied a thousand times."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        dir=shared if os.access(shared, os.W_OK) else tmp_path
    ) as name:
        yield Path(name)


@pytest.fixture(params=CASES)
def case(
    request: pytest.FixtureRequest, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Work, str]:
    work, old, renaming = CASES[request.param]

    def refuse(*_: object) -> None:
        raise OSError(22, os.strerror(22))

    if not renaming:
        monkeypatch.setattr(renames, "_renameat2", refuse)
    # It only reads, for most of the time.
    monkeypatch.setattr(outputs, "check_place", lambda *_, **__: False)
    return lambda: work(memory), old


def test_one_signal(case: tuple[Work, str], memory: Path) -> None:
    """Judged while the exception lives: what its frames hold must not wait for their end."""
    work, old = case

    def command() -> None:
        with ending_well():
            work()

    at, whole = _tried(command, old, memory)
    answered = 0
    for index, moment in enumerate(at):
        number, code = [(signal.SIGTERM, 143), (signal.SIGINT, 130)][index % 2]
        place(memory, old)
        with as_before():
            ended, sent = interrupted(command, number, moment)
            assert state(memory) in whole, f"moment {moment}"
            if ended is None:
                assert not sent, f"lost at moment {moment}"
            else:
                assert getattr(ended, "code", 130) == code
                answered += 1
    assert answered > 0.9 * len(at), "all but those at the begin and the end"


def test_two_signals(case: tuple[Work, str], memory: Path) -> None:
    """The second may come while the first is answered, at the end of the command too."""
    work, old = case

    def command() -> None:
        with ending_well():
            work()

    at, whole = _tried(command, old, memory)
    for index, moment in enumerate(at[::5]):
        place(memory, old)
        with as_before():
            interrupted(command, signal.SIGINT, moment, second=1 + index % 23)
            end_left()  # as Python calls it when it ends
        assert state(memory) in whole, f"moment {moment}"


def test_ctrl_c_in_an_application(case: tuple[Work, str], memory: Path) -> None:
    """With Python's own handler."""
    work, old = case
    at, whole = _tried(work, old, memory)
    for moment in at[::3]:
        place(memory, old)
        with as_before():
            ended, sent = interrupted(work, signal.SIGINT, moment)
            end_left()
        # Work that ends before the moment is reached is sent no signal.
        assert isinstance(ended, KeyboardInterrupt) or not sent, f"moment {moment} of {len(at)}"
        assert state(memory) in whole, f"moment {moment}"


def _tried(work: Work, old: str, memory: Path) -> tuple[list[int], tuple[object, object]]:
    """The work's moments; what stands before it and after it."""
    place(memory, old)
    work()  # and what it imports at the first time
    place(memory, old)
    before = state(memory)
    at = moments(work)
    return at, (before, state(memory))


def test_deferred_signals() -> None:
    """At every moment: the block is whole, handlers are as before, and no signal is lost."""
    handled = []

    def handler(number: int, _: object) -> None:
        handled.append(number)
        raise StopError

    steps: list[int] = []

    def work() -> None:
        with deferred() as outer:
            steps.append(1)
            with contextlib.suppress(StopError), deferred():
                steps.append(2)
            steps.append(outer.number or 0)

    with as_before():
        signal.signal(signal.SIGTERM, handler)
        at = moments(work)
        for moment in at:
            handled.clear()
            steps.clear()
            _, sent = interrupted(work, signal.SIGTERM, moment)
            assert handled == sent == [signal.SIGTERM]
            assert len(steps) in (0, 3), f"moment {moment}"
            with pytest.raises(StopError):
                signal.raise_signal(signal.SIGTERM)


def test_the_first_deferred_signal_counts() -> None:
    def work() -> None:
        with deferred() as interrupt:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert interrupt.number == signal.SIGINT

    with as_before(), ending_well(), pytest.raises(KeyboardInterrupt):
        work()


def test_other_threads_defer_nothing() -> None:
    numbers: list[object] = []

    def work() -> None:
        with deferred() as interrupt:
            numbers.append(interrupt.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert numbers == [None]


def test_a_command_leaves_what_its_caller_began(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", marker=MARKER) as outer:
        with ending_well(), new_file(tmp_path / "file") as path:
            write_text(path, "new")
        fill(outer, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_a_command_that_ends_late_leaves_what_was_begun_since(tmp_path: Path) -> None:
    """As where garbage is collected, with a block of which a signal came in the call of the end."""

    def application(*_: object) -> None: ...

    with as_before():
        command = ending_well()
        command.__enter__()
        signal.signal(signal.SIGTERM, application)
        with new_folder(tmp_path / "out", marker=MARKER) as new:
            del command
            fill(new, "new")
            assert signal.getsignal(signal.SIGTERM) is application
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES


def test_a_fork_leaves_its_parent_s_folder(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from mamba_export.files import new_folder\n"
        "with new_folder(sys.argv[1], marker='a') as folder:\n"
        "    (folder / 'a').touch()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        from mamba_export.files import end_left\n"
        "        end_left()\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "out"], check=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
