#!/usr/bin/env python3
"""Time the operators and models on this machine, every implementation that is installed in one run.

\b
    python tools/benchmark.py                             # this machine's CPU, a table
    python tools/benchmark.py --record tools/records      # and its record
    python tools/benchmark.py --device cuda --long --plots --record tools/records   # an NVIDIA GPU, all of it
    python tools/benchmark.py --docs                      # write docs/performance.md and the README's figures

On the CPU, "faster" compares with the slowest implementation of the same work. On a GPU every time stands
beside its limit, the least time that the hardware needs, and beside the fastest form of a peer. A record in
which a row beats its limit is refused: it is kept as NAME.refused.json, and the exit code is 1. The record is
written after every measurement, so a run that is stopped keeps what it has, and a later run of the same commit
with the same file adds to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.command_options import (
    CommitOption,
    DeviceOption,
    NoteOption,
    record_option,
)
from mamba_export.cli import run_app
from mamba_export.errors import MambaExportError
from mamba_export.printing import as_text

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)
ROOT = Path(__file__).resolve().parent.parent

KINDS = ("operator", "dual", "vision", "prefill", "decode")


@app.command(help=__doc__)
def main(
    device: DeviceOption = "cpu",
    what: Annotated[
        str,
        typer.Option(
            help="Any of operator, dual, vision, prefill, decode, with commas; empty for none."
        ),
    ] = ",".join(KINDS),
    long: Annotated[
        bool,
        typer.Option("--long", help="GPU: decode after 1K to 1M tokens of the first size, too."),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            help="Published sizes of the models, as 130m and mamba2-130m (these two; on a GPU six)."
        ),
    ] = None,
    length: Annotated[
        str | None, typer.Option(help="Tokens of the prompt (512; on a GPU 512,2048,8192).")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="GPU: sequences of decode (1,8,64).")] = None,
    prefill_batch: Annotated[
        str | None, typer.Option(help="GPU: sequences of prefill (1).")
    ] = None,
    dtype: Annotated[str, typer.Option(help="GPU: weights of the models.")] = "fp16",
    weights: Annotated[
        str | None,
        typer.Option(
            help="GPU: codes that the models' matrices are stored in, int4 or int8; then no peers."
        ),
    ] = None,
    state_dtype: Annotated[
        str | None,
        typer.Option(
            help="GPU: recurrent states of Mamba-2 (fp32), or the weights' dtype, as mamba_ssm has."
        ),
    ] = None,
    operator_dtypes: Annotated[
        str, typer.Option(help="GPU: dtypes of the scan; step and convolution run in the first.")
    ] = "bf16",
    shape: Annotated[
        str | None,
        typer.Option(help="GPU: operator shapes as BATCHxCHANNELSxLENGTH (all)."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="GPU: begin nothing more after that time."),
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
    ] = False,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="CPU: llama.cpp's sources, to time it as well; llama-cpp-python is to be installed.",
        ),
    ] = None,
    prepare: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Only write the models' graphs, which --graphs takes."),
    ] = None,
    graphs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="GPU: graphs from --prepare.")
    ] = None,
    record: Annotated[Path | None, record_option("DATE-DEVICE.json")] = None,
    commit: CommitOption = None,
    note: NoteOption = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="Draw the record's plots beside it (matplotlib).")
    ] = False,
    docs: Annotated[
        bool,
        typer.Option("--docs", help="Only write docs/performance.md and the README's figures."),
    ] = False,
) -> None:
    from bench import options
    from bench.cases import (
        BATCHES,
        CPU_SIZES,
        LENGTHS,
        PREFILL_BATCHES,
        SIZES,
        Cases,
        prepare_graphs,
    )
    from mamba_export.contract import DTYPES
    from mamba_export.contract.weights import Weights

    if docs:
        from bench.page import write_docs

        for file in write_docs(ROOT):
            _say(f"wrote {file.relative_to(ROOT)}")
        return
    on_gpu = options.one_of("--device", device, ("cpu", "cuda")) == "cuda"
    kinds = tuple(options.one_of("--what", name, KINDS) for name in options.names(what))
    sizes = options.sizes(size, SIZES if on_gpu or prepare else CPU_SIZES)
    lengths = options.numbers("--length", length, LENGTHS if on_gpu else LENGTHS[:1])
    limit = options.seconds("--budget", budget)
    if plots and record is None:
        raise MambaExportError("--plots draws a record: add --record FILE")
    if not on_gpu and (long or graphs or batch or prefill_batch or shape or limit):
        raise MambaExportError(
            "--long, --graphs, --batch, --prefill-batch, --shape and --budget need --device cuda"
        )
    if not on_gpu and state_dtype is not None and prepare is None:
        raise MambaExportError("--state-dtype needs --device cuda; the CPU is timed with fp32")
    if not on_gpu and weights is not None and prepare is None:
        raise MambaExportError("--weights needs --device cuda; the CPU is timed with all of them")
    if llama_cpp is not None:
        from bench.peers import llama_cpp as peer

        if on_gpu:
            raise MambaExportError("--llama-cpp needs --device cpu")
        peer.check_sources(llama_cpp)
    if not on_gpu and not prepare and len(lengths) > 1:
        raise MambaExportError("the CPU is timed with one --length")
    packed = None
    if weights is not None:
        packed = Weights(options.one_of("--weights", weights, ("int4", "int8")))
    cases = Cases(
        sizes=sizes,
        lengths=lengths,
        batches=options.numbers("--batch", batch, BATCHES),
        prefill_batches=options.numbers("--prefill-batch", prefill_batch, PREFILL_BATCHES),
        dtype=options.one_of("--dtype", dtype, DTYPES),
        weights=packed,
        state=options.state_dtype(state_dtype, sizes, dtype),
        prefill="prefill" in kinds,
        decode="decode" in kinds,
        graphs=graphs,
        mamba_ssm=mamba_ssm and packed is None,
        transformers=transformers and packed is None,
    )
    if prepare is not None:
        prepare_graphs(prepare, cases, _say)
        return
    from bench import provenance
    from bench.runs import Destination, GpuRun, run_cpu, run_gpu
    from bench.validity import RefusedRecordError

    command = provenance.shown_command("tools/benchmark.py", sys.argv[1:])
    made_of = provenance.commit(ROOT, commit) if record is not None else ""
    destination = Destination(record, made_of, command, note, plots)
    try:
        if on_gpu:
            dtypes = options.dtypes("--operator-dtypes", operator_dtypes)
            shapes = options.shapes(shape)
            run = GpuRun(
                cases,
                "operator" in kinds,
                "dual" in kinds,
                "vision" in kinds,
                dtypes,
                shapes,
                long,
                limit,
            )
            run_gpu(run, destination, _say)
        else:
            with console.status("operators") as status:

                def update(line: str) -> None:
                    status.update(as_text(line))

                run_cpu(_cpu_rows(kinds, sizes, lengths[0], update, llama_cpp), destination, update)
    except RefusedRecordError as error:
        _say(f"Error: {error}")
        raise typer.Exit(1) from None


def _cpu_rows(
    kinds: tuple[str, ...],
    sizes: tuple[str, ...],
    length: int,
    progress: Any,
    llama_cpp: Path | None,
) -> Iterator[Any]:
    from bench.models import model_rows
    from bench.operators import operator_rows
    from bench.vision_models import vision_model_rows

    if "operator" in kinds:
        yield from operator_rows()
    if "vision" in kinds:
        yield from vision_model_rows(progress)
    if {"prefill", "decode"} & set(kinds):
        for size in sizes:
            yield from model_rows(size, length, progress, kinds, llama_cpp)


def _say(line: str) -> None:
    console.print(as_text(line), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_app(app)
