"""mamba_run and bad input: no code of a folder runs, numbers are read whole, one line for each damaged file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mamba_run_program import (
    ABSENT,
    DESCRIPTION,
    NO_TENSORRT,
    program,
    refused,
    refused_prompt,
    run,
    write_folder,
)

from mamba_export.backends.tensorrt import names
from mamba_export.libraries import TRT_PLUGIN

COMPILER = shutil.which("c++") or shutil.which("g++")
pytestmark = pytest.mark.skipif(program() is None, reason=ABSENT)


# --- Foreign code ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin library that says so when it is opened, by making the file that PLANTED names."""
    if COMPILER is None:
        pytest.skip("no C++ compiler (c++ or g++)")
    folder = tmp_path_factory.mktemp("planted")
    source, library = folder / "planted.cpp", folder / TRT_PLUGIN.file
    source.write_text(
        "#include <cstdio>\n#include <cstdlib>\n"
        'extern "C" void getCreators() {}\nextern "C" void setLoggerFinder() {}\n'
        '__attribute__((constructor)) static void opened() { fopen(getenv("PLANTED"), "w"); }\n'
    )
    subprocess.run([COMPILER, "-shared", "-fPIC", source, "-o", library], check=True)
    return library


@pytest.fixture
def lone_program(tmp_path: Path) -> Path:
    """The program in a folder without a plugin library beside it."""
    path = program()
    assert path
    copy = tmp_path / "bin" / "mamba_run"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    return copy


@pytest.mark.parametrize("named", ["absolute", "upwards", "by name", "in a folder", "linked"])
def test_no_library_that_a_folder_names_or_holds_is_opened(
    planted: Path, lone_program: Path, tmp_path: Path, named: str
) -> None:
    out = tmp_path / "out"
    (out / "lib").mkdir(parents=True)
    for place in (out, out / "lib", tmp_path):
        shutil.copy(planted, place)
    (out / "link.so").symlink_to(planted)
    field = {
        "absolute": str(planted),
        "upwards": f"../{TRT_PLUGIN.file}",
        "by name": TRT_PLUGIN.file,
        "in a folder": f"lib/{TRT_PLUGIN.file}",
        "linked": "link.so",
    }[named]
    write_folder(out, plugin_library=field)
    witness = tmp_path / "witness"
    options: dict[str, Any] = {
        "cwd": out,
        "env": {**os.environ, "PLANTED": str(witness)},
        "executable": lone_program,
    }
    expected = f"the engine needs {TRT_PLUGIN.file}, which does not lie beside this program: "
    for engine in (out, Path(), Path(names.ENGINE_FILE)):
        assert refused_prompt(engine, **options) == expected + "name it with --plugin"
    assert not witness.exists()
    # The one that the user names is opened; so the witness sees.
    assert "which cannot be opened" in refused_prompt(out, "--plugin", TRT_PLUGIN.file, **options)
    assert witness.exists()


def test_the_library_beside_the_program_is_opened_once_the_files_are_checked(
    planted: Path, lone_program: Path, tmp_path: Path
) -> None:
    shutil.copy(planted, lone_program.parent)
    out = tmp_path / "out"
    out.mkdir()
    witness = tmp_path / "witness"
    options: dict[str, Any] = {
        "env": {**os.environ, "PLANTED": str(witness)},
        "executable": lone_program,
    }
    write_folder(out, engine_sha256="0" * 64)
    assert "is truncated" in refused_prompt(out, **options)
    assert not witness.exists(), "files are checked first"
    write_folder(out, plugin_library=None)
    assert "which cannot be opened" in refused_prompt(out, **options)
    assert not witness.exists(), "an engine without plugins needs no library"
    write_folder(out)
    assert "which cannot be opened" in refused_prompt(out, **options)
    assert witness.exists()


# --- Options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", ["--device", "--max-new-tokens", "--top-k", "--seed", "--tokens"]
)
@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1.0",
        "1e3",
        "0x10",
        "1_000",
        "१",
        "--",
        "1\n",
        "9223372036854775808",
    ],
)
def test_integers_are_read_whole(option: str, value: str) -> None:
    message = refused("--engine", "x", "--prompt", "a", option, value)
    assert message.startswith(f"{option} is ")
    assert ", expected an integer of at least " in message


@pytest.mark.parametrize("option", ["--device", "--max-new-tokens", "--top-k", "--tokens"])
@pytest.mark.parametrize("value", [2**31, 2**32, 2**32 + 1, 2**63 - 1, 10**30])
def test_integers_of_more_than_31_bits_are_refused(option: str, value: int) -> None:
    message = refused("--engine", "x", "--prompt", "a", option, str(value))
    assert message.startswith(f"{option} is {value}, expected an integer of at least ")
    assert message.endswith(" and at most 2147483647")


@pytest.mark.parametrize(
    "value", ["", "-1", "inf", "nan", "0x1", " 1", "1e39", "1e", ".", "1,5", "-"]
)
def test_a_temperature_is_a_number_of_fp32(value: str) -> None:
    message = refused("--engine", "x", "--prompt", "a", "--temperature", value)
    assert message == f"--temperature is {value}, expected a number of at least 0"


@pytest.mark.parametrize("option", ["--engine", "--plugin", "--tensorrt"])
def test_an_empty_path_is_none(option: str) -> None:
    assert refused("--prompt", "a", option, "") == f"{option} is empty, expected a file"


def test_long_and_unprintable_options_are_one_short_line() -> None:
    assert len(refused("--engine", "x", "--tokens", "7" * 100_000)) < 200
    assert len(refused("--" + "x" * 100_000)) < 200
    message = refused("--engine", "\x1b[2Jx\r\ny\u202e", "--prompt", "a")
    assert message == "\\x1b[2Jx\\r\\ny\\u202e: no such engine file"
    found = subprocess.run([str(program()), b"--\xff\x9b"], capture_output=True, check=False)
    assert found.returncode == 2
    assert found.stderr == b"mamba_run: --\\udcff\\udc9b is no option (--help lists them)\n"


# --- Files -----------------------------------------------------------------------------------------

JSON_FILES = pytest.mark.parametrize("name", [names.DESCRIPTION_FILE, "mamba_export.json"])
EACH_FILE = pytest.mark.parametrize(
    "name", [names.DESCRIPTION_FILE, "mamba_export.json", names.ENGINE_FILE]
)


@EACH_FILE
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    path = write_folder(tmp_path, plugin_library=None) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert refused_prompt(tmp_path) == f"{path} is a FIFO, expected a file"
    path.unlink()
    path.mkdir()
    assert refused_prompt(tmp_path) == f"{path} is a folder, expected a file"
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert refused_prompt(tmp_path) == f"{path} is a device, expected a file"
    path.unlink()
    path.symlink_to(path)
    assert "cannot be read (Too many levels of symbolic links)" in refused_prompt(tmp_path)


@pytest.fixture
def unprivileged() -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder, and options that run a copy of the program as somebody who is not its superuser."""
    path = program()
    assert path
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        copy = shutil.copy(path, folder / "mamba_run")
        is_root = os.getuid() == 0
        yield folder, {"executable": copy, **({"user": 65534} if is_root else {})}


@EACH_FILE
def test_what_may_not_be_read(unprivileged: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, options = unprivileged
    path = write_folder(folder, plugin_library=None) / name
    path.touch()
    path.chmod(0)
    assert refused_prompt(folder, **options) == f"{path} cannot be read (Permission denied)"


def test_a_folder_that_may_not_be_searched(unprivileged: tuple[Path, dict[str, Any]]) -> None:
    folder, options = unprivileged
    inner = folder / "inner"
    inner.mkdir()
    write_folder(inner, plugin_library=None)
    inner.chmod(0)
    found = refused_prompt(inner, **options)
    inner.chmod(0o755)
    assert found == f"{inner}/{names.ENGINE_FILE} cannot be read (Permission denied)"


@pytest.mark.parametrize("option", ["--plugin", "--tensorrt"])
def test_a_library_that_is_no_file(tmp_path: Path, option: str) -> None:
    written = write_folder(tmp_path, plugin_library=None)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, kind in ((fifo, "a FIFO"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        message = refused("--engine", written, "--prompt", "a", option, path)
        assert message == f"{path} is {kind}, expected a file"


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for engine in (tmp_path / ("x" * 256), tmp_path / "/".join("x" * 200 for _ in range(40))):
        assert "cannot be read (File name too long)" in refused_prompt(engine)
    (tmp_path / "file").touch()
    assert "no such engine file" in refused_prompt(tmp_path / "file" / names.ENGINE_FILE)


@JSON_FILES
def test_a_huge_json_file_is_not_read(tmp_path: Path, name: str) -> None:
    path = write_folder(tmp_path, plugin_library=None) / name
    with path.open("wb") as file:
        file.truncate(1 << 40)
    message = refused_prompt(tmp_path)
    assert message == f"{path} has more than {4 << 20} bytes, which is too large for such a file"


@JSON_FILES
@pytest.mark.parametrize(
    "content",
    [
        b'{"format": 1,\0 "runtime": 2}',
        b"\0",
        b"{}\0",
        b"[" * 100_000,
        b'{"format": 1, "format": 1}',
        b'{"format": 0x1}',
        b'{"format": 01}',
        b'{"format": 1.}',
        b'{"format": .5}',
        b'{"format": +1}',
        b'{"format": NaN}',
        b'{"format": -Infinity}',
        b'{"format": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00\\ud800"}',
        b'{"a": "\\ud800\\u0041"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\xc0\x80"}',
        b'{"a": "\xff"}',
        b'{"a": "\\x41"}',
        b'{"a": "a\nb"}',
        b'{"a": 1,}',
        b"[1 2]",
        b"\xff\xfe{\0}\0",
    ],
    ids=repr,
)
def test_what_is_no_strict_json(tmp_path: Path, name: str, content: bytes) -> None:
    path = write_folder(tmp_path, plugin_library=None) / name
    path.write_bytes(content)
    assert refused_prompt(tmp_path).startswith(f"{path} is damaged (not JSON at byte ")


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = write_folder(tmp_path, plugin_library=None) / names.DESCRIPTION_FILE
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert "which cannot be opened" in refused_prompt(tmp_path)


def _changed(key: str, index: int, **entries: Any) -> dict[str, Any]:
    """A list of the description with other entries in one of its objects."""
    return {
        key: [{**one, **entries} if i == index else one for i, one in enumerate(DESCRIPTION[key])]
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (_changed("profiles", 0, batch=[0, 1, 4]), "batch is 0, expected 1 to 2147483647"),
        (_changed("profiles", 0, batch=[1, 1, -4]), "batch is -4, expected 1 to"),
        (_changed("profiles", 0, length=[1, 1, 2**31]), "length is 2147483648, expected 1 to"),
        (_changed("profiles", 0, length=[1, 2**60, 2]), "a number is not an integer"),
        (_changed("profiles", 0, length=[1, 5, 4]), "length is not minimum, optimum, maximum"),
        (_changed("profiles", 0, length=[4, 3, 5]), "length is not minimum, optimum, maximum"),
        (_changed("inputs", 0, shape=[-2, -1]), "a size is -2, expected -1 to 2147483647"),
        (_changed("inputs", 1, shape=[-1, 2**40, 2**40]), "a size is 1099511627776, expected"),
        (_changed("outputs", 1, shape=[-1, 10**30]), "a number is not an integer"),
        (_changed("inputs", 0, name=""), "a name is no name"),
        (_changed("inputs", 0, name="input_ids\0x"), "a name is no name"),
        (_changed("inputs", 0, name="logits"), "a name stands twice"),
        (_changed("outputs", 1, name="present.0.recurrent_state"), "a name stands twice"),
        ({"states": DESCRIPTION["states"][::-1]}, "states are not the inputs and outputs after"),
        ({"vocab_size": 10**400}, "not JSON at byte "),
    ],
)
def test_sizes_and_names_that_no_engine_has(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    written = write_folder(tmp_path, plugin_library=None, **changed)
    found = refused_prompt(written)
    assert found.startswith(f"{written / names.DESCRIPTION_FILE} is damaged ({message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 3}, "format is 3, expected 1 to 2"),
        ({"format": -1}, "format is -1, expected 1 to 2"),
        ([], "there is a list, expected an object"),
        ({"format": 2, "tokens": {"eos_token_id": 2**60}, "states": []}, "a number is not an integer"),
        ({"format": 2, "tokens": {"eos_token_id": [1, None]}, "states": []}, "there is null, expected a num"),
        ({"format": 2, "tokens": 3, "states": []}, "there is a number, expected an object"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_used(tmp_path: Path, content: Any, message: str) -> None:
    path = write_folder(tmp_path, plugin_library=None) / "mamba_export.json"
    path.write_text(json.dumps(content))
    assert refused_prompt(tmp_path).startswith(f"{path} cannot be used ({message}")


def test_names_in_files_reach_the_terminal_escaped(tmp_path: Path) -> None:
    profiles = [{**DESCRIPTION["profiles"][1], "name": "\x1b]0;x\x07\n\x9b2J\u2028"}]
    message = refused_prompt(write_folder(tmp_path, profiles=profiles))
    assert "profile \\x1b]0;x\\x07\\n\\x9b2J\\u2028 takes batch 1 to 4" in message


# --- Standard output -------------------------------------------------------------------------------


def test_a_full_or_closed_standard_output() -> None:
    with Path("/dev/full").open("w") as full:
        found = run("--help", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert found.returncode == 2
    expected = "mamba_run: standard output cannot be written ("
    assert found.stderr == expected + "No space left on device)\n"
    found = run(
        "--help", capture_output=False, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1)
    )
    assert found.returncode == 2
    assert found.stderr == expected + "Bad file descriptor)\n"


def test_an_absent_tensorrt_is_not_looked_for_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / Path(NO_TENSORRT).name).write_bytes(b"no library")
    written = write_folder(tmp_path, plugin_library=None)
    message = refused("--engine", written, "--prompt", "In", cwd=tmp_path)
    assert "file too short" not in message
