#!/usr/bin/env python3
"""Time the operators and models on this machine, every implementation that is installed in one run.

    python tools/benchmark.py                                    # this machine's CPU, a table
    python tools/benchmark.py --device cuda --long --plots --record tools/records   # an NVIDIA GPU, all of it
    python tools/benchmark.py --readme                           # write the README's section from the records

On the CPU, "faster" compares with the slowest implementation of the same work. On a GPU every time stands
beside its limit: bytes over the bandwidth of a copy, exponentials over the special function units' rate,
products over the rate of a large one. The record is written after every measurement, so a run that is stopped
keeps what it has, and a later run with the same record adds to it.
"""

from __future__ import annotations

import atexit
import dataclasses
import gc
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mamba_export.cli import run_app
from mamba_export.errors import MambaExportError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)
ROOT = Path(__file__).resolve().parent.parent

KINDS = ("operator", "prefill", "decode")
Progress = Callable[[str], None]


@app.command(help=__doc__)
def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    what: Annotated[
        str, typer.Option(help="Any of operator, prefill, decode, with commas.")
    ] = ",".join(KINDS),
    long: Annotated[
        bool,
        typer.Option("--long", help="GPU: decode after 1K to 1M tokens of the first size, too."),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(help="Published sizes of the models (130m; on a GPU 130m,370m,1.4b,2.8b)."),
    ] = None,
    length: Annotated[
        str | None, typer.Option(help="Tokens of the prompt (512; on a GPU 512,2048,8192).")
    ] = None,
    most_tokens: Annotated[
        int, typer.Option(help="GPU: leave out prompts of more tokens, over the whole batch.")
    ] = 1 << 20,
    batch: Annotated[str | None, typer.Option(help="GPU: sequences at once (1,8,64).")] = None,
    dtype: Annotated[str, typer.Option(help="GPU: weights of the models.")] = "fp16",
    operator_dtypes: Annotated[
        str, typer.Option(help="GPU: dtypes of the scan; step and convolution run in the first.")
    ] = "bf16,fp32,fp16",
    shape: Annotated[
        str | None,
        typer.Option(help="GPU: operator shapes as BATCHxCHANNELSxLENGTH (all)."),
    ] = None,
    mamba_ssm: Annotated[
        bool, typer.Option("--mamba-ssm/--no-mamba-ssm", help="GPU: its models, where installed.")
    ] = True,
    transformers: Annotated[
        bool,
        typer.Option(
            "--transformers/--no-transformers",
            help="GPU: its model of the first size at the shortest prompt, where installed.",
        ),
    ] = True,
    prepare: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Only write the models' graphs, which --graphs takes."),
    ] = None,
    graphs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="GPU: graphs from --prepare.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a JSON record; in a folder its name is DATE-device.json."
        ),
    ] = None,
    note: Annotated[
        str | None, typer.Option(help="A sentence for the record: how a rival was built, say.")
    ] = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="Draw the record's plots beside it (matplotlib).")
    ] = False,
    readme: Annotated[
        bool, typer.Option("--readme", help="Only write the README's section from tools/records.")
    ] = False,
) -> None:
    from bench import load_records, update_readme
    from bench.gpu_models import BATCHES, LENGTHS, SIZES, Cases, prepare_graphs

    if readme:
        update_readme(ROOT / "README.md", load_records(ROOT))
        return
    on_gpu = _one_of("--device", device, ("cpu", "cuda")) == "cuda"
    kinds = tuple(_one_of("--what", name, KINDS) for name in _names(what))
    sizes = _sizes(size, SIZES if on_gpu or prepare else SIZES[:1])
    lengths = _numbers("--length", length, LENGTHS if on_gpu else LENGTHS[:1])
    if plots and record is None:
        raise MambaExportError("--plots draws a record: add --record FILE")
    if not on_gpu and (long or graphs or batch or shape):
        raise MambaExportError("--long, --graphs, --batch and --shape need --device cuda")
    if not on_gpu and not prepare and (len(sizes) > 1 or len(lengths) > 1):
        raise MambaExportError("the CPU is timed with one --size and one --length")
    cases = Cases(
        sizes=sizes,
        lengths=lengths,
        batches=_numbers("--batch", batch, BATCHES),
        dtype=_dtype("--dtype", dtype),
        most_tokens=most_tokens,
        prefill="prefill" in kinds,
        decode="decode" in kinds,
        graphs=graphs,
        mamba_ssm=mamba_ssm,
        transformers=transformers,
    )
    if prepare is not None:
        prepare_graphs(prepare, cases.sizes, cases.dtype, _say)
    elif on_gpu:
        dtypes = tuple(_dtype("--operator-dtypes", name) for name in _names(operator_dtypes))
        _run_gpu(cases, "operator" in kinds, long, dtypes, _shapes(shape), record, note, plots)
    else:
        _run_cpu(kinds, sizes[0], lengths[0], record, note)


def _run_cpu(
    kinds: tuple[str, ...], size: str, length: int, record: Path | None, note: str | None
) -> None:
    from bench import RecordFile, model_rows, new_record, operator_rows, print_rows
    from bench.record import cpu_name

    file = None
    if record is not None:
        file = RecordFile(record, new_record([], cpu_name(), _command(), note=note))
    rows = []
    with console.status("operators") as status:

        def measure() -> Iterator:
            if "operator" in kinds:
                yield from operator_rows()
            if {"prefill", "decode"} & set(kinds):
                yield from model_rows(size, length, status.update, kinds)

        for row in measure():
            rows.append(row)
            if file is not None:
                file.add(row)
            status.update(f"{row.what}: {row.implementation}")
    print_rows(rows, cpu_name())


def _run_gpu(
    cases,  # Cases: imported late, with PyTorch
    operators: bool,
    long: bool,
    dtypes: tuple[str, ...],
    shapes: tuple[tuple[int, int, int], ...],
    record: Path | None,
    note: str | None,
    plots: bool,
) -> None:
    from bench import RecordFile, gpu, new_record, print_rows, rivals
    from bench.gpu_models import long_rows, model_rows
    from bench.gpu_operators import operator_rows
    from bench.plots import write_plots
    from bench.record import read_record, rows_of

    gpu.require_gpu()
    gc.freeze()  # a capture collects garbage: what was imported need not be walked each time
    atexit.register(gc.unfreeze)  # libraries look for what is left when the process ends
    _say("measuring a copy and matrix products")
    ceilings = gpu.measure_ceilings()
    measured = {
        **dataclasses.asdict(ceilings),
        "launch_milliseconds": gpu.launch_milliseconds(),
    }
    _say(str(measured))
    file = None
    if record is not None:
        empty = new_record(
            [],
            gpu.gpu_name(),
            _command(),
            rivals.versions(),
            method=gpu.METHOD,
            note=note,
            ceilings=measured,
        )
        file = RecordFile(record, empty)

    def measure() -> Iterator:
        if operators:
            yield from operator_rows(ceilings, dtypes, shapes, _say)
        if cases.prefill or cases.decode:
            yield from model_rows(ceilings, cases, _say)
        if long:
            yield from long_rows(ceilings, cases, _say)

    rows = []
    for row in measure():
        rows.append(row)
        time = row.note if row.milliseconds is None else f"{row.milliseconds:.4g} ms"
        _say(f"  {row.implementation}: {time}")
        if file is not None:
            file.add(row)
    print_rows(rows, gpu.gpu_name())
    if file is not None and plots:
        for plot in write_plots(file.path, rows_of(read_record(file.path))):
            _say(f"drew {plot}")


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _command() -> str:
    return shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]])


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _one_of(option: str, name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise MambaExportError(f"{option} {name!r} is unknown: use {', '.join(known)}")
    return name


def _dtype(option: str, name: str) -> str:
    from mamba_export.contract import DTYPES

    return _one_of(option, name, DTYPES)


def _sizes(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    from mamba_export.models.config import PUBLISHED_SIZES

    if text is None:
        return default
    return tuple(_one_of("--size", name, tuple(PUBLISHED_SIZES)) for name in _names(text))


def _numbers(option: str, text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if text is None:
        return default
    numbers = tuple(int(part) if part.isdigit() else 0 for part in _names(text))
    if not numbers or min(numbers) < 1:
        raise MambaExportError(f"{option} {text!r}: expected whole numbers above 0, with commas")
    return numbers


def _shapes(text: str | None) -> tuple[tuple[int, int, int], ...]:
    from bench.gpu_operators import SHAPES

    if text is None:
        return SHAPES
    known = {"x".join(map(str, shape)): shape for shape in SHAPES}
    return tuple(known[_one_of("--shape", name, tuple(known))] for name in _names(text))


if __name__ == "__main__":
    run_app(app)
