"""``export`` and ``build --bundle`` on full disks, under limits, with links and signals: whole or nothing."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx_ir as ir
import pytest

from mamba_export import contract
from mamba_export.backends.tensorrt import BuildOptions, bundle
from mamba_export.errors import MambaExportError
from mamba_export.export import export
from mamba_export.export import exporter as exporter_module
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.models import MambaLM, checkpoints


@pytest.fixture(scope="module")
def source(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writing") / "model"
    checkpoints.save(tiny_model, folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def exported(source: Path) -> Path:
    return export(source, source.parent / "exported")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    """Tracing and ONNX's check left out: what is written is the same, in milliseconds."""
    content = ir.serde.serialize_model(ir.load(exported / contract.MODEL_FILE)).SerializeToString()

    def load(*_: object, **__: object) -> ir.Model:
        model = ir.from_proto(ir.serde.onnx.ModelProto.FromString(content))
        ir.external_data.set_base_dir(model.graph, exported)
        return ir.external_data.load_to_model(model)

    monkeypatch.setattr(exporter_module.graph, "build", load)
    monkeypatch.setattr(exporter_module, "check", lambda _: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("quick")
def test_every_file_size_limit_is_seen(source: Path, exported: Path, tmp_path: Path) -> None:
    """Where the limit cuts a file the export fails, with nothing left; else it is whole."""
    whole = contents(exported)
    largest = max(map(len, whole.values()))
    edges = {len(content) + more for content in whole.values() for more in (-1, 0, 1)}
    seed = random.Random(0)
    limits = sorted({0, 1, *edges, *(seed.randrange(largest) for _ in range(30))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in limits:
        out = tmp_path / "deep" / str(limit)
        failure = None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            export(source, out)
        except MambaExportError as error:
            failure = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if limit >= largest:
            assert failure is None
            assert contents(out) == whole
        else:
            assert failure is not None, f"{limit} of {largest} bytes passed for the whole"
            assert failure.startswith(f"{out}/")
            assert failure.endswith("nothing was written")
            assert not (tmp_path / "deep").exists()
        if out.exists():
            for path in [*out.iterdir()]:
                path.unlink()
            out.rmdir()
            out.parent.rmdir()


@pytest.mark.usefixtures("quick")
def test_every_full_disk_is_seen(source: Path, exported: Path, tmp_path: Path) -> None:
    """A file system of each size up to what is needed; OUT is in it, or is the volume itself."""
    whole = contents(exported)
    needed = sum(-(-len(content) // 4096) for content in whole.values())
    place = tmp_path / "volume"
    place.mkdir()
    for pages in range(4, needed + 24, 3):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a file system needs root")
        try:
            for out in (place, place / "out"):
                failure = None
                try:
                    export(source, out)
                except MambaExportError as error:
                    failure = str(error)
                if failure is not None:
                    assert "disk" in failure
                    assert "\n" not in failure
                    assert [*place.iterdir()] == []
                else:
                    assert contents(out) == whole
                    for path in out.iterdir():
                        path.unlink()
                    if out != place:
                        out.rmdir()
        finally:
            subprocess.run(["umount", str(place)], check=True)


@pytest.mark.usefixtures("quick")
def test_names_that_are_not_utf8(source: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"\xff\xfe out")
    export(source, out)
    assert contents(out) == contents(exported)


def test_onnx_checks_a_folder_whose_name_is_not_utf8(exported: Path, tmp_path: Path) -> None:
    from mamba_export.export import check

    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    for name, content in contents(exported).items():
        (folder / name).write_bytes(content)
    check(folder / contract.MODEL_FILE)


@pytest.mark.usefixtures("quick")
def test_force_spares_checkpoint_and_tokenizer(source: Path, tmp_path: Path) -> None:
    model, words = tmp_path / "model", tmp_path / "words"
    for folder in (model, words):
        folder.mkdir()
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / contract.METADATA_FILE).write_text("{}")  # looks like one of ours
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(model)
    for out in (model, tmp_path, words, words / "inner", tmp_path / "link" / "inner"):
        with pytest.raises(MambaExportError, match=r"is, holds or lies inside"):
            export(model, out, force=True, tokenizer=words)
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("quick")
def test_links_out_of_the_checkpoint(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "x"}')
    model = tmp_path / "model"
    model.mkdir()
    for path in source.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "vocab.json").symlink_to(secret)
    with pytest.raises(MambaExportError, match=r"vocab\.json is a link that leads out"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    hub = tmp_path / "models--owner--name"
    snapshot = hub / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (hub / "blobs").mkdir()
    for number, path in enumerate(source.iterdir()):
        (hub / "blobs" / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    out = export(snapshot, tmp_path / "out")
    assert (out / contract.TOKENIZER_FILE).read_bytes() == (
        source / contract.TOKENIZER_FILE
    ).read_bytes()
    assert not (out / contract.TOKENIZER_FILE).is_symlink()


def test_a_bundle_spares_the_folder_that_it_is_of(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in contents(exported).items():
        (folder / name).write_bytes(content)
    options = BuildOptions(plugin=False)
    for out in (folder, folder / "inner", tmp_path):
        with pytest.raises(MambaExportError, match=r"is, holds or lies inside"):
            bundle(folder, out, options, force=True)
    assert contents(folder) == contents(exported)
    bundle(folder, tmp_path / "bundle", options)
    bundle(folder, tmp_path / "bundle", options, force=True)
    (folder / "vocab.json").symlink_to("/etc/hostname")
    with pytest.raises(MambaExportError, match=r"vocab\.json is a link that leads out"):
        bundle(folder, tmp_path / "bundle", options, force=True)
    assert json.loads((tmp_path / "bundle" / contract.METADATA_FILE).read_text())["format"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_leaves_the_old_folder(
    number: signal.Signals, code: int, source: Path, exported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, content in contents(exported).items():
        (out / name).write_bytes(content)
    (out / "note.txt").write_text("the old one")
    command = [sys.executable, "-m", "mamba_export", "export", source, "-o", out, "--force"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len([*tmp_path.iterdir()]) == 1 and process.poll() is None:
        assert time.monotonic() < deadline, "it has begun to write"
        time.sleep(0.01)
    time.sleep(random.Random(code).uniform(0, 0.5))
    process.send_signal(number)
    _, message = process.communicate()
    assert "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if (out / "note.txt").exists():
        assert process.returncode == code, message
    else:  # on a busy machine the signal may come when all is written, and while Python ends
        assert process.returncode in (0, code, -number), message
        assert contents(out).keys() == contents(exported).keys()
