"""The commands with paths and a model's text that hold escape sequences and rich's markup."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamba_export import OrtSession
from mamba_export.cli import main
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.models import MambaLM, checkpoints

NAME = "[bold] [blink] \x1b[31m\u202e\n"
SHOWN = r"[bold] [blink] \x1b[31m\u202e\n"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def reconfigure(self, **options: Any) -> None:
        pass


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], tuple[object, str, str]]:
    """Runs a command on terminals, of which it tells what they were sent."""

    def run(arguments: list[str]) -> tuple[object, str, str]:
        out, err = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setenv("TERM", "dumb")  # rich sends no sequence of its own
        monkeypatch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        return stop.value.code, out.getvalue(), err.getvalue()

    return run


def test_paths(screen: Any, tiny_model: MambaLM, tmp_path: Path) -> None:
    source = tmp_path / f"model {NAME}"
    checkpoints.save(tiny_model, source)
    write_byte_tokenizer(source)
    folder = str(tmp_path / NAME)
    for arguments, shown in [
        (["export", str(source), "-o", folder], "wrote "),
        (["verify", folder, "--quick", "--backend", "cpu"], "checks passed"),
        (["export", str(source), "-o", folder], "exists"),
        (["verify", f"{folder}.none"], "none"),
        (["run", f"{folder}.none", "--prompt", "a"], "none"),
        (["run", folder, "--prompt-file", f"{folder}.none"], "none"),
        (["run", folder, "--prompt", "a", "--backend", NAME], "--backend"),
        (["build", folder, "--batch", NAME], "--batch"),
        (["build", folder, "--size", f"{NAME}=x"], "--size"),
        ([NAME], "No such command"),
    ]:
        code, out, err = screen(arguments)
        everything = out + err
        assert shown in everything
        assert code == (2 if "error: " in err else 0), everything
        assert "Traceback" not in everything
        assert not {"\x1b", "\u202e"} & set(everything), arguments
        assert "[bold] [blink]" in everything


def test_text_of_a_model(screen: Any, tiny_model: MambaLM, tmp_path: Path) -> None:
    """On a terminal its control characters are shown; a file or a pipe gets them as they are."""
    source, out = tmp_path / "model", tmp_path / "out"
    checkpoints.save(tiny_model, source)
    write_byte_tokenizer(source)
    assert screen(["export", str(source), "-o", str(out)])[0] == 0
    prompt = "\x1b[2J tab\t end\n"
    options = ["--temperature", "1", "--max-new-tokens", "200", "--ignore-end"]
    arguments = ["run", str(out), "--prompt", prompt, *options]
    [one] = OrtSession(out).generate(prompt, temperature=1.0, max_new_tokens=200, stop_at_end=False)
    assert np.any([ord(character) < 0x20 for character in one.text]), "the case is what it claims"
    for more in ([], ["--prompt", "second"], ["--json"]):
        code, text, err = screen([*arguments, *more])
        assert code == 0, err
        assert not {c for c in text if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0} - {"\n", "\t"}
        assert r"\x1b[2J" in text or more == ["--json"]
