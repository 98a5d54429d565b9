"""Paths: links, pipes, folders where files should be, odd names, outputs that stand, permissions."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from attacks.attempt import Attempt, Outcome
from attacks.material import CHECKPOINT, EXPORTED, Place
from attacks.odd import HOSTILE_TEXTS, short

_FILES = {
    CHECKPOINT: ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"),
    EXPORTED: ("model.onnx", "model.onnx.data", "mamba_export.json", "tokenizer.json"),
}
_COMMANDS = {
    CHECKPOINT: [["export", "model", "-o", "out"]],
    EXPORTED: [
        ["run", "model", "--prompt", "ab", "--max-new-tokens", "2"],
        ["build", "model", "--bundle", "out"],
        ["build", "model"],
        ["verify", "model", "--quick", "--backend", "native"],
    ],
}
_WEIGHTS = {CHECKPOINT: (1,), EXPORTED: (6, 4, 1, 1)}


def odd_paths(place: Place) -> Attempt:
    """A file that is a pipe, a folder, a link out or in a circle; or a folder with an odd name."""
    return (_odd_file if place.rng.random() < 0.6 else _odd_name)(place)


def _odd_file(place: Place) -> Attempt:
    rng = place.rng
    name = rng.choice((CHECKPOINT, EXPORTED, EXPORTED, EXPORTED))
    path = place.copy(name) / rng.choice(_FILES[name])
    way = rng.choice(
        (
            "missing",
            "pipe",
            "folder",
            "link out",
            "link to itself",
            "link to nothing",
            "link in",
            "device",
        )
    )
    moved = place.folder / "model" / "moved"
    path.rename(moved)
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way == "link out":
        path.symlink_to("../../outside/secret.txt")
    elif way == "link to itself":
        path.symlink_to(path.name)
    elif way == "link to nothing":
        path.symlink_to("nothing")
    elif way == "link in":
        path.symlink_to("moved")
    elif way == "device":
        path.symlink_to("/dev/zero")
    arguments = rng.choices(_COMMANDS[name], _WEIGHTS[name])[0]
    may_write = (place.folder / "out", *((path.parent,) if arguments == ["build", "model"] else ()))

    def secret(_: object) -> Iterator[str]:
        out = place.folder / "out"
        for file in out.iterdir() if out.is_dir() else ():
            if file.is_symlink():
                yield f"writes the link {file.name}"
            elif file.is_file() and b"the-secret" in file.read_bytes():
                yield f"copies a file from outside as {file.name}"

    return Attempt(f"{path.name}: {way}, {arguments[0]}", arguments, writes=may_write, check=secret)


_NAMES = (
    *(text for text in HOSTILE_TEXTS if "/" not in text and "\0" not in text),
    ".",
    "..",
    "model/",
    "model/.",
    "model/../model",
    "model/model.onnx",
    "/",
    "/proc/nonexistent/a/b",
    "a/" * 200,
    "a" * 255,
    "a" * 256,
    "\udcff\udcfe",
    "a b",
    "-o",
    "~/x",
    "~root/x",
    "model\n",
    "x\ty",
    "NUL",
    "/dev/null",
    "/proc/self",
    "/dev/full",
)


def _odd_name(place: Place) -> Attempt:
    rng, name = place.rng, place.rng.choice(_NAMES)
    place.copy(EXPORTED)
    place.copy(CHECKPOINT, "source")
    exists = False
    if (
        rng.random() < 0.4
        and "/" not in name
        and name not in (".", "..", "")
        and len(os.fsencode(name)) < 256
    ):
        shutil.copytree(place.folder / "model", place.folder / name)
        exists = True
    command = rng.choice(
        (
            ["run", "--prompt", "ab", "--max-new-tokens", "2", "--", name],
            ["build", "--bundle", "out", "--", name],
            ["build", "model", "--bundle", name],
            ["export", "--output", "out", "--", name],
            ["export", "source", f"--output={name}"],
            ["export", "source", "--output", "out", "--tokenizer", name],
            ["verify", "--quick", "--backend", "native", "--", name],
            ["verify", "model", "--quick", "--backend", "native", "--model", name],
            ["verify", "model", "--quick", "--backend", "native", "--text", name],
        )
    )
    writes = [place.folder / "out"]
    if command[:3] == ["build", "model", "--bundle"] or command[-1].startswith("--output="):
        first = next(iter(Path(name).parts), "")
        if first not in ("", ".", "..", "/", "model"):
            writes.append(place.folder / first)
    home = place.root / "home"
    writes.append(home)
    return Attempt(
        f"{'a folder called ' if exists else ''}{short(name)}: {command[0]}",
        command,
        writes=tuple(writes),
    )


def standing_output(place: Place) -> Attempt:
    """OUT stands already: the source, its parent, the user's files, a link, an export of ours."""
    rng, folder = place.rng, place.folder
    place.copy(CHECKPOINT, "source")
    place.copy(EXPORTED, "exported")
    place.copy(EXPORTED, "older")
    letters, source = folder / "letters", folder / "source"
    letters.mkdir()
    (letters / "novel.txt").write_text("years of work")
    shutil.copy(source / "tokenizer.json", letters)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(rng.choice(("source", "letters", "exported", "older", "nothing")))
    out = rng.choice(
        (
            *(
                "older",
                "empty",
                "new",
                "a/b/new",
                "link",
                "link/inside",
                "exported",
                "exported/inside",
            ),
            *("source", "source/.", "source/inside", "./source", str(source), "letters/../source"),
            *(".", "..", "", "letters", "letters/novel.txt", "letters/inside"),
        )
    )
    force = rng.random() < 0.75
    if rng.random() < 0.35:
        arguments = ["export", "source", "--output", out]
        sources = [source]
        if rng.random() < 0.2:
            arguments += ["--tokenizer", "letters"]
            sources.append(letters)
    else:
        arguments = ["build", "exported", "--bundle", out]
        sources = [folder / "exported"]
    real = Path(os.path.realpath(folder / out))
    refuse = not out or _may_not_be(real, sources, force) or not real.is_relative_to(folder)
    writes = () if refuse else (folder / real.relative_to(folder).parts[0],)

    def plain(outcome: Outcome) -> Iterator[str]:
        must_work = out in ("new", "a/b/new") or (out == "older" and force)
        if must_work and outcome.code != 0:
            yield f"refused: {outcome.stderr.strip()}"

    arguments += ["--force"] if force else []
    what = " ".join(short(one.replace(str(folder), "FOLDER")) for one in arguments)
    return Attempt(what, arguments, writes=writes, refuse=refuse, check=plain)


def _may_not_be(real: Path, sources: list[Path], force: bool) -> bool:
    """Whether a path may not become OUT: a source, what holds it or lies in it, and the user's files."""
    if any(
        one == real or real in one.parents or (one in real.parents and force) for one in sources
    ):
        return True
    if not real.exists():
        return False
    if not real.is_dir():
        return True
    ours = (real / "mamba_export.json").is_file()
    return any(real.iterdir()) and not (ours and force)


def permissions(place: Place) -> Attempt:
    """Files that may not be read, folders that may not be searched or written."""
    rng = place.rng
    name = rng.choice((CHECKPOINT, EXPORTED))
    model = place.copy(name)
    target = rng.choice((*(model / file for file in _FILES[name]), model, place.folder))
    mode = rng.choice((0o000, 0o000, 0o444, 0o111, 0o555))
    arguments = rng.choices(_COMMANDS[name], _WEIGHTS[name])[0]

    @contextlib.contextmanager
    def as_nobody() -> Iterator[None]:
        root = os.geteuid() == 0
        if root:  # nothing is forbidden to root
            for path in (place.folder, *place.folder.rglob("*")):
                os.chown(path, 65534, 65534, follow_symlinks=False)
        old = target.stat().st_mode
        target.chmod(mode)
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)
            target.chmod(old)

    what = f"{target.relative_to(place.root.parent).name} is {mode:o}: {arguments[0]}"
    writes = (place.folder / "out", *((model,) if arguments == ["build", "model"] else ()))
    return Attempt(what, arguments, writes=writes, around=as_nobody)
