"""Plots of a GPU's record, for docs/performance.md. matplotlib is optional (``pip install .[train]``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.published import size_order
from bench.rows import LIMIT, OURS, Row, comparisons
from mamba_export.errors import MambaExportError
from mamba_export.files import new_file

TITLES = {
    "scan": "Selective scan: time at each shape, beside mamba_ssm and the limit",
    "prefill": "Prefill: time of a prompt, beside the limit and, where it runs, mamba_ssm",
    "decode": "Decode: time of a token, beside the limit and, where it runs, mamba_ssm",
    "long": "Decode: time of a token after 1K to 1M tokens",
}
"""Plots by name, with what a reader who cannot see them is told."""
_THEIRS = "mamba_ssm"
_COLOURS = {OURS: "#0072b2", _THEIRS: "#d55e00", LIMIT: "#555555"}  # apart for every eye
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
        figure = pyplot.figure(figsize=_INCHES, layout="constrained")
        draw(figure, mine)
        figure.suptitle(TITLES[name], fontsize=10, x=0.01, ha="left")
        for axes in figure.axes:
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


def _scan(figure: Any, rows: Sequence[Row]) -> None:
    """A group of bars a shape, on a logarithmic axis, with the limit as a line across them."""
    axes = figure.subplots()
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
        [
            (OURS, _COLOURS[OURS], "-", ""),
            (_THEIRS, _COLOURS[_THEIRS], "-", ""),
            (LIMIT, "black", "-", ""),
        ],
    )


def _models(figure: Any, rows: Sequence[Row], unit: str) -> None:
    """A panel for each length and batch, and in it a line for each model: ours, the peer, the limit."""
    from matplotlib import ticker

    panels: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.sizes["batch"], row.sizes.get("length", 0)), []).append(row)
    names = sorted({_model_name(row.sizes) for row in _of(rows, OURS)}, key=_name_order)
    figure.set_size_inches(_INCHES[0] * 1.4, 1.2 + 0.3 * len(names))
    peer = bool(_of(rows, _THEIRS))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (key, mine) in zip(all_axes, sorted(panels.items()), strict=True):
        for name, marker in ((LIMIT, "|"), (_THEIRS, "s"), (OURS, "o")):
            found = _of(mine, name)
            axes.plot(
                [row.milliseconds for row in found],
                [names.index(_model_name(row.sizes)) for row in found],
                marker, color=_COLOURS[name], markersize=9 if name == LIMIT else 5,
            )  # fmt: skip
        for name, above in ((OURS, -10), (_THEIRS, 5)):
            for row in _of(mine, name):
                axes.annotate(
                    f"{row.milliseconds:.3g}",
                    (row.milliseconds, names.index(_model_name(row.sizes))),
                    xytext=(0, above), textcoords="offset points", fontsize=6.5, ha="center",
                    color=_COLOURS[name],
                )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_title(_panel_title(*key), fontsize=9)
        axes.set_xlabel(unit, fontsize=8)
        axes.tick_params(labelsize=7.5)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    all_axes[0].set_yticks(range(len(names)), names)
    all_axes[0].set_ylim(len(names) - 0.4, -0.6)
    shown = [(OURS, "o"), *([(_THEIRS, "s")] if peer else []), (LIMIT, "|")]
    _legend(all_axes[-1], [(name, _COLOURS[name], "", marker) for name, marker in shown])


def _panel_title(batch: int, length: int) -> str:
    return f"{length} tokens, batch {batch}" if length else f"batch {batch}"


def _model_name(sizes: dict[str, Any]) -> str:
    """The model, with what sets it apart from its like: codes, the dtype of its states."""
    weights = str(sizes.get("weights", "")).partition(" ")[0]
    state = f"{sizes['state']} states" if "state" in sizes else ""
    return " ".join(part for part in (sizes["model"], weights, state) if part)


def _name_order(name: str) -> tuple[bool, str, int, str]:
    """Mamba before Mamba-2, codes of one width together, small before large."""
    model, _, rest = name.partition(" ")
    coded = "" if rest.endswith("states") else rest
    family, weights = size_order(model)
    return family, coded, weights, rest


def _prefill(figure: Any, rows: Sequence[Row]) -> None:
    _models(figure, rows, "milliseconds")


def _decode(figure: Any, rows: Sequence[Row]) -> None:
    _models(figure, rows, "milliseconds a token")


def _long(figure: Any, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for name, style in ((OURS, "o-"), (LIMIT, ":")):
        _line(axes, _of(rows, name), "tokens_read", style, _COLOURS[name])
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("milliseconds a token")
    axes.set_xlabel(f"tokens read before ({rows[0].sizes['model']}, batch 1)")
    _legend(axes, [(OURS, _COLOURS[OURS], "-", "o"), (LIMIT, _COLOURS[LIMIT], ":", "")])


def _line(axes: Any, rows: Sequence[Row], size: str, style: str, colour: str) -> None:
    rows = sorted(rows, key=lambda row: row.sizes[size])
    axes.plot(
        [row.sizes[size] for row in rows],
        [row.milliseconds for row in rows],
        style,
        color=colour,
        markersize=4,
    )


def _legend(axes: Any, entries: Sequence[tuple[str, str, Any, str]]) -> None:
    """Of each entry a name, a colour, a style of line and a marker."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linestyle=style, marker=marker)
        for _, colour, style, marker in entries
    ]
    names = [entry[0] for entry in entries]
    axes.legend(handles, names, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


_DRAWN: dict[str, Callable[[Any, Sequence[Row]], None]] = {
    "scan": _scan,
    "prefill": _prefill,
    "decode": _decode,
    "long": _long,
}
