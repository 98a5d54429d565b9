"""``mamba-export run``: continuations on standard output, the summary on standard error."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from mamba_export.backends.onnxruntime.loading import CPU_PROVIDER, CUDA_PROVIDER
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.tensorrt.session import TrtSession
from mamba_export.errors import SessionError
from mamba_export.generation.generate import TextStream
from mamba_export.generation.results import Generations, Timings
from mamba_export.generation.sampling import Sampling

EXIT_INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\t\n"
}
"""Control characters other than tab and newline."""
_PROVIDERS = {"cpu": CPU_PROVIDER, "cuda": CUDA_PROVIDER}


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
    backend: str = "ort",
) -> int:
    """Continue prompts and print them.

    One prompt is printed with its continuation as it comes (all at once where ``stream`` is off); several
    are printed one after another under a header each, at the end. ``json_output`` prints one object.

    Args:
        folder: an exported folder.
        prompts: texts; at least one, none empty.
        sampling, max_new_tokens: as in ``OrtSession.generate``.
        provider: "cpu", "cuda", a name of ONNX Runtime's, or None for the best that works.
        threads: of the CPU provider, or None.
        ignore_end: go on after an end-of-text token.
        backend: "ort", or "trt" for the engine that ``mamba-export build`` wrote.

    Returns:
        Exit code: 0, or 130 after Ctrl-C (what was generated until then has been printed).

    Raises:
        MambaExportError: bad input, one clear line.
    """
    if not prompts or any(not prompt for prompt in prompts):
        raise SessionError("the prompt is empty: give at least one character (--prompt TEXT)")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode still gets its text
    try:
        session: OrtSession | TrtSession
        if backend == "trt":
            if provider is not None or threads is not None:
                raise SessionError("--provider and --threads are for --backend ort: leave them out")
            session = TrtSession(folder)
        else:
            names = None if provider is None else [_PROVIDERS.get(provider.lower(), provider)]
            session = OrtSession(folder, providers=names, threads=threads)
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
        _silence_stdout()
        return 0
    except KeyboardInterrupt:  # before generation, or a second one after it
        return EXIT_INTERRUPTED
    if not json_output:
        print(_summary(result.timings, session.provider), file=sys.stderr)
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
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


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


def _silence_stdout() -> None:
    """Keep the interpreter from failing again when it flushes standard output at exit."""
    with contextlib.suppress(OSError, ValueError):  # standard output may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
