"""The one writer: what it replaces and what it refuses, two runs at once, kills at every moment, full disks."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mamba_export.cli.signals import ending_well
from mamba_export.errors import MambaExportError
from mamba_export.files import (
    check_inside,
    copy_file,
    new_file,
    new_files,
    new_folder,
    opened,
    renames,
    replaceable,
    write_bytes,
    write_text,
)
from mamba_export.files.partial import PREFIX, sweep

MARKER = "ours.json"


def fill(folder: Path, text: str) -> None:
    for name in ("a.txt", "b.txt", "c.txt", MARKER):
        write_text(folder / name, text)


def make(
    out: Path,
    text: str,
    *,
    force: bool = False,
    sources: tuple[Path, ...] = (),
    then: Callable[[Path], object] = lambda _: None,
) -> None:
    with new_folder(out, marker=MARKER, force=force, sources=sources) as folder:
        fill(folder, text)
        then(folder)


def texts(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of the user's."""
    folder = tmp_path / "precious"
    (folder / "inner").mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    (folder / "inner" / "deep.txt").write_text("mine")
    return folder


# ---- what is replaced ------------------------------------------------------------------------


def test_force_replaces_what_we_wrote_and_what_is_empty(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "one")
    (out / "more.txt").write_text("more")
    with pytest.raises(MambaExportError, match=r"exists: .*--force"):
        make(out, "two")
    make(out, "two", force=True)
    assert names(out) == sorted(["a.txt", "b.txt", "c.txt", MARKER])
    assert texts(out) == {"two"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(MambaExportError, match="exists"):
        make(tmp_path / "empty", "two")
    make(tmp_path / "empty", "two", force=True)
    assert names(tmp_path) == ["empty", "out"], "nothing is left beside them"


def _link(tmp: Path) -> Path:
    (tmp / "link").symlink_to(tmp / "precious")
    return tmp / "link"


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a folder of the user's": (lambda t: t / "precious", f"holds no {MARKER}"),
    "its parent": (lambda t: t, "holds the current folder|holds no"),
    "a file": (lambda t: t / "precious" / "mine.txt", "is not a folder"),
    "a link to a folder": (_link, "is not a folder"),
    "below a file": (lambda t: t / "precious" / "mine.txt" / "out", "mine.txt"),
    "empty": (lambda t: Path(), "name a folder to write"),
    "a name over 255 bytes": (lambda t: t / ("x" * 256), "File name too long"),
    "a path over 4096 bytes": (lambda t: t / ("x/" * 2100), "File name too long"),
    "a link to itself": (lambda t: _loop(t) / "out", "symbolic links"),
}


def _loop(tmp: Path) -> Path:
    (tmp / "loop").symlink_to(tmp / "loop")
    return tmp / "loop"


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_ours_stays(case: str, force: bool, precious: Path, tmp_path: Path) -> None:
    out, reason = REFUSED[case]
    path = out(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    started = False
    with pytest.raises(MambaExportError) as caught, new_folder(path, marker=MARKER, force=force):
        started = True
    assert not started, "the refusal comes before the work"
    assert "\n" not in str(caught.value)
    if force or "exists" not in str(caught.value):
        assert caught.match(reason)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["", ".", "./", "a\0b"])
def test_no_name(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MambaExportError, match=r"name a folder to write|is empty|NUL"):
        make(text, "x", force=True)  # type: ignore[arg-type]
    assert names(tmp_path) == []


def test_the_current_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "out", "one")
    (tmp_path / "out" / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "out" / "inner")
    with pytest.raises(MambaExportError, match="current folder"):
        make(Path("..") / ".." / "out", "two", force=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "one"


@pytest.mark.parametrize(
    ("out", "source"),
    [
        ("x", "x"),
        ("x", "x/model"),
        ("x", "x/model/deep"),
        ("x/out", "x"),
        ("x/new", "x"),
        ("link/out", "x"),
        ("x", "link"),
        ("x", "link/model"),
        ("x", "away"),  # a folder whose file is a link into x
        ("x", "x/a.txt"),
    ],
)
def test_force_spares_the_sources(out: str, source: str, tmp_path: Path) -> None:
    make(tmp_path / "x", "one")
    make(tmp_path / "x" / "out", "one")
    (tmp_path / "x" / "model" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "x")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "tokenizer.json").symlink_to(tmp_path / "x" / "a.txt")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MambaExportError, match=r"is, holds or lies inside .*, which is read"):
        make(tmp_path / out, "two", force=True, sources=(tmp_path / source,))
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "x" / "a.txt").read_text() == "one"


def test_a_source_that_is_away_hinders_nothing(tmp_path: Path) -> None:
    make(tmp_path / "x", "one")
    (tmp_path / "model").mkdir()
    make(tmp_path / "x", "two", force=True, sources=(tmp_path / "model", Path("owner/name")))
    make(tmp_path / "model" / "onnx", "two", sources=(tmp_path / "model",))
    assert texts(tmp_path / "x") == texts(tmp_path / "model" / "onnx") == {"two"}


def test_what_appears_during_the_work_stays(tmp_path: Path) -> None:
    for force in (False, True):
        out = tmp_path / f"out{force}"

        def appear(_: Path, out: Path = out) -> None:
            out.mkdir()
            (out / "mine.txt").write_text("mine")

        with pytest.raises(MambaExportError, match=r"exists|holds no"):
            make(out, "new", force=force, then=appear)
        assert names(out) == ["mine.txt"]
    assert names(tmp_path) == ["outFalse", "outTrue"]


# ---- failure ---------------------------------------------------------------------------------


class Stop(BaseException):
    """As KeyboardInterrupt, which would end the tests themselves."""


@pytest.mark.parametrize("error", [Stop(), ValueError("x"), OSError(errno.EIO, "I/O error")])
def test_a_failure_leaves_no_folder_that_it_made(error: BaseException, tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise error

    def files() -> None:
        with new_files(tmp_path / "c" / "d", last=MARKER) as folder:
            fill(folder, "two")
            fail(folder)

    make(tmp_path / "old", "one")
    kind = MambaExportError if isinstance(error, OSError) else type(error)
    for out in (tmp_path / "a" / "b" / "out", tmp_path / "old"):
        with pytest.raises(kind):
            make(out, "two", force=True, then=fail)
    with pytest.raises(kind):
        files()
    assert names(tmp_path) == ["old"]
    assert texts(tmp_path / "old") == {"one"}


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A limit as of ``ulimit -f``; writes beyond it fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 9_999])
def test_every_write_is_checked(size: int, tmp_path: Path) -> None:
    """Also the last buffer of a file, which some writers drop in silence."""
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(10_000))

    def pieces(path: Path) -> None:
        with opened(path) as file:
            for start in range(0, 10_000, 500):
                file.write(bytes(500) if start else memoryview(bytes(500)))

    writers: list[Callable[[Path], object]] = [
        lambda path: write_bytes(path, bytes(10_000)),
        lambda path: write_text(path, "x" * 10_000),
        pieces,
        lambda path: copy_file(source, path),
    ]
    for write in writers:
        with largest_file(size):
            with (
                pytest.raises(
                    MambaExportError, match=r"out/big: it would be larger than a file may"
                ),
                new_folder(tmp_path / "out", marker=MARKER) as folder,
            ):
                write(folder / "big")
            with (
                pytest.raises(MambaExportError, match=r"one: it would be larger than a file may"),
                new_file(tmp_path / "one") as path,
            ):
                write(path)
        assert names(tmp_path) == ["source.bin"]


def test_names_of_any_bytes(tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"x" * 255, "ü \n\t'\"$(x)".encode()):
        make(tmp_path / os.fsdecode(name), "one")
        make(tmp_path / os.fsdecode(name), "two", force=True)
        with new_file(tmp_path / "file") as path:
            write_text(path, os.fsdecode(name))
        assert (tmp_path / "file").read_bytes() == name
    assert len(names(tmp_path)) == 4


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(Path("~/a/out"), "one")
    with new_file("~/a/file") as path:
        write_text(path, "one")
    assert names(tmp_path / "a") == ["file", "out"]


# ---- one file, and several -------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o640)
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(ZeroDivisionError), new_file(file) as path:
        print(write_text(path, "half"), 1 / 0)
    assert file.read_text() == "old"
    with new_file(tmp_path / "link") as path:
        write_text(path, "new")
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe", Path("/dev/null"), tmp_path / "none" / "x"):
        with (
            pytest.raises(MambaExportError, match=r"not a regular file|no folder"),
            new_file(other),
        ):
            pytest.fail("the refusal comes first")
    assert names(tmp_path) == ["file", "link", "pipe"]


def test_files_come_together_and_the_others_stay(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    (tmp_path / "mine.txt").write_text("mine")
    with new_files(tmp_path, last=MARKER) as folder:
        write_text(folder / "a.txt", "new")
        write_text(folder / MARKER, "new")
    assert [(tmp_path / name).read_text() for name in ("a.txt", "b.txt", MARKER, "mine.txt")] == [
        "new",
        "old",
        "new",
        "mine",
    ]

    def check() -> None:
        raise MambaExportError("too late")

    with (
        pytest.raises(MambaExportError, match="too late"),
        new_files(tmp_path, last=MARKER, check=check) as folder,
    ):
        write_text(folder / "a.txt", "newer")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert len(names(tmp_path)) == 5


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "real").write_text("x")
    (folder / "within").symlink_to("real")
    (folder / "out").symlink_to("../secret")
    (tmp_path / "alias").symlink_to(folder)
    for path in (folder / "real", folder / "within", tmp_path / "alias" / "within"):
        check_inside(path, path.parent, error=MambaExportError)
    with pytest.raises(MambaExportError, match=r"out is a link that leads out of its folder, to"):
        check_inside(folder / "out", folder, error=MambaExportError)
    check_inside(folder / "out", folder, tmp_path, error=MambaExportError)


# ---- filesystems without the renames, and mount points ---------------------------------------


@pytest.fixture(params=["ENOSYS", "EINVAL", "EBUSY", "EXDEV"])
def no_renameat2(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        code = getattr(errno, request.param)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(renames, "_renameat2", refuse)


@pytest.mark.usefixtures("no_renameat2")
def test_without_exchange_the_files_move_one_by_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "one")
    with pytest.raises(MambaExportError, match="exists"):
        make(out, "two")
    (out / "inner").mkdir()
    (out / "inner" / "deep").write_text("one")
    make(out, "two", force=True)
    assert texts(out) == {"two"}
    assert len(names(out)) == 4
    assert names(tmp_path) == ["out"]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB mounted at ``out``, as docker -v does."""
    path = tmp_path / "out"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_volume_gets_the_files(volume: Path, tmp_path: Path) -> None:
    (volume / "lost+found").mkdir()  # as at the top of ext4
    make(volume, "one")
    assert (volume / "a.txt").read_text() == "one"
    with pytest.raises(MambaExportError, match="exists"):
        make(volume, "two")
    make(volume, "two", force=True)
    (volume / "lost+found").rmdir()
    assert texts(volume) == {"two"}
    for path in volume.iterdir():
        path.unlink()
    make(volume, "three", force=True)
    (volume / MARKER).unlink()
    with pytest.raises(MambaExportError, match="holds no"):
        make(volume, "four", force=True)
    assert names(volume) == ["a.txt", "b.txt", "c.txt"]
    assert names(tmp_path) == ["out"]


def test_a_full_disk(volume: Path, tmp_path: Path) -> None:
    make(volume, "one")
    for _ in range(2):
        with (
            pytest.raises(MambaExportError, match=r"the disk is full; nothing was written"),
            new_folder(volume, marker=MARKER, force=True) as folder,
        ):
            write_bytes(folder / "big", bytes(1 << 20))
    make(volume / "inner", "one")
    with (
        pytest.raises(MambaExportError, match=r"inner/big: the disk is full"),
        new_folder(volume / "inner", marker=MARKER, force=True) as folder,
    ):
        write_bytes(folder / "big", bytes(1 << 20))
    shutil.rmtree(volume / "inner")
    assert texts(volume) == {"one"}
    assert len(names(volume)) == 4, "nothing of the failed runs stays"


def test_a_volume_that_is_read_only(volume: Path) -> None:
    make(volume / "old", "one")
    subprocess.run(["mount", "-o", "remount,ro", str(volume)], check=True)
    for out in (volume / "old", volume / "new", volume / "a" / "b", volume):
        with pytest.raises(MambaExportError, match=r"cannot be written \(Read-only|holds no"):
            make(out, "two", force=True)
    with (
        pytest.raises(MambaExportError, match=r"file: cannot be written \(Read-only"),
        new_file(volume / "file"),
    ):
        pytest.fail("the refusal comes first")
    assert names(volume) == ["old"]


def test_a_folder_that_holds_a_volume_stays(volume: Path, tmp_path: Path) -> None:
    (volume / "mine.txt").write_text("mine")
    (tmp_path / MARKER).write_text("")
    with pytest.raises(MambaExportError, match=r"holds the mount point .*out"):
        make(tmp_path, "two", force=True)
    assert names(volume) == ["mine.txt"]


def test_a_parent_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(replaceable.os, "access", lambda *_: False)
    make(tmp_path / "out", "one")
    make(tmp_path / "out", "two", force=True)
    assert texts(tmp_path / "out") == {"two"}


# ---- processes -------------------------------------------------------------------------------

RUNNER = """
import os, sys, time
from pathlib import Path
from mamba_export.errors import MambaExportError
from mamba_export.files import new_folder, write_text, renames
from mamba_export.cli.signals import ending_well

def refuse(*_):
    raise OSError(22, "Invalid argument")

def write(out, text, force, renaming):
    if renaming == "plain":
        renames._renameat2 = refuse
    with ending_well(), new_folder(out, marker="ours.json", force=force == "force") as folder:
        for name in ("a.txt", "b.txt", "c.txt", "ours.json"):
            write_text(folder / name, text)
            time.sleep(0.0005)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write(*line.rstrip().split("|"))
            code = 0
        except MambaExportError:
            code = 2
        except KeyboardInterrupt:
            code = 130
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code)
    print("pid", child, flush=True)
    _, status = os.waitpid(child, 0)
    print("code", os.waitstatus_to_exitcode(status), flush=True)
"""


class Runner:
    """A process that runs writers, each in a process of its own: quick to start, and to kill."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, out: Path, text: str, force: str = "no", renaming: str = "exchange") -> int:
        """Start a writer; returns its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{out}|{text}|{force}|{renaming}\n")
        self.process.stdin.flush()
        return self._number("pid")

    def finish(self) -> int:
        """Wait for the writer's exit code."""
        return self._number("code")

    def _number(self, name: str) -> int:
        assert self.process.stdout is not None
        found, number = self.process.stdout.readline().split()
        assert found == name  # never a signal to what is no process of this runner
        return int(number)


@pytest.fixture(scope="module")
def runners() -> Iterator[list[Runner]]:
    made = [Runner() for _ in range(3)]
    yield made
    for runner in made:
        runner.process.communicate()


@pytest.mark.parametrize("renaming", ["exchange", "plain"])
@pytest.mark.parametrize("force", ["force", "no"])
def test_several_runs_at_once(
    force: str, renaming: str, runners: list[Runner], tmp_path: Path
) -> None:
    for round_ in range(12):
        out = tmp_path / "made" / f"out{round_}"
        for index, runner in enumerate(runners):
            runner.start(out, f"text {index}", force, renaming)
        codes = sorted(runner.finish() for runner in runners)
        assert codes == ([0, 0, 0] if force == "force" else [0, 2, 2])
        assert len(names(out)) == 4
        assert len(texts(out)) == 1, "of one run alone"
    assert len(names(tmp_path / "made")) == 12


@pytest.mark.parametrize("renaming", ["exchange", "plain"])
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGKILL, -9)],
)
def test_a_signal_at_any_moment(
    number: signal.Signals, code: int, renaming: str, runners: list[Runner], tmp_path: Path
) -> None:
    """The folder is the old one or the new one; what a kill left goes with the next run."""
    out = tmp_path / "out"
    seed = random.Random(0)
    ended = 0
    for round_ in range(40):
        make(out, "old", force=True)
        process = runners[0].start(out, "new", "force", renaming)
        time.sleep(seed.uniform(0, 0.012))
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.kill(process, number)
        found = runners[0].finish()
        assert found in (0, code, -number), "before the handlers are set it is the system's"
        ended += found != 0
        if number is signal.SIGKILL:
            sweep(tmp_path)
            sweep(out)
        assert names(tmp_path) == ["out"], f"round {round_}"
        assert len(names(out)) == 4
        assert texts(out) in ({"old"}, {"new"})
    assert ended, "at least one run was hit"


def test_a_living_run_s_folder_stays(runners: list[Runner], tmp_path: Path) -> None:
    with new_folder(tmp_path / "one", marker=MARKER) as folder:
        fill(folder, "one")
        make(tmp_path / "two", "two")
        runners[0].start(tmp_path / "three", "three")
        assert runners[0].finish() == 0
        assert len([name for name in names(tmp_path) if name.startswith(PREFIX)]) == 1
    assert names(tmp_path) == ["one", "three", "two"]
    assert texts(tmp_path / "one") == {"one"}


def test_what_a_signal_ended_is_freed_at_once() -> None:
    """A signal may come while a block's end is being called: then freeing its frames ends the block."""
    ended = []

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        try:
            yield
        finally:
            ended.append(True)

    def work() -> None:
        opened = block()
        opened.__enter__()  # and no __exit__, as where the signal came in between
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(1)

    gc.disable()
    try:
        try:
            with ending_well():
                work()
        except SystemExit as stop:
            code = stop.code
        assert (code, ended) == (129, [True])
    finally:
        gc.enable()


def test_nohup_stays_in_force(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from mamba_export.cli.signals import ending_well\n"
        "with ending_well():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('alive')\n"
    )
    for command, output in ((["nohup"], "alive\n"), ([], "")):
        result = subprocess.run(
            [*command, sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert (result.stdout, result.returncode) == (output, 0 if output else 129)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_a_callback_that_may_not_raise_ends_the_command_after_it(
    number: signal.Signals, code: int
) -> None:
    program = (
        "import os, time, weakref\n"
        "from mamba_export.cli import exit_with\n"
        "class Thing: pass\n"
        "thing = Thing()\n"
        f"watched = weakref.ref(thing, lambda _: os.kill(os.getpid(), {int(number)}) or time.sleep(0))\n"
        "def work():\n"
        "    global thing\n"
        "    del thing\n"
        "    time.sleep(20)\n"
        "exit_with(work)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=15
    )
    assert (result.returncode, result.stderr) == (code, "")


@pytest.mark.parametrize("step", ["create", "exec"])
def test_a_signal_while_a_library_is_imported_ends_the_command_after_it(step: str) -> None:
    """C++ that starts up ends the process where what it calls raises; Triton calls Python for its enums."""
    program = (
        "import _imp, importlib.util, os, signal, time\n"
        "from importlib.machinery import ExtensionFileLoader\n"
        "from types import ModuleType\n"
        "from mamba_export.cli import exit_with\n"
        "def start(_):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('whole', flush=True)\n"
        f"_imp.{step}_dynamic = start\n"
        "def work():\n"
        "    loader = ExtensionFileLoader('native', '/native.so')\n"
        "    spec = importlib.util.spec_from_loader('native', loader, origin='/native.so')\n"
        f"    loader.{step}_module({'spec' if step == 'create' else 'ModuleType(spec.name)'})\n"
        "    time.sleep(20)\n"
        "exit_with(work)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=15
    )
    assert (result.returncode, result.stdout, result.stderr) == (143, "whole\n", "")
