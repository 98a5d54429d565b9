"""The report's page: what it says of records, its plots, and how it looks in headless Chromium."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import needs_chromium, seen_by
from report_samples import MIXERS, empty, write_samples

from report import elements
from report.committed import PAGE, committed_page, write_page
from report.numbers import cell_text, tick_text, ticks
from report.page import page
from report.record import RECORDS, Axis, Claim, Plot, Record, Series, newest_records
from report.sections import SECTIONS, kind_of
from report.svg import COLOURS, draw

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of samples, with its page."""
    root = tmp_path_factory.mktemp("report")
    (root / RECORDS).mkdir(parents=True)
    write_samples(root / RECORDS)
    write_page(root)
    return root


def text_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", " ", html))


def test_page_is_what_the_records_make() -> None:
    said = f"{PAGE} is not what the records make: make report"
    assert (ROOT / PAGE).read_text("utf-8") == committed_page(ROOT), said


def test_page_holds_what_the_records_say(root: Path) -> None:
    html = (root / PAGE).read_text("utf-8")
    text = text_of(html)
    for path, record in newest_records(root / RECORDS).items():
        assert f'href="../../{RECORDS}/{path.name}"' in html
        assert record.device in text
        for command in record.command.split("; "):
            assert command in text
        for claim in record.claims:
            assert claim.claim in text
            assert claim.source in text
        for note in record.notes:
            assert note in text
        for table in record.tables:
            assert table.title in text
    assert text.count("✗ does not hold") > text.count("✓ holds") > 0
    assert all(name in text for name in MIXERS)


def test_what_was_not_run_has_its_command(root: Path) -> None:
    html = (root / PAGE).read_text("utf-8")
    run = {(one.task, kind_of(one.device)) for one in newest_records(root / RECORDS).values()}
    missing = [
        command
        for section in SECTIONS
        for kind, command in section.commands.items()
        if (section.task, kind) not in run
    ]
    assert missing
    told = [text_of(one) for one in re.findall(r'<p class="missing">.*?</p>', html)]
    told = [one for one in told if "nothing here runs it" not in one]
    assert len(told) == len(missing)
    for command, line in zip(missing, told, strict=True):
        assert "Not run on a" in line
        assert command in line
    assert "No task has been run yet." in page({}, {}, str)


def test_page_needs_no_other_file(root: Path) -> None:
    html = (root / PAGE).read_text("utf-8")
    assert not re.findall(r"<script|<img|<iframe|@import|url\(|\ssrc=", html)
    linked = set(re.findall(r'href="([^"#][^"]*)"', html)) - {"data:,"}
    assert all(one.startswith(f"../../{RECORDS}/") for one in linked)
    assert all((root / "docs/report" / one).is_file() for one in linked)
    anchors = set(re.findall(r'href="#([^"]+)"', html))
    assert anchors <= set(re.findall(r'id="([^"]+)"', html))


def test_identities_are_unique(root: Path) -> None:
    found = re.findall(r'\sid="([^"]+)"', (root / PAGE).read_text("utf-8"))
    assert len(found) == len(set(found))


def test_claims_of_the_head_are_those_that_say_so() -> None:
    some = [Claim(name, None, 1, True, headline=name == "b") for name in ("a", "b")]
    record = replace(empty("copying"), claims=some, plots=[], tables=[])
    html = page({Path("r.json"): record}, {}, str)
    head = html.partition("<section")[0]
    assert ">b</th>" in head
    assert ">a</th>" not in head
    assert ">a</th>" in html


def test_a_table_of_a_plot_s_title_holds_its_numbers() -> None:
    plot = Plot("speed", Axis("x"), Axis("y"), [Series("a line", [1], [2])])
    table = elements.Table("speed", ["x", "more than the plot"], [[1, 2]])
    record = replace(empty("cost"), plots=[plot], tables=[table])
    html = elements.plots_and_tables(record, "c", elements.numbered([plot]))
    assert html.count("<table>") == 1
    assert "more than the plot" in html.partition("<details>")[2]


def test_texts_of_records_are_no_markup() -> None:
    bad = '<script>alert("x")</script>'
    record = Record("copying", bad, "2026-01-01", bad, bad, bad, {bad: bad}, notes=[bad],
                    tables=[elements.Table(bad, [bad], [[bad]], bad)],
                    plots=[Plot(bad, Axis(bad), Axis(bad), [Series(bad, [1], [1])], bad)],
                    claims=[Claim(bad, bad, bad, False, bad)])  # fmt: skip
    assert "<script" not in page({Path("r.json"): record}, {}, lambda path: bad)


# Plots


def line(scale: str, values: list[float | None]) -> Plot:
    x: list[int | float] = [10.0 ** (i - 3) for i in range(len(values))]
    return Plot("a plot", Axis("across", scale), Axis("up", scale), [Series("a line", x, values)])


@pytest.mark.parametrize("scale", ["linear", "log", "log2"])
@pytest.mark.parametrize("values", [[1, 2, 3], [5], [7, 7], [1e-9, 1e9], [3, None, 4], [None], []])
def test_points_lie_within_their_axes(scale: str, values: list[float | None]) -> None:
    svg = ElementTree.fromstring(draw(line(scale, values), "p", {"a line": 0}))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    circles = list(svg.iter("circle"))
    assert len(circles) == sum(one is not None for one in values)
    for one in circles:
        assert 0 <= float(one.attrib["cx"]) <= width
        assert 0 <= float(one.attrib["cy"]) <= height
    assert svg.findtext("title") == "a plot"
    assert "a line" in str(svg.findtext("desc"))


def test_higher_values_stand_higher() -> None:
    svg = ElementTree.fromstring(draw(line("log", [1, 10, 100]), "p", {"a line": 0}))
    heights = [float(one.attrib["cy"]) for one in svg.iter("circle")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)
    assert heights[0] > heights[1]


def test_a_gap_is_not_drawn_over() -> None:
    svg = ElementTree.fromstring(draw(line("linear", [1, 2, None, 4, 5]), "p", {"a line": 0}))
    assert len(list(svg.iter("polyline"))) == 2


def test_a_line_of_many_points_keeps_its_extremes() -> None:
    values = [0.0] * 20_000
    values[7777] = 1.0
    plot = Plot("t", Axis("x"), Axis("y"), [Series("a line", list(range(20_000)), values)])
    text = draw(plot, "p", {"a line": 0})
    assert len(text) < 30_000
    [way] = ElementTree.fromstring(text).iter("polyline")
    heights = [float(point.split(",")[1]) for point in way.attrib["points"].split()]
    assert min(heights) < max(heights) - 100


@pytest.mark.parametrize(
    ("low", "high", "scale", "expected"),
    [
        (0, 100, "linear", "0 20 40 60 80 100"),
        (-1.1, 1.1, "linear", "-1 -0.5 0 0.5 1"),
        (0, 30_000, "linear", "0 10K 20K 30K"),
        (60, 2**20, "log2", "256 2K 16K 128K 1M"),
        (1, 128, "log2", "2 8 32 128"),
        (0.5e-6, 10, "log", "10⁻⁵ 10⁻³ 0.1 10"),
        (3, 40, "log", "5 10 20"),
        (900, 2e6, "log", "1K 10K 100K 1M"),
        (0.03, 0.11, "log", "0.04 0.06 0.08 0.1"),
        (41, 43, "log", "41 41.5 42 42.5 43"),
    ],
)  # fmt: skip
def test_ticks(low: float, high: float, scale: str, expected: str) -> None:
    assert " ".join(tick_text(at, scale) for at in ticks(low, high, scale)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1_048_576, "1,048,576"), (97, "97"), (97.0, "97.0"), (18.3, "18.3"), (99.8291, "99.83"),
        (2048.0, "2,048"), (12345.67, "12,346"), (0.0012345, "0.001234"), (1.2e-9, "1.200e-09"),
        (None, "\N{EN DASH}"), ("no", "no"), (-0.5, "-0.5"),
    ],
)  # fmt: skip
def test_cells(value: Any, expected: str) -> None:
    assert cell_text(value) == expected


# Looks


def colours(scheme: str) -> dict[str, str]:
    style = (ROOT / "tools/report/page.css").read_text("utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return dict(re.findall(r"--([\w-]+): (#\w{6});", {"light": light, "dark": dark}[scheme]))


def linear_rgb(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear_rgb(colour) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out(scheme: str) -> None:
    """WCAG 2.1: 4.5 for text (1.4.3), 3 for what carries meaning in a drawing (1.4.11)."""
    of = colours(scheme)
    assert set(of) == set(colours("light"))
    for name, colour in of.items():
        needed = 3 if name.startswith("series") else 4.5
        for ground in ("page", "ground") if needed == 4.5 else ("page",):
            bright, dim = sorted((luminance(colour), luminance(of[ground])), reverse=True)
            if name not in ("page", "ground", "line"):
                assert (bright + 0.05) / (dim + 0.05) >= needed, f"{name} on {ground}"


# Machado, Oliveira and Fernandes 2009, of linear RGB: eyes without one kind of cone.
EYES = {
    "all three": np.eye(3),
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def cielab(linear: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b*, of linear sRGB and its white."""
    xyz = np.array([[0.412, 0.358, 0.181], [0.213, 0.715, 0.072], [0.019, 0.119, 0.951]])
    x, y, z = np.cbrt(xyz @ np.clip(linear, 0, 1) / xyz.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_colours_of_lines_are_apart_for_every_eye(scheme: str, eyes: str) -> None:
    """2.3 is the smallest difference that is seen; markers differ too."""
    of = [colour for name, colour in colours(scheme).items() if name.startswith("series")]
    seen = [cielab(np.array(EYES[eyes]) @ linear_rgb(colour)) for colour in of]
    assert len(seen) == COLOURS
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(one - other) > 15


@needs_chromium
def test_the_page_in_a_browser(root: Path) -> None:
    samples, shipped = ((one / PAGE).as_uri() for one in (root, ROOT))
    looks = [
        (samples, 1280, "light"), (samples, 390, "dark"), (samples, 390, "light"),
        (shipped, 1280, "dark"), (shipped, 390, "light"),
    ]  # fmt: skip
    seen = seen_by("report.mjs", looks=looks, colours=list(colours("light")))
    for (url, width, scheme), one in zip(looks, seen, strict=True):
        name = f"{url}, {width} wide, {scheme}"
        assert one["errors"] == [], name
        assert one["fetched"] == [url], f"{name}: it fetches another file"
        assert one["tooWide"] == 0, f"{name}: it scrolls sideways"
        assert one["outside"] == [], f"{name}: cut off"
        assert one["overlapping"] == [], name
        assert one["smallest"] >= 11, f"{name}: texts of plots are too small to read"
        assert one["colours"] == colours(scheme), name
