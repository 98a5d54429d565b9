"""``mamba-export run``: continuations on standard output, the summary on standard error."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mamba_export.backends import registry
from mamba_export.backends.onnxruntime.own_log import leave_messages_to_errors
from mamba_export.cli import streams
from mamba_export.cli.notes import noted
from mamba_export.cli.options import AUTO, FolderArgument, JsonOption, one_of
from mamba_export.cli.outcome import EXIT_INTERRUPTED
from mamba_export.cli.prompts import gather
from mamba_export.printing import printable_lines

if TYPE_CHECKING:
    from mamba_export.generation.generate import TextStream
    from mamba_export.generation.results import Generations, Timings
    from mamba_export.generation.sampling import Sampling

_BACKENDS = tuple(row.option for row in registry.runtimes())


def command(
    folder: FolderArgument,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Text to continue, or - for standard input; may be repeated for a batch.",
        ),
    ] = None,
    prompt_file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A prompt of any length: the whole file, UTF-8, its last line break included. May be "
            "repeated.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Sample among the likeliest tokens that hold this share; 1: all.")
    ] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens that occurred less likely; 1: off.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    backend: Annotated[
        str,
        one_of(_BACKENDS, help="trt runs the engine that `build` wrote, on an NVIDIA GPU."),
    ] = _BACKENDS[0],
    provider: Annotated[
        str, one_of((AUTO, *registry.providers()), help="Where ONNX Runtime runs.")
    ] = AUTO,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")] = None,
    ignore_end: Annotated[
        bool, typer.Option("--ignore-end", help="Go on after the end-of-text token.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Generate text, as it comes; tokens per second at the end."""
    from mamba_export.generation.sampling import Sampling

    leave_messages_to_errors()
    with noted() as notes:
        code = run_command(
            folder,
            gather(prompt or (), prompt_file or ()),
            sampling=Sampling(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
            ),
            max_new_tokens=max_new_tokens,
            backend=backend,
            provider=None if provider == AUTO else provider,
            threads=threads,
            json_output=json_output,
            stream=not json_output,
            ignore_end=ignore_end,
        )
    for note in notes:
        streams.say(f"note: {note}")
    raise typer.Exit(code)


def run_command(
    folder: Path,
    prompts: list[str],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    provider: str | None,
    threads: int | None,
    json_output: bool,
    stream: bool,
    ignore_end: bool,
    backend: str = _BACKENDS[0],
) -> int:
    """Continue prompts and print them.

    One prompt is printed with its continuation as it comes (all at once where ``stream`` is off); several
    are printed one after another under a header each, at the end. ``json_output`` prints one object.

    Args:
        folder: an exported folder.
        prompts: texts.
        sampling, max_new_tokens: as in ``OrtSession.generate``.
        provider: "cpu", "cuda", a name of ONNX Runtime's, or None for the best that works.
        threads: of the CPU provider, or None.
        ignore_end: go on after an end-of-text token.
        backend: the ``option`` of a runtime in the registry, such as "trt" for the engine that
            ``mamba-export build`` wrote.

    Returns:
        Exit code: 0, or 130 after Ctrl-C (what was generated until then has been printed).

    Raises:
        MambaExportError: bad input, one clear line.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode still gets its text
    try:
        session = registry.runtime(backend).open_session(folder, provider, threads)
        pieces = session.stream(
            prompts,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            stop_at_end=not ignore_end,
        )
        show = stream and not json_output and len(prompts) == 1
        result = _follow(pieces, prompts[0] if show else None)
        if json_output:
            _write(json.dumps(_as_json(prompts, result), ensure_ascii=False) + "\n")
        elif show:
            _write("\n")
        else:
            _print_all(prompts, result)
    except BrokenPipeError:  # the reader (`| head`) has what it wanted
        streams.silence()
        return 0
    except KeyboardInterrupt:  # before generation, or a second one after it
        return EXIT_INTERRUPTED
    if not json_output:
        streams.say(_summary(result.timings, session.provider))
    return EXIT_INTERRUPTED if result.interrupted else 0


def _follow(pieces: TextStream, prompt: str | None) -> Generations:
    """Drive the generation, printing it where a prompt is given."""
    try:
        if prompt is not None:
            _write(prompt)
        for _, piece in pieces:
            if prompt is not None:
                _write(piece)
    except KeyboardInterrupt:  # it came while printing; while computing, the stream itself ends
        pass
    return pieces.result()


def _write(text: str) -> None:
    # What a model wrote must not command the user's terminal; a file or a pipe gets it as it is.
    with streams.results():
        sys.stdout.write(printable_lines(text) if sys.stdout.isatty() else text)


def _print_all(prompts: list[str], result: Generations) -> None:
    for index, (prompt, one) in enumerate(zip(prompts, result, strict=True)):
        if len(prompts) > 1:
            blank = "\n" if index else ""
            _write(f"{blank}--- prompt {index + 1} of {len(prompts)} ({one.finish_reason}) ---\n")
        _write(f"{prompt}{one.text}\n")


def _as_json(prompts: list[str], result: Generations) -> dict[str, Any]:
    timings = result.timings
    return {
        "generations": [
            {
                "prompt": prompt,
                "tokens": one.tokens,
                "text": one.text,
                "finish_reason": one.finish_reason,
            }
            for prompt, one in zip(prompts, result, strict=True)
        ],
        "timings": {
            **dataclasses.asdict(timings),
            "seconds": timings.seconds,
            "prefill_tokens_per_second": timings.prefill_tokens_per_second,
            "decode_tokens_per_second": timings.decode_tokens_per_second,
        },
    }


def _summary(timings: Timings, provider: str) -> str:
    def rate(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    return (
        f"{timings.generated_tokens} tokens, {rate(timings.decode_tokens_per_second)} tokens/s "
        f"(prefill {rate(timings.prefill_tokens_per_second)} tokens/s) on {provider}"
    )
