"""What mamba_run reads, under sanitizers: seeded hostile cases, and JSON and text as Python has them.

MAMBA_HOSTILE_CASES=1000000 pytest tests/test_mamba_run_inputs.py tries more than the tests of every day.
"""

from __future__ import annotations

import json
import math
import os
import pty
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mamba_export.printing import printable, printable_lines

ROOT = Path(__file__).parents[1]
PLUGINS = ROOT / "plugins"
PROGRAM = ROOT / "tests" / "cpp" / "mamba_run_inputs.cpp"
COMPILER = shutil.which("c++") or shutil.which("g++")
CASES = int(os.environ.get("MAMBA_HOSTILE_CASES", "4000"))

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (c++ or g++)")


def _sources() -> list[Path]:
    """What mamba_run is made of besides CUDA and TensorRT, from the build's own list."""
    text = (PLUGINS / "tensorrt" / "CMakeLists.txt").read_text()
    found = re.search(r"set\(MAMBA_RUN_INPUTS ([^)]*)\)", text)
    assert found
    return [PLUGINS / "tensorrt" / name for name in found[1].split()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with AddressSanitizer and UndefinedBehaviorSanitizer."""
    program = tmp_path_factory.mktemp("program") / "mamba_run_inputs"
    options = ["-std=c++17", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    options += [f"-I{PLUGINS / name}" for name in ("tensorrt/mamba_run", "contract")]
    command = [COMPILER, *options, '-DMAMBA_PLUGIN_FILE="none.so"', *_sources(), PROGRAM]
    found = subprocess.run(
        list(map(str, [*command, "-ldl", "-o", program])),
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find -lasan" in found.stderr or "unrecognized" in found.stderr:
        pytest.skip("the C++ compiler has no AddressSanitizer")
    assert found.returncode == 0, found.stderr
    return program


def test_seeded_cases(inputs: Path, tmp_path: Path) -> None:
    found = subprocess.run(
        [inputs, str(CASES)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{CASES} cases\n"
    assert not list(tmp_path.iterdir()), "it cleans up"


# --- JSON, judged by Python's ----------------------------------------------------------------------


def _strict(content: bytes) -> Any:
    """As RFC 8259 has it, and mamba_run: ValueError or RecursionError where it is refused."""

    def no_constant(name: str) -> Any:
        raise ValueError(name)

    def finite(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError(text)
        return float(text)

    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    text = content.decode("utf-8-sig")
    value = json.loads(
        text,
        parse_constant=no_constant,
        parse_float=finite,
        parse_int=finite,
        object_pairs_hook=no_key_twice,
    )
    json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError: a lone surrogate
    if _depth(value) > 64:
        raise RecursionError
    return value


def _depth(value: Any) -> int:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(_depth, inner), default=0)
    return 0


_PARTS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b'""', b'"a"', b'"b":', b"\\", b"\\u0041", b"\\u00e9",
    b"\\ud83d", b"\\ude00", b"\\n", b"\\/", b"\\x", b"null", b"true", b"false", b"nul", b"NaN",
    b"-Infinity", b"0", b"-0", b"00", b"7", b"-12.50", b"1e5", b"1E+30", b"1e999", b"1e-400", b".5",
    b"1.", b"0x1", b"+1", b" ", b"\n", b"\t", b"\r", b"\f", b"\0", b"\x0b", b"\xc2\xa0",
    b"\xef\xbb\xbf", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b"\xff", b"\xc0\x80", b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80", b"\x1f", b"\x7f", b"/**/",
]  # fmt: skip


def _json_like(random: random.Random) -> bytes:
    """Valid JSON with a part changed, or parts of JSON in any order."""
    if random.random() < 0.3:
        return b"".join(random.choices(_PARTS, k=random.randint(0, 5)))

    def value(depth: int) -> Any:
        kind = random.randint(0, 7 if depth < 4 else 5)
        if kind < 2:
            return random.choice([None, True, False])
        if kind == 2:
            return random.choice([0, -1, 2**53, 2**31, 10**20, random.randint(-1000, 1000)])
        if kind == 3:
            return random.uniform(-1, 1) * 10 ** random.randint(-300, 300)
        if kind in (4, 5):
            return "".join(
                random.choices('ab"\\/\n\t\x00\x7f\x9b\u2028é\U0001f600', k=random.randint(0, 5))
            )
        inner = [value(depth + 1) for _ in range(random.randint(0, 3))]
        return inner if kind == 6 else dict(zip("abc", inner, strict=False))

    text = bytearray(json.dumps(value(0), ensure_ascii=random.random() < 0.5).encode())
    for _ in range(random.choice([0, 0, 1, 1, 2])):
        at = random.randint(0, len(text))
        text[at : at + random.choice([0, 0, 1])] = random.choice(_PARTS)
    return bytes(text)


def test_json_is_read_as_python_reads_it(inputs: Path, tmp_path: Path) -> None:
    """Both accept the same texts, and read the same out of them; each text is a line of one list."""
    seeds = random.Random(0)
    texts = [_json_like(seeds) for _ in range(CASES // 4)]
    texts += [b"[" * depth + b"]" * depth for depth in (63, 64, 65, 10_000)]
    texts += [b'{"a":' * depth + b"1" + b"}" * depth for depth in (64, 65)]
    (tmp_path / "texts").write_bytes(b"".join(b"%d\n%s" % (len(text), text) for text in texts))
    found = subprocess.run([inputs, "--json", tmp_path / "texts"], capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.split(b"\n")[:-1]
    accepted = 0
    for text, line in zip(texts, lines, strict=True):
        try:
            expected = _strict(text)
        except (ValueError, RecursionError):
            assert line == b"", text
            continue
        accepted += 1
        assert json.loads(line, parse_int=float) == expected, text
    assert len(texts) / 4 < accepted < len(texts) * 3 / 4, "both sides are tried"


# --- Text, judged by Python's printer --------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_bytes() -> bytes:
    """Every character that a terminal obeys, bytes that are not UTF-8, and random ones."""
    seeds = random.Random(1)
    every = "".join(
        map(chr, [*range(0x300), 0x61C, *range(0x2000, 0x2070), 0xFEFF, 0x1F600])
    ).encode()
    cut = [
        b"\xf0\x9f\x98",
        b"\xe2\x82",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\x80",
        b"\x9b2J",
    ]
    noise = bytes(seeds.choices(range(256), k=3000))
    return every + b"a".join(cut) + noise + "é".encode() * 40 + b"\xf0\x9f"


def test_a_line_is_printed_as_python_prints_it(
    inputs: Path, tmp_path: Path, hostile_bytes: bytes
) -> None:
    (tmp_path / "bytes").write_bytes(hostile_bytes)
    found = subprocess.run([inputs, "--line", tmp_path / "bytes"], capture_output=True, check=True)
    expected = printable(hostile_bytes.decode("utf-8", "surrogateescape"))
    assert found.stdout.decode() == expected + "\n"


def test_a_pipe_gets_the_models_own_bytes(
    inputs: Path, tmp_path: Path, hostile_bytes: bytes
) -> None:
    (tmp_path / "bytes").write_bytes(hostile_bytes)
    found = subprocess.run([inputs, "--text", tmp_path / "bytes"], capture_output=True, check=True)
    assert found.stdout == hostile_bytes + b"\n"


def test_a_terminal_gets_nothing_that_it_obeys(
    inputs: Path, tmp_path: Path, hostile_bytes: bytes
) -> None:
    (tmp_path / "bytes").write_bytes(hostile_bytes)
    reader, terminal = pty.openpty()
    with subprocess.Popen([inputs, "--text", tmp_path / "bytes"], stdout=terminal) as process:
        os.close(terminal)
        pieces = []
        try:
            while piece := os.read(reader, 1 << 16):
                pieces.append(piece)
        except OSError:  # the end of what a terminal says
            pass
        finally:
            os.close(reader)
    assert process.returncode == 0
    found = b"".join(pieces).replace(b"\r\n", b"\n").decode()  # the terminal's own line ends
    assert found == printable_lines(hostile_bytes.decode("utf-8", "replace")) + "\n"
