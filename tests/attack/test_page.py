"""docs/reliability.md says what the newest record says."""

from attacks import record


def test_the_page_agrees_with_the_newest_record() -> None:
    page = record.PAGE.read_text(encoding="utf-8")
    assert page == record.with_figures(page, record.newest()), "run python tools/attack.py --docs"


def test_the_newest_record_adds_up() -> None:
    newest = record.newest()
    assert newest["found"] == len(newest["findings"]) == newest["attempts"] - newest["right"]
    # A fault of the suite itself is a finding of no kind.
    others = [one for one in newest["findings"] if one["kind"] not in newest["kinds"]]
    counted = sum(row["attempts"] for row in newest["kinds"].values())
    assert newest["attempts"] == counted + len(others)
