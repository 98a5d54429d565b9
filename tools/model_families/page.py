"""docs/families.md, made of the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.record import write_whole
from model_families.record import ROOT, STATUSES, Record, records

PAGE = "docs/families.md"

_HEAD = """# Families that were tried

<!-- written by tools/families.py --docs from the records of families: change those, not this page -->

Public repositories of Mamba models, each with a small model of its own classes (reduced widths and depths,
random weights), on a machine without mamba_ssm, Triton or a GPU: `import mamba_export.adapters.mamba_ssm`, the
repository's own import, then `mamba_export.export`. No file of a repository is changed, and none is kept here.
The end of the page says of which only a block is exported, what an entry replaces in memory, and for which
packages there are stand-ins.

Each file runs in ONNX Runtime with our library and without it, at the size that was traced and at sizes that
were not. The error is the norm of the difference over the norm of the truth, the worst of outputs and sizes.
The truth is the model in PyTorch with every scan computed by its definition, in float64 where the model allows
that (what a model itself casts to fp32 stays fp32). A parameter that starts as one constant is moved first: a
branch scaled by 0 or 1e-6 would hide its errors.

Who has the repositories in one folder, each under its own name, repeats it:

```
python tools/families.py --repositories FOLDER --record tools/records
```

"""


def page(recorded: Sequence[Record]) -> str:
    """The whole page, of records oldest first."""
    families = [one for record in recorded for one in record["families"]]
    right = [one for one in families if one["status"] == "right"]
    parts = [
        _HEAD,
        f"{len(right)} of {len(families)} are exported and agree with PyTorch. ",
        " ".join(_measured(record, record is recorded[0]) for record in recorded),
        "\n",
        "\n## Exported\n\n",
        _table(
            ("family", "repository, commit", "class", "size traced", "sizes swept", "nodes of ours", "reversed",
             "all nodes", "error", "error without our library", "truth"),
            [_exported(one) for one in families if "error" in one],
        ),
    ]  # fmt: skip
    rest = [one for one in families if "error" not in one]
    if rest:
        parts += [
            "\n## Not exported\n\n",
            _table(
                ("family", "repository, commit", "class", "what happened"),
                [(one["family"], _where(one), _code(one["class"]), _happened(one)) for one in rest],
            ),
        ]
    parts += ["\n## What was exported of each\n\n", *(_details(one) for one in families)]
    return "".join(parts)


def _measured(record: Record, most: bool) -> str:
    names = ", ".join(one["family"] for one in record["families"])
    which = "Measured" if most else f"{names}: measured"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"{which} on {record['date']}, commit {record['commit']}, {record['device']}; {versions}."
    )


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n"
        for line in lines
    )


def _exported(one: Mapping[str, Any]) -> tuple[str, ...]:
    status = "" if one["status"] == "right" else f" ({one['status']})"
    ours = ", ".join(f"{count} {name}" for name, count in one["ours"].items()) or "none"
    return (
        one["family"] + status,
        _where(one),
        _code(one["class"]),
        one["traced"],
        "; ".join(one["swept"]) or "none",
        ours,
        str(one["reversed"]),
        str(one["nodes"]),
        f"{one['error']:.0e}",
        f"{one['error_without_library']:.0e}",
        one["truth"].partition(" ")[0],
    )


def _where(one: Mapping[str, Any]) -> str:
    commit = (one["commit"] or "unknown").partition(" ")[0][:12]
    return f"[{one['repository']}](https://github.com/{one['repository']}), {commit}"


def _code(text: str) -> str:
    return text.rpartition(".")[2]


def _happened(one: Mapping[str, Any]) -> str:
    said = _escaped(one["happened"])
    return f"{STATUSES[one['status']]}: {said}" if said else STATUSES[one["status"]]


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_").replace("`", "'")


def _details(one: Mapping[str, Any]) -> str:
    sentences = [f"class {_escaped(one['class'])}"]
    if one.get("reduced"):
        sentences.append(_escaped(one["reduced"]))
    dynamic = one.get("dynamic")
    if dynamic is not None:
        sentences.append(f"dynamic: {', '.join(dynamic)}" if dynamic else "no dynamic size")
    if one.get("stand_ins"):
        sentences.append("stand-ins for " + _escaped(", ".join(one["stand_ins"])))
    sentences += [f"warning: {_escaped(text)}" for text in one.get("warnings", [])]
    truth = one.get("truth", "").partition(" ")[2]
    if truth:
        sentences.append(f"no float64: {_escaped(truth.strip('()'))}")
    line = f"- **{one['family']}**: " + "; ".join(sentences) + "."
    return f"{line} {_escaped(one['note'])}\n" if one["note"] else f"{line}\n"


def write_page(root: Path = ROOT) -> Path:
    """Write the page from the records."""
    path = root / PAGE
    write_whole(path, page(records(root)))
    return path
