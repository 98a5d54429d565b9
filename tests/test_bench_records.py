"""Benchmarks: records and what refuses one, tables, the page and figures made of them, plots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_rows import MADE_UP, PREFILL, ROWS, SCAN

from bench import provenance
from bench.page import (
    README,
    Records,
    generated,
    load_records,
    page,
    with_figures,
    write_docs,
)  # fmt: skip
from bench.plots import plot_file, write_plots
from bench.record import RecordFile, new_record, read_record, rows_of
from bench.rows import LIMIT, OURS, Row, comparisons
from bench.tables import grids, markdown, print_rows, ratio
from bench.validity import RefusedRecordError, check_limits
from mamba_export.errors import MambaExportError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def record() -> dict:
    more = {"method": "measured so", "note": "built so", "ceilings": {"bandwidth": 1.0}}
    return new_record(
        MADE_UP, "a GPU", "a command", {"torch": "2"}, commit="abc", driver="580", **more
    )


# Records


def test_record_holds_what_it_is_given(record: dict, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(record))
    assert rows_of(read_record(file)) == MADE_UP
    assert set(record) == {
        "date", "device", "versions", "command", "commit", "driver", "method", "note", "ceilings", "rows",
    }  # fmt: skip


def test_shipped_records_are_read() -> None:
    assert load_records(ROOT).valid, "tools/records holds at least the CPU's"


def test_record_is_whole_after_every_row(record: dict, tmp_path: Path) -> None:
    file = RecordFile(tmp_path, record)
    assert file.path.name == f"{record['date']}-a-gpu.json"
    for count, row in enumerate(MADE_UP, start=1):
        file.add(row)
        assert len(read_record(file.path)["rows"]) == count
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name], "nothing half written"


def test_record_is_continued(record: dict, tmp_path: Path) -> None:
    RecordFile(tmp_path, record).add(MADE_UP[0])
    without_note = {name: value for name, value in record.items() if name != "note"}
    later = RecordFile(tmp_path, {**without_note, "command": "another"})
    later.add(Row.of("scan", SCAN, OURS, 0.019))
    later.add(MADE_UP[1])
    content = read_record(later.path)
    assert [row["milliseconds"] for row in content["rows"]] == [0.019, 0.040]
    assert content["command"] == "a command; another"
    assert content["note"] == record["note"]


@pytest.mark.parametrize("name", ["commit", "device", "driver", "versions"])
def test_record_of_something_else_is_refused(record: dict, tmp_path: Path, name: str) -> None:
    file = tmp_path / "r.json"
    RecordFile(file, record)
    with pytest.raises(MambaExportError, match=f"another {name.removesuffix('s')}"):
        RecordFile(file, {**record, name: "other"})


def test_bad_record_is_named(record: dict, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    for text in ("{", "\0", "[" * 10**5, '{"date": ' + "9" * 5000 + "}"):
        file.write_text(text)
        with pytest.raises(MambaExportError, match=r"r\.json"):
            read_record(file)
    file.write_text(json.dumps(record))
    assert read_record(file) == record
    for field, value in [
        *((name, bad) for name in record for bad in (None, 3, [None], [3], [[]])),
        ("date", "2026-13-45"),
        ("date", "yesterday"),
        ("rows", [{"speed": 1}]),
        ("rows", [{**record["rows"][0], "speed": 1}]),
        *(
            ("rows", [{**record["rows"][0], name: bad}])
            for name in record["rows"][0]
            for bad in ([1], True)
        ),
    ]:
        file.write_text(json.dumps({**record, field: value}))
        with pytest.raises(MambaExportError, match=rf"r\.json is not a record .*\({field}"):
            read_record(file)
    for field in ("date", "device", "versions", "command", "rows"):
        file.write_text(json.dumps({name: record[name] for name in record if name != field}))
        with pytest.raises(MambaExportError, match=rf"r\.json is not a record .*\({field}"):
            read_record(file)
    with pytest.raises(MambaExportError, match="cannot be written"):
        RecordFile(tmp_path / "none" / "r.json", record)


def test_record_keeps_its_first_date(record: dict, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    RecordFile(file, {**record, "date": "2001-01-01"})
    later = RecordFile(file, record)
    later.add(MADE_UP[0])
    assert read_record(file)["date"] == "2001-01-01", "a run over midnight is one run"


def test_commit_is_git_s_or_given(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path, "abc") == "abc"
    with pytest.raises(MambaExportError, match="--commit TEXT"):
        provenance.commit(tmp_path)
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "one"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = provenance.commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "new").touch()
    assert provenance.commit(tmp_path) == f"{clean} (changed)"


def test_command_names_no_path_of_this_machine() -> None:
    shown = provenance.shown_command("t.py", ["--record", "/a/b/r.json", "--graphs", "a g"])
    assert shown == "python t.py --record r.json --graphs 'a g'"


@pytest.mark.parametrize("told", [["--note", "a; b"], ["--note=a; b"]], ids=["two", "one"])
def test_command_leaves_out_the_note_that_the_record_has(told: list[str]) -> None:
    assert provenance.shown_command("t.py", ["--long", *told, "--dtype", "fp16"]) == (
        "python t.py --long --dtype fp16"
    )


def test_driver_of_a_machine_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.driver_version() == "unknown"


# Limits that are beaten

TOO_FAST = Row.of("prefill", PREFILL, "mamba_ssm, CUDA graph", 0.4321)
SAID = (
    "prefill: model 130m, dtype fp16, batch 1, length 512: mamba_ssm, CUDA graph takes 0.4321 ms, "
    r"less than the limit of 0.5 ms \(products\)"
)


def test_row_that_beats_its_limit_is_named() -> None:
    check_limits(MADE_UP, "r.json")
    with pytest.raises(RefusedRecordError, match=f"r.json is refused: {SAID}"):
        check_limits([*MADE_UP, TOO_FAST], "r.json")
    with pytest.raises(RefusedRecordError, match=SAID):
        new_record([*MADE_UP, TOO_FAST], "a GPU", "a command", {})


def test_refused_record_is_kept_under_another_name(record: dict, tmp_path: Path) -> None:
    good = RecordFile(tmp_path / "good.json", record)
    bad = RecordFile(tmp_path / "bad.json", record)
    for row in MADE_UP:
        good.add(row)
        bad.add(row)
    good.finish()
    bad.add(TOO_FAST)
    with pytest.raises(RefusedRecordError, match=r"it is kept as bad\.refused\.json"):
        bad.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.refused.json", "good.json"]


def test_page_and_readme_leave_out_a_refused_record(record: dict, tmp_path: Path) -> None:
    root = _repository(tmp_path)
    folder = root / "tools" / "records"
    values = [*record["rows"], {**record["rows"][0], "milliseconds": 0.001}]
    (folder / "2026-01-02-gpu.json").write_text(json.dumps({**record, "rows": values}))
    (folder / "2026-01-01-cpu.json").write_text(
        json.dumps(new_record(ROWS, "a machine", "a command", {}))
    )
    records = load_records(root)
    assert [one["device"] for one in records.valid] == ["a machine"]
    write_docs(root)
    written = (root / "docs" / "performance.md").read_text()
    assert "No valid record exists yet" in written
    assert "tools/records/2026-01-02-gpu.json is refused: scan: dtype bf16" in written
    assert "| bf16 |" not in written
    assert "No valid record of an NVIDIA GPU exists yet." in (root / README).read_text()


def _repository(root: Path) -> Path:
    (root / "tools" / "records").mkdir(parents=True)
    (root / README).write_text((ROOT / README).read_text(encoding="utf-8"), encoding="utf-8")
    return root


# Tables, the page and the README's figures


def test_table_compares_with_the_slowest() -> None:
    table = page(Records([new_record(ROWS, "a machine", "a command")]))
    assert "| scan | fast | 2 | 5.0x |" in table
    assert "| scan | told (a note) | 10 | 1.0x |" in page(
        Records([new_record([Row("scan", "told", 10.0, "a note")], "a machine", "a command")])
    )
    assert "| scan | absent | not installed |  |" in table


def test_gpu_tables_compare_with_best_peer_and_limit() -> None:
    scan, prefill, decode, long = grids(MADE_UP)
    assert scan.header == [
        "dtype", "batch", "d_inner", "length", "d_state",
        "mamba_export, us", "mamba_ssm, us", "limit, us", "best peer / mamba_export", "mamba_export / limit",
    ]  # fmt: skip
    assert scan.lines[0] == [
        "bf16", "1", "1536", "512", "16", "20", "40", "10 (exponentials)", "2.0x", "2.0x",
    ]  # fmt: skip
    assert "| 130m | fp16 | 1 | 512 | 2.5 | not installed" in markdown(prefill)
    assert decode.header[3] == "mamba_export, ms"
    assert long.header[-1] == "mamba_export / limit", "no peer, no column of one"
    assert long.lines[1][3:5] == ["1000000", "0.4 (2 GB)"]


def test_ratio_takes_the_best_form_of_any_peer() -> None:
    rows = [
        Row.of("prefill", PREFILL, OURS, 3.0),
        Row.of("prefill", PREFILL, f"{OURS}, step alone", 1.0),
        Row.of("prefill", PREFILL, "mamba_ssm", 30.0),
        Row.of("prefill", PREFILL, "mamba_ssm, CUDA graph", 2.0),
        Row.of("prefill", PREFILL, "transformers", None, "not installed"),
        Row.of("prefill", PREFILL, LIMIT, 0.5, "products"),
    ]
    [one] = comparisons(rows)
    assert one.best_peer == rows[3]
    assert one.against_peer == pytest.approx(2 / 3)
    assert one.against_limit == 6
    [grid] = grids(rows)
    assert grid.lines[0][-2:] == ["0.67x", "6.0x"]


def test_peer_of_which_a_form_failed_is_not_compared() -> None:
    rows = [
        Row.of("prefill", PREFILL, OURS, 3.0),
        Row.of("prefill", PREFILL, "mamba_ssm, CUDA graph", None, "out of memory"),
        Row.of("prefill", PREFILL, "mamba_ssm", 30.0),
    ]
    [one] = comparisons(rows)
    assert one.best_peer is None
    assert one.against_peer is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, ""), (None, ""), (0.0561, "0.056x"), (0.7, "0.70x"), (0.997, "1.0x"), (9.96, "10x"),
     (48.3, "48x"), (153.2, "153x")],
)  # fmt: skip
def test_ratio_has_two_digits(value: float | None, text: str) -> None:
    assert ratio(value) == text


def test_print(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([*ROWS, *MADE_UP], "a machine")
    printed = capsys.readouterr().out
    assert "5.0x" in printed
    assert "a machine: decode" in printed


def test_page_shows_all_of_a_gpu_record(record: dict) -> None:
    places = {"scan": "tools/records/p.png", "convolution": "tools/records/none.png"}
    text = page(Records([{**record, "plots": places}]))
    for shown in ("Selective scan, gate", "| 20 |", "77.7", "55.5", "commit abc", "driver 580"):
        assert shown in text
    assert "time at each shape, beside mamba_ssm and the limit](../tools/records/p.png)" in text
    assert "none.png" not in text
    assert "measured so" in text
    assert "built so" in text
    assert "No valid record" not in text


def test_page_has_the_newest_of_each_device(record: dict) -> None:
    old = {**record, "date": "2001-01-01"}
    other = {**record, "device": "another"}
    text = page(Records([record, old, other]))
    assert "2001" not in text
    assert "## another" in text
    without = {**record, "rows": [row for row in record["rows"] if row["kind"] != "decode"]}
    text = page(Records([without, old]))
    assert text.index("2001") < text.index("Decode, a token of every sequence")
    assert text.count("Selective scan, gate") == 1


def test_page_has_what_only_an_older_record_timed(record: dict) -> None:
    others = [
        {
            **row,
            "what": f"{row['what']}, weights int4",
            "sizes": {**row["sizes"], "weights": "int4"},
        }
        for row in record["rows"]
        if row["kind"] == "decode"
    ]
    text = page(Records([{**record, "date": "2026-01-02", "rows": others}, record]))
    assert text.count("Decode, a token of every sequence") == 2
    assert text.index("| int4 |") < text.index("Selective scan, gate")


def test_figures_are_ranges_over_all_that_was_measured(record: dict) -> None:
    readme = (ROOT / README).read_text(encoding="utf-8")
    text = with_figures(readme, Records([record]))
    assert "- Decode (2 sizes: model 130m to 2.8b, batch 1): 2.1x to 5.0x the peer's speed" in text
    assert ", 1.3x to 4.0x the limit's time." in text
    again = with_figures(text, Records([{**record, "device": "another"}]))
    assert "another" in again
    assert "On an a GPU" not in again
    with pytest.raises(MambaExportError, match="lacks the line"):
        with_figures("no figures", Records())


def test_models_stand_in_their_order_whichever_was_timed_first() -> None:
    models = ["mamba2-2.7b", "2.8b", "130m", "mamba2-130m", "1.4b"]
    sizes: list[dict[str, object]] = [{"model": one, "batch": b} for one in models for b in (8, 1)]
    rows = [Row.of("decode", one, who, 1.0) for one in sizes for who in ("limit", "mamba_export")]
    record = new_record(rows, "NVIDIA something", "a command", {})
    text = with_figures((ROOT / README).read_text(encoding="utf-8"), Records([record]))
    assert "(10 sizes: model 130m to 2.8b and mamba2-130m to mamba2-2.7b, batch 1 to 8)" in text
    [grid] = grids(rows)
    assert [line[:2] for line in grid.lines] == [
        [model, batch]
        for model in ("130m", "1.4b", "2.8b", "mamba2-130m", "mamba2-2.7b")
        for batch in ("8", "1")
    ]


def test_texts_are_what_the_records_make() -> None:
    for file, text in generated(ROOT).items():
        said = f"{file.name} is not what the records make: python tools/benchmark.py --docs"
        assert file.read_text(encoding="utf-8") == text, said


# Plots


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "r.json"
    drawn = write_plots(file, MADE_UP)
    assert drawn == [plot_file(file, name) for name in ("scan", "prefill", "decode", "long")]
    for path in drawn:
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size < 100_000
    assert write_plots(file, ROWS) == [], "nothing to draw of a CPU"


def test_a_plot_of_models_has_each_of_them_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *place: object, **options: object) -> None:
        drawn.append(figure)
        save(figure, *place, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    models = ["mamba2-2.7b", "2.8b", "130m", "mamba2-1.3b", "1.4b", "790m", "370m", "mamba2-130m"]
    sizes: list[dict[str, object]] = [
        {"model": model, "batch": b} for model in models for b in (8, 1)
    ]
    sizes += [{"model": "130m", "weights": "int4 in blocks of 32", "batch": 1}]
    sizes += [{"model": "mamba2-130m", "state": "fp16", "batch": 1}]
    rows = [
        Row.of("decode", one, who, 1.0 + place)
        for place, one in enumerate(sizes)
        for who in ("limit", "mamba_export")
    ]
    write_plots(tmp_path / "r.json", rows)
    first, second = drawn[0].axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == [
        "130m", "370m", "790m", "1.4b", "2.8b", "130m int4",
        "mamba2-130m", "mamba2-130m fp16 states", "mamba2-1.3b", "mamba2-2.7b",
    ]  # fmt: skip
    assert [axes.get_title() for axes in (first, second)] == ["batch 1", "batch 8"]
    points = {
        (names[int(y)], x)
        for line in first.lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert points == {
        (" ".join([str(one["model"]), *(["int4"] if "weights" in one else []),
                   *(["fp16 states"] if "state" in one else [])]), 1.0 + place)
        for place, one in enumerate(sizes)
        if one["batch"] == 1
    }  # fmt: skip


def test_plots_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MambaExportError, match="pip install matplotlib"):
        write_plots(tmp_path / "r.json", MADE_UP)


def test_figures_name_packed_weights_and_a_lack_of_peers() -> None:
    sizes = {"model": "130m", "dtype": "fp16", "weights": "int4 in blocks of 32", "batch": 1}
    rows = [
        Row("a decode", "limit", 0.1, kind="decode", sizes=sizes),
        Row("a decode", "mamba_export", 0.2, kind="decode", sizes=sizes),
    ]
    record = new_record(rows, "NVIDIA something", "a command")
    text = with_figures((ROOT / README).read_text(encoding="utf-8"), Records([record]))
    assert "On an NVIDIA something" in text
    assert ", without a peer:" in text
    assert (
        "- Decode with weights of int4 in blocks of 32 (1 sizes: model 130m, batch 1): 2.0x the limit's time."
        in text
    )
