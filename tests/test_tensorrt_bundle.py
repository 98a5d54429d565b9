"""What a target without Python gets: the bundle, its DEPLOY.md and the trtexec line. Needs no TensorRT."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import onnx
import pytest

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.tensorrt import BuildOptions, bundle, read_description
from mamba_export.backends.tensorrt.bundling import _sources
from mamba_export.backends.tensorrt.deploy import deploy_text, trtexec_line
from mamba_export.backends.tensorrt.options import parse_workspace
from mamba_export.backends.tensorrt.profiles import Profile, parse_range
from mamba_export.errors import MambaExportError
from mamba_export.export import export
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.folder.metadata import Metadata, read_metadata
from mamba_export.models import MambaLM
from mamba_export.models.checkpoints import save

needs_surgeon = pytest.mark.skipif(
    importlib.util.find_spec("onnx_graphsurgeon") is None,
    reason="onnx-graphsurgeon is not installed",
)


def _has_sources() -> bool:
    try:
        _sources()
    except MambaExportError:
        return False
    return True


@pytest.fixture(scope="module")
def folder(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    save(tiny_model, root / "model")
    write_byte_tokenizer(root / "model")
    return export(root / "model", root / "out")


@pytest.mark.parametrize("plugin", [True, pytest.param(False, marks=needs_surgeon)])
def test_a_bundle_is_complete(folder: Path, tmp_path: Path, plugin: bool) -> None:
    if plugin and not _has_sources():
        pytest.skip("the plugin's sources are not here")
    out = bundle(folder, tmp_path / "bundle", BuildOptions(plugin=plugin, batch=(1, 1, 2)))
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "DEPLOY.md",
        "engine.json",
        "mamba_export.json",
        "model.onnx",
        "model.onnx.data",
        "model.tensorrt.onnx",
        "tokenizer.json",
    }
    assert ("plugin" in names) == plugin
    if plugin:
        sources = out / "plugin"
        parts = re.findall(r"add_subdirectory\((\S+)\)", (sources / "CMakeLists.txt").read_text())
        assert {"plugins/kernels", "plugins/contract", "plugins/tensorrt"} <= set(parts)
        parts.remove("tests/cpp")  # behind an option that is off
        assert all((sources / part / "CMakeLists.txt").is_file() for part in parts)
    # It is an exported folder itself, and its graph finds its weights.
    assert OrtSession(out).generate("a", max_new_tokens=3)[0].tokens
    onnx.load(str(out / "model.tensorrt.onnx"))
    description = read_description(out)
    assert description.runtime == "tensorrt"
    assert description.engine_sha256 is None, "nobody has built it"
    assert description.runtime_version is None
    expected = {"CausalConv1d": 2, "SelectiveScan": 2} if plugin else {}
    assert description.plugins == expected
    assert description.byte_tokenizer
    text = (out / "DEPLOY.md").read_text()
    assert ("cmake -S plugin" in text) == plugin
    assert "trtexec " in text
    assert (" --plugin ./libmamba_export_trt.so " in text) == plugin
    for name in re.findall(r"`(\S+\.(?:onnx|data|json))`", text):
        assert name in names, "DEPLOY.md names files that are there"


def test_the_trtexec_line_has_every_option_and_shape(folder: Path) -> None:
    metadata = read_metadata(folder)
    options = BuildOptions(
        batch=(1, 2, 3),
        length=(4, 5, 6),
        workspace_mib=512,
        timing_cache=Path("somewhere/cache.bin"),
        version_compatible=True,
        hardware_compatible=True,
    )
    words = shlex.split(trtexec_line(metadata, options))
    assert words[0] == "trtexec"
    assert "--staticPlugins=./libmamba_export_trt.so" in words
    assert "--memPoolSize=workspace:512M" in words
    assert "--timingCacheFile=cache.bin" in words
    assert "--versionCompatible" in words
    assert "--hardwareCompatibilityLevel=ampere+" in words
    # trtexec reads the three shapes that follow a profile's index, with nothing between them.
    first, second = words.index("--profile=0"), words.index("--profile=1")
    for start, expected in ((first, ["1x4", "2x5", "3x6"]), (second, ["1x1", "2x1", "3x1"])):
        for word, option, shape in zip(
            words[start + 1 : start + 4], ("min", "opt", "max"), expected, strict=True
        ):
            name, spec = word.split("=", 1)
            assert name == f"--{option}Shapes"
            shapes = dict(entry.split(":") for entry in spec.split(","))
            assert shapes["input_ids"] == shape
            batch = shape.split("x")[0]
            assert shapes["past_key_values.1.recurrent_state"] == f"{batch}x64x16"
            assert len(shapes) == 5, "every input of the graph"
    plain = trtexec_line(metadata, BuildOptions(plugin=False))
    for absent in ("Plugins", "memPool", "timing", "versionC", "hardware"):
        assert absent not in plain


def _named(metadata: Metadata, name: str) -> Metadata:
    """The metadata with another name for its first input."""
    first, *others = metadata.inputs
    return dataclasses.replace(metadata, inputs=(dataclasses.replace(first, name=name), *others))


HOSTILE_NAMES = [
    "$(touch planted)",
    "`touch planted`",
    "a;touch planted",
    "a && touch planted #",
    "a | touch planted",
    "a > planted",
    "a b  c",
    '"$(touch planted)"',
    "```",
    "*",
    "~",
    "-x",
    "\\",
    "été",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_the_line_runs_trtexec_alone_whatever_a_name_holds(
    folder: Path, tmp_path: Path, name: str
) -> None:
    metadata = _named(read_metadata(folder), name)
    cache = BuildOptions(timing_cache=Path("$(touch planted)'s cache"))
    text = deploy_text(metadata, cache)
    [line] = [line for line in text.splitlines() if line.startswith("trtexec")]
    before, after = text.split(line)
    assert before.endswith("\n```\n"), "it stands in a code block"
    assert after.startswith("\n```\n")
    stand_in = tmp_path / "bin" / "trtexec"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    stand_in.chmod(0o755)
    found = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path,
        env={"PATH": f"{stand_in.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = found.stdout.split("\0")[:-1]
    assert found.stderr == ""
    assert sum(word.startswith(f"--minShapes={name}:1x1,past_key") for word in words) == 2
    assert "--timingCacheFile=$(touch planted)'s cache" in words
    assert len(words) == len(shlex.split(trtexec_line(read_metadata(folder), cache))) - 1
    assert [path.name for path in tmp_path.iterdir()] == ["bin"], "nothing else has run"


@pytest.mark.parametrize(
    "name", ["a,b", "a:1", "it's", "a\nb", "a\r", "\x1b[2J", "\u202ex", "", "a\x00"]
)
def test_names_that_trtexec_cannot_be_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    metadata = _named(read_metadata(folder), name)
    with pytest.raises(
        MambaExportError, match="trtexec cannot be told the shapes of input"
    ) as caught:
        trtexec_line(metadata, BuildOptions())
    assert str(caught.value).isprintable()
    # An engine that was built here stands all the same.
    text = deploy_text(metadata, BuildOptions())
    assert "\nNone: trtexec cannot be told" in text
    assert text.replace("\n", "").isprintable()
    monkeypatch.setattr("mamba_export.backends.tensorrt.bundling.read_metadata", lambda _: metadata)
    with pytest.raises(MambaExportError, match="trtexec cannot be told"):
        bundle(folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_timing_cache_of_an_unprintable_name(folder: Path) -> None:
    with pytest.raises(MambaExportError, match="--timing-cache"):
        trtexec_line(read_metadata(folder), BuildOptions(timing_cache=Path("a\nrm -r b")))


def test_bundle_refuses_in_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MambaExportError, match="--dtype fp16"):
        bundle(folder, tmp_path / "out", BuildOptions(precision="fp16", plugin=False))
    monkeypatch.setattr("mamba_export.backends.tensorrt.bundling._SOURCES", ("nowhere",))
    with pytest.raises(MambaExportError, match="sources are not installed"):
        bundle(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    monkeypatch.undo()
    if _has_sources():
        with pytest.raises(MambaExportError, match="--force"):
            bundle(folder, tmp_path / "there")
    assert json.loads((folder / "mamba_export.json").read_text())["dtype"] == "fp32"


@pytest.mark.parametrize(
    ("text", "expected"), [("1,4,16", (1, 4, 16)), ("7", (7, 7, 7)), ("2,2,2", (2, 2, 2))]
)
def test_ranges(text: str, expected: tuple[int, int, int]) -> None:
    assert parse_range(text, "--batch") == expected


@pytest.mark.parametrize("text", ["", "0", "1,2", "3,2,1", "1,2,x", "-1,2,3", "1,2,3,4"])
def test_bad_ranges(text: str) -> None:
    with pytest.raises(MambaExportError, match="--batch"):
        parse_range(text, "--batch")


def test_workspace_sizes() -> None:
    assert [parse_workspace(text) for text in ("512", "512M", "4G", "4g")] == [512, 512, 4096, 4096]
    for text in ("", "M", "4T", "-1", "1.5G", "0"):
        with pytest.raises(MambaExportError, match="--workspace"):
            parse_workspace(text)


def test_profiles_take_what_they_say() -> None:
    profile = Profile("prefill", (2, 3, 4), (1, 5, 9))
    assert profile.takes(2, 1)
    assert profile.takes(4, 9)
    assert not profile.takes(1, 5)
    assert not profile.takes(5, 5)
    assert not profile.takes(3, 10)
    assert str(profile) == "prefill: batch 2 to 4, length 1 to 9"
