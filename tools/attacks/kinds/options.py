"""Options of every command with odd values, and environment variables of ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from attacks.attempt import Attempt
from attacks.material import CHECKPOINT, EXPORTED, Place
from attacks.odd import ODD_ARGUMENTS, short

_BASE = {
    "export": ["model", "-o", "out"],
    "run": ["model", "--prompt", "ab", "--max-new-tokens", "2"],
    "verify": ["model", "--quick", "--backend", "native"],
    "build": ["model", "--bundle", "bundle"],
    "doctor": [],
    "library-path": [],
}
_OUTPUTS = ("-o", "--output", "--bundle", "--timing-cache")
_SELDOM = ("--engine", "--verify")  # they take seconds where they are accepted


def odd_options(place: Place) -> Attempt:
    """One to three options of a command, with odd values; or an odd command."""
    import typer

    from mamba_export.cli.app import app

    rng = place.rng
    group = typer.main.get_command(app)
    name = rng.choices(tuple(_BASE), (8, 60, 2, 34, 2, 2))[0]
    place.copy(CHECKPOINT if name == "export" else EXPORTED)
    arguments = [name, *_BASE[name]]
    given = [one for one in group.commands[name].params if one.param_type_name == "option"]  # type: ignore[attr-defined]
    plain = [one for one in given if not set(one.opts) & set(_SELDOM)]
    for _ in range(rng.choice((1, 1, 2, 3)) if plain else 0):
        option = rng.choice(plain)
        flag = rng.choice((*option.opts, *option.secondary_opts))
        arguments.append(flag)
        if not option.is_flag or rng.random() < 0.05:
            # What the user names may lie anywhere; here it lies in the attempt's folder.
            arguments.append(rng.choice(ODD_ARGUMENTS).replace("..", "up"))
    if rng.random() < 0.08:
        arguments[rng.randrange(len(arguments))] = rng.choice(ODD_ARGUMENTS).replace("..", "up")
    if rng.random() < 0.05:
        arguments.append(rng.choice(ODD_ARGUMENTS).replace("..", "up"))
    # Names of files may be any of these words: what they make lies in the attempt's own folder.
    outputs = [arguments[at + 1] for at, word in enumerate(arguments[:-1]) if word in _OUTPUTS]
    writes = [place.folder / (one.split("/")[0] or one) for one in (*outputs, "model") if one]
    if name in ("export", "build"):
        writes.append(place.folder / "model")
    return Attempt(
        " ".join(short(one) for one in arguments)[:300],
        arguments,
        writes=tuple(one for one in writes if name in ("export", "build")),
    )


_VARIABLES = (
    "MAMBA_EXPORT_BACKEND",
    "MAMBA_EXPORT_KERNELS",
    "MAMBA_EXPORT_LIBRARY",
    "MAMBA_EXPORT_TRT_PLUGIN",
    "MAMBA_EXPORT_ALLOW_ENGINE_CODE",
    "HF_HOME",
    "COLUMNS",
    "TERM",
    "LANG",
    "HOME",
    "TMPDIR",
)


def environment(place: Place) -> Attempt:
    """Environment variables with nonsense, or very long."""
    rng = place.rng
    name = rng.choice(_VARIABLES)
    value = rng.choice(ODD_ARGUMENTS).replace("\0", "")
    place.copy(EXPORTED)
    commands = (
        ["run", "model", "--prompt", "ab", "--max-new-tokens", "2"],
        ["build", "model", "--bundle", "bundle"],
        ["doctor"],
        ["library-path"],
        ["verify", "model", "--quick", "--backend", "native"],
    )
    arguments = rng.choices(commands, (8, 4, 3, 3, 1))[0]

    @contextlib.contextmanager
    def changed() -> Iterator[None]:
        old = os.environ.get(name)
        os.environ[name] = value
        try:
            yield
        finally:
            os.environ.pop(name)
            if old is not None:
                os.environ[name] = old

    writes = (place.folder / "bundle",)
    return Attempt(
        f"{name}={short(value)} {arguments[0]}", arguments, writes=writes, around=changed
    )
