"""The Python API with values that nobody meant: a right answer, or one of our errors."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from attacks.attempt import Attempt, Outcome
from attacks.material import CHECKPOINT, EXPORTED, Place
from attacks.objects import odd_numbers, odd_things, shown


def values(place: Place) -> Attempt:
    """One call with one odd value, or two."""
    rng = place.rng
    folder = place.copy(EXPORTED)
    place.copy(CHECKPOINT, "source")
    name = rng.choice(tuple(_CALLS))
    what, call = _CALLS[name](folder, rng)
    # An output folder may be called anything, where it is made; what it is made from stays.
    writes = (place.folder,) if name in ("export", "bundle") else ()
    kept = (folder, place.folder / "source")

    def sources_stay(outcome: Outcome) -> Iterator[str]:
        for path in outcome.changed:
            if any(path == one or one in path.parents for one in kept):
                yield f"changes the source: {path.name}"

    return Attempt(f"{name}({what})", call=call, writes=writes, check=sources_stay)


def _session(folder: pathlib.Path) -> Any:
    from mamba_export import OrtSession

    return OrtSession(folder)


def _run(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    thing = rng.choice(odd_things())
    return f"{shown(thing)}", lambda: _session(folder).run(thing)


def _run_state(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    thing = rng.choice(odd_things())
    return f"[[1]], {shown(thing)}", lambda: _session(folder).run([[1]], thing)


def _generate(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    thing = rng.choice(odd_things())
    return f"{shown(thing)}", lambda: _session(folder).generate(thing, max_new_tokens=2)


def _generate_options(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    names = (
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "seed",
        "max_new_tokens",
        "stop_at_end",
        "sampling",
        "on_token",
    )
    options = {name: rng.choice(odd_numbers()) for name in rng.sample(names, rng.choice((1, 1, 2)))}
    count = options.setdefault("max_new_tokens", 2)
    if isinstance(count, int) and count > 100:  # a right answer, and a long one
        options["max_new_tokens"] = -count
    return f"**{shown(options)}", lambda: _session(folder).generate("ab", **options)


def _stream(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    thing = rng.choice(odd_things())
    return f"{shown(thing)}", lambda: list(_session(folder).stream(thing, max_new_tokens=2))


def _initial_state(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    number = rng.choice(odd_numbers())
    return f"{shown(number)}", lambda: _session(folder).initial_state(number)


def _select(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    thing = rng.choice((*odd_things(), [0.0], [10**30], [-1], [0, 0], [True], "0", [[0]]))
    return f"{shown(thing)}", lambda: _session(folder).initial_state(2).select(thing)


def _concatenate(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    thing = rng.choice(odd_things())

    def call() -> Any:
        session = _session(folder)
        state = session.initial_state(1)
        return session.concatenate(
            rng.choice((thing, [thing], [state, thing], [state, state.numpy()]))
        )

    return f"{shown(thing)}", call


def _state_from_numpy(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    import numpy as np

    thing = rng.choice(odd_things())

    def call() -> Any:
        session = _session(folder)
        arrays = session.initial_state(1).numpy()
        odd = (
            thing,
            [thing] * len(arrays),
            [one.astype(complex) for one in arrays],
            [one.astype(str) for one in arrays],
            [one[..., None] for one in arrays],
            [one.astype(np.float64) * np.nan for one in arrays],
            arrays[:-1],
            [one.tolist() for one in arrays],
        )
        return session.state_from_numpy(rng.choice(odd))

    return f"{shown(thing)}", call


def _open(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    from mamba_export import OrtSession

    if rng.random() < 0.5:
        thing = rng.choice(odd_things())
        return f"{shown(thing)}", lambda: OrtSession(thing)
    name = rng.choice(("providers", "threads", "native", "session_options"))
    value = rng.choice(
        (
            *odd_numbers(),
            ["x"],
            [("CPUExecutionProvider", {"x": "y"})],
            ["CPUExecutionProvider"] * 3,
            [1],
            "cpu",
        )
    )
    if name == "threads" and isinstance(value, int) and 100 < value < 2**40:
        value = -value
    return f"{name}={shown(value)}", lambda: OrtSession(folder, **{name: value})


def _export(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    import mamba_export

    export: Any = mamba_export.export  # its types forbid what is tried here
    thing = rng.choice(odd_things())
    if rng.random() < 0.5:
        return f"{shown(thing)}, 'out'", lambda: export(thing, "out")
    name = rng.choice(
        ("output", "dtype", "opset", "tokenizer", "force", "progress", "args", "states")
    )
    if name == "args":
        return f"'source', {shown(thing)}", lambda: export("source", thing)
    arguments: Any = {"output": "out", name: thing}
    return f"'source', {name}={shown(thing)}", lambda: export("source", **arguments)


def _verify(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    from mamba_export import verify

    thing = rng.choice(odd_things())
    name = rng.choice(("folder", "folder", "model", "text", "backends"))
    if name == "folder":
        return f"{shown(thing)}", lambda: verify(thing, quick=True)
    arguments = {"model": "source", "backends": ["native"], name: thing}
    return f"{name}={shown(thing)}", lambda: verify(folder, quick=True, **arguments)


def _bundle(folder: pathlib.Path, rng: Any) -> tuple[str, Callable[[], Any]]:
    from mamba_export import BuildOptions, bundle

    thing = rng.choice(
        (
            *odd_things(),
            *odd_numbers(),
            (1, 2, 3),
            (3, 2, 1),
            (1, 1),
            (1.0, 2.0, 3.0),
            (1, 1, 10**30),
        )
    )
    name = rng.choice(
        (
            "folder",
            "out",
            "options",
            "batch",
            "length",
            "past",
            "sizes",
            "workspace_mib",
            "runtime",
            "precision",
        )
    )
    if name in ("folder", "out", "options"):
        arguments = {"folder": folder, "out": "bundle", "options": BuildOptions(), name: thing}
        return f"{name}={shown(thing)}", lambda: bundle(
            arguments["folder"], arguments["out"], arguments["options"]
        )
    return f"{name}={shown(thing)}", lambda: bundle(folder, "bundle", BuildOptions(**{name: thing}))


_CALLS: dict[str, Callable[[pathlib.Path, Any], tuple[str, Callable[[], Any]]]] = {
    "run": _run,
    "run with a state": _run_state,
    "generate": _generate,
    "generate, options": _generate_options,
    "stream": _stream,
    "initial_state": _initial_state,
    "select": _select,
    "concatenate": _concatenate,
    "state_from_numpy": _state_from_numpy,
    "OrtSession": _open,
    "export": _export,
    "verify": _verify,
    "bundle": _bundle,
}
