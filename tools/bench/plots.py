"""Plots of a GPU's record, for docs/performance.md. matplotlib is optional (``pip install .[train]``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.limits import layer_weights
from bench.published import config_of
from bench.rows import LIMIT, OURS, Row, comparisons
from mamba_export.errors import MambaExportError
from mamba_export.files import new_file

TITLES = {
    "scan": "Selective scan: time at each shape, beside mamba_ssm and the limit",
    "prefill": "Prefill: time against the length of the prompt",
    "decode": "Decode: time of a token against the size of the model",
    "long": "Decode: time of a token after 1K to 1M tokens",
}
"""Plots by name, with what a reader who cannot see them is told."""
_THEIRS = "mamba_ssm"
_COLOURS = {OURS: "#0072b2", _THEIRS: "#d55e00", LIMIT: "#555555"}  # apart for every eye
_SIZE_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00")
_INCHES, _DPI = (7.2, 3.8), 110


def plot_file(record: Path, name: str) -> Path:
    """Where a plot of a record lies: beside it."""
    return record.with_name(f"{record.stem}-{name}.png")


def write_plots(record: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw every plot that the rows have something for.

    Args:
        record: the record's file; the plots go beside it.
        rows: of that record.

    Returns:
        The files.

    Raises:
        MambaExportError: matplotlib is not installed.
    """
    kept = {
        name: _with_best_peer(r for r in rows if r.kind == name and r.milliseconds is not None)
        for name in _DRAWN
    }
    if not any(_of(mine, OURS) for mine in kept.values()):
        return []
    try:
        import matplotlib
    except ImportError:
        raise MambaExportError(
            "plots need matplotlib: pip install matplotlib, or leave out --plots"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for name, draw in _DRAWN.items():
        mine = kept[name]
        if not _of(mine, OURS):
            continue
        figure, axes = pyplot.subplots(figsize=_INCHES, layout="constrained")
        draw(axes, mine)
        axes.set_title(TITLES[name], fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        file = plot_file(record, name)
        with new_file(file) as temporary:
            figure.savefig(temporary, dpi=_DPI, format="png")
        pyplot.close(figure)
        written.append(file)
    return written


def _with_best_peer(rows: Iterable[Row]) -> list[Row]:
    """Ours and the limit as they are, and the fastest of mamba_ssm's forms under its plain name."""
    kept = []
    for one in comparisons(rows):
        kept += [row for row in one.rows if row.implementation in (OURS, LIMIT)]
        theirs = [row for row in one.rows if row.implementation.startswith(_THEIRS)]
        if theirs:
            best = min(theirs, key=lambda row: row.milliseconds or 0.0)
            kept.append(dataclasses.replace(best, implementation=_THEIRS))
    return kept


def _of(rows: Iterable[Row], implementation: str, **sizes: Any) -> list[Row]:
    return [
        row
        for row in rows
        if row.implementation == implementation
        and all(row.sizes.get(name) == value for name, value in sizes.items())
    ]


def _scan(axes: Any, rows: Sequence[Row]) -> None:
    """A group of bars a shape, on a logarithmic axis, with the limit as a line across them."""
    first = _of(rows, OURS)[0].sizes["dtype"]
    ours = sorted(_of(rows, OURS, dtype=first), key=lambda row: row.milliseconds or 0)
    for offset, name in ((-0.2, OURS), (0.2, _THEIRS)):
        for place, row in enumerate(ours):
            for found in (
                one for one in rows if one.what == row.what and one.implementation == name
            ):
                micros = 1e3 * (found.milliseconds or 0)
                axes.bar(place + offset, micros, 0.38, color=_COLOURS[name])
                axes.annotate(
                    f"{micros:.0f}", (place + offset, micros), ha="center", va="bottom", fontsize=7
                )
    for place, row in enumerate(ours):
        for found in (one for one in rows if one.what == row.what and one.implementation == LIMIT):
            micros = 1e3 * (found.milliseconds or 0)
            axes.plot([place - 0.42, place + 0.42], [micros, micros], color="black", linewidth=1.6)
    axes.set_yscale("log")
    axes.set_ylabel("microseconds")
    labels = [
        f"{r.sizes['batch']} x {r.sizes['d_inner']}\nx {r.sizes['length']}"
        + (f"\nN {r.sizes['d_state']}" if r.sizes["d_state"] != 16 else "")
        for r in ours
    ]
    axes.set_xticks(range(len(ours)), labels, fontsize=7)
    axes.set_xlabel(f"batch x channels x length, {first}", fontsize=8)
    _legend(
        axes,
        [(OURS, _COLOURS[OURS], "-"), (_THEIRS, _COLOURS[_THEIRS], "-"), (LIMIT, "black", "-")],
    )


def _prefill(axes: Any, rows: Sequence[Row]) -> None:
    one = [row for row in rows if row.sizes["batch"] == 1]
    models = list(dict.fromkeys(row.sizes["model"] for row in one))
    for colour, model in zip(_SIZE_COLOURS, models, strict=False):
        for name, style in ((OURS, "o-"), (_THEIRS, "s--"), (LIMIT, ":")):
            _line(axes, _of(one, name, model=model), "length", style, colour)
    axes.set_xlabel("tokens of the prompt (batch 1)")
    _both_logarithmic(axes)
    models_shown = [
        (model, colour, "-") for model, colour in zip(models, _SIZE_COLOURS, strict=False)
    ]
    axes.set_xticks(sorted({row.sizes["length"] for row in one}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    _legend(
        axes, [*models_shown, (OURS, "black", "-"), (_THEIRS, "black", "--"), (LIMIT, "black", ":")]
    )


def _decode(axes: Any, rows: Sequence[Row]) -> None:
    one = [row for row in rows if row.sizes["batch"] == 1]
    for name, style in ((OURS, "o-"), (_THEIRS, "s--"), (LIMIT, ":")):
        points = [(_parameters(row.sizes["model"]), row) for row in _of(one, name)]
        axes.plot(
            [count for count, _ in points],
            [row.milliseconds for _, row in points],
            style,
            color=_COLOURS[name],
        )
        for count, row in points:
            axes.annotate(
                f"{row.milliseconds:.2f}", (count, row.milliseconds), xytext=(4, 4),
                textcoords="offset points", fontsize=7,
            )  # fmt: skip
    _both_logarithmic(axes)
    axes.set_ylabel("milliseconds a token")
    models = list(dict.fromkeys(row.sizes["model"] for row in one))
    axes.set_xticks([_parameters(model) for model in models], models)
    axes.set_xlabel("parameters (batch 1)")
    weights = "weights and states read once"
    _legend(
        axes,
        [
            (OURS, _COLOURS[OURS], "-"),
            (_THEIRS, _COLOURS[_THEIRS], "--"),
            (weights, _COLOURS[LIMIT], ":"),
        ],
    )


def _parameters(model: str) -> int:
    """About how many a published size has."""
    config = config_of(model)
    return config.n_layer * layer_weights(config) + config.vocab_size * config.d_model


def _long(axes: Any, rows: Sequence[Row]) -> None:
    for name, style in ((OURS, "o-"), (LIMIT, ":")):
        _line(axes, _of(rows, name), "tokens_read", style, _COLOURS[name])
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("milliseconds a token")
    axes.set_xlabel(f"tokens read before ({rows[0].sizes['model']}, batch 1)")
    _legend(axes, [(OURS, _COLOURS[OURS], "-"), (LIMIT, _COLOURS[LIMIT], ":")])


def _line(axes: Any, rows: Sequence[Row], size: str, style: str, colour: str) -> None:
    rows = sorted(rows, key=lambda row: row.sizes[size])
    axes.plot(
        [row.sizes[size] for row in rows],
        [row.milliseconds for row in rows],
        style,
        color=colour,
        markersize=4,
    )


def _both_logarithmic(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds")


def _legend(axes: Any, entries: Sequence[tuple[str, str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linestyle=style) for _, colour, style in entries]
    names = [name for name, _, _ in entries]
    axes.legend(handles, names, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


_DRAWN: dict[str, Callable[[Any, Sequence[Row]], None]] = {
    "scan": _scan,
    "prefill": _prefill,
    "decode": _decode,
    "long": _long,
}
