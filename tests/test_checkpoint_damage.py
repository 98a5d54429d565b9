"""Damaged weight files: CheckpointError in one line for each, whole values for what loads, and no code run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mamba_export.errors import CheckpointError
from mamba_export.models import MambaConfig, MambaLM, checkpoints

NORM = "backbone.norm_f.weight"
Header = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint in each format: its weight file, by the format's name."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = MambaLM(MambaConfig(8, 2, 16, d_state=2))
    checkpoints.save(model, root / "safetensors")
    files = {"safetensors": root / "safetensors" / "model.safetensors"}
    state = load_file(files["safetensors"])
    for how in ("zip", "legacy"):
        (root / how).mkdir()
        config = (root / "safetensors" / "config.json").read_bytes()
        (root / how / "config.json").write_bytes(config)
        files[how] = root / how / "pytorch_model.bin"
        torch.save(state, files[how], _use_new_zipfile_serialization=how == "zip")
    return files


@pytest.fixture
def files(saved: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """The same, put back as they were after each test."""
    before = {path: path.read_bytes() for path in saved.values()}
    yield saved
    for path, content in before.items():
        path.write_bytes(content)


def refusal(path: Path) -> str | None:
    """The one line that refuses the checkpoint of a weight file; None where it loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            checkpoints.load(path.parent)
        except CheckpointError as error:
            message = str(error)
            assert "\n" not in message
            assert len(message) < 600 + len(str(path))
            assert str(path.parent) in message
            return message
    return None


# ---- safetensors -------------------------------------------------------------------------------


def parts(path: Path) -> tuple[Header, bytes]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(header: object, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes: Any) -> Callable[[Header, bytes], bytes]:
    """The entry of one tensor, changed."""
    return lambda header, data: join({**header, NORM: {**header[NORM], **changes}}, data)


def named_twice(header: Header, data: bytes) -> bytes:
    again = json.dumps(header[NORM]).encode()
    return join(json.dumps(header).encode()[:-1] + f', "{NORM}": '.encode() + again + b"}", data)


def overlapping(header: Header, data: bytes) -> bytes:
    other = next(name for name in header if name not in (NORM, "__metadata__"))
    return entry(data_offsets=header[other]["data_offsets"])(header, data)


DAMAGED = "is truncated or damaged"
HEADERS: dict[str, tuple[Callable[[Header, bytes], bytes], str]] = {
    "length over the file": (lambda h, d: join(h, d, 10**6), DAMAGED),
    "length of 2^63": (lambda h, d: join(h, d, 2**63), DAMAGED),
    "length of 2^64 - 1": (lambda h, d: join(h, d, 2**64 - 1), DAMAGED),
    "length of 200 MB": (lambda h, d: join(h, d, 200_000_000), DAMAGED),
    "blanks": (lambda h, d: join(b" " * 1_000_000 + b"{}", d), DAMAGED),
    "deep": (lambda h, d: join(b"[" * 100_000, d), DAMAGED),
    "no object": (lambda h, d: join([], d), DAMAGED),
    "not utf-8": (lambda h, d: join(b'{"\xff": 1}', d), DAMAGED),
    "no tensors": (lambda h, d: join({}, b""), "lacks tensors that its config.json asks for"),
    "trailing bytes": (lambda h, d: join(h, d + b"123"), DAMAGED),
    "cut data": (lambda h, d: join(h, d[:-1]), DAMAGED),
    "number as metadata": (lambda h, d: join({**h, "__metadata__": {"a": 1}}, d), DAMAGED),
    "list as entry": (lambda h, d: join({**h, NORM: []}, d), DAMAGED),
    "name twice": (named_twice, f"is damaged (its header holds '{NORM}' twice)"),
    "offsets that overlap": (overlapping, DAMAGED),
    "offsets over the file": (entry(data_offsets=[0, 10**18]), DAMAGED),
    "offsets backwards": (entry(data_offsets=[5, 3]), DAMAGED),
    "negative offset": (entry(data_offsets=[-1, 31]), DAMAGED),
    "one offset": (entry(data_offsets=[0]), DAMAGED),
    "negative shape": (entry(shape=[-8]), DAMAGED),
    "shape of 2^63": (entry(shape=[2**63]), DAMAGED),
    "shape that overflows": (entry(shape=[2**31, 2**33]), DAMAGED),
    "shape of 10^400": (entry(shape=[10**400]), DAMAGED),
    "shape of another rank": (entry(shape=[8, 1]), "has shape (8, 1), expected (8,)"),
    "unknown dtype": (entry(dtype="F128"), DAMAGED),
    "dtype of another size": (entry(dtype="F64"), DAMAGED),
    "integers of the size": (entry(dtype="U32"), f"tensor {NORM} is U32, expected fp32, fp16"),
}


@pytest.mark.parametrize(("damage", "message"), HEADERS.values(), ids=HEADERS.keys())
def test_safetensors_headers(
    damage: Callable[[Header, bytes], bytes], message: str, files: dict[str, Path]
) -> None:
    path = files["safetensors"]
    path.write_bytes(damage(*parts(path)))
    found = refusal(path)
    assert found is not None
    assert message in found


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("F8_E4M3", 8), ("F8_E5M2", 8), ("F8_E8M0", 8), ("BOOL", 8),
        ("I8", 8), ("U8", 8), ("I16", 16), ("U16", 16), ("I32", 32), ("U32", 32),
        ("I64", 64), ("U64", 64), ("C64", 64),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [NORM, "backbone.embeddings.weight"], ids=["norm", "embedding"])
def test_dtypes_that_are_no_weights(
    dtype: str, bits: int, name: str, files: dict[str, Path]
) -> None:
    """A whole file whose tensor is of another dtype, the tied embedding's too."""
    path = files["safetensors"]
    header, data = parts(path)
    layout, blob = {}, b""
    for key, info in header.items():
        if key == "__metadata__":
            continue
        start, end = info["data_offsets"]
        count = (end - start) // 4
        part = bytes(count * bits // 8) if key == name else data[start:end]
        layout[key] = {**info, "data_offsets": [len(blob), len(blob) + len(part)]}
        blob += part
    layout[name]["dtype"] = dtype
    path.write_bytes(join(layout, blob))
    assert refusal(path) == (
        f"{path}: tensor {name} is {dtype}, expected fp32, fp16, bf16 or float64; "
        "quantised weights are not supported"
    )


# ---- pickles -----------------------------------------------------------------------------------


def saved_as(path: Path, content: object) -> str | None:
    torch.save(content, path)
    return refusal(path)


def test_tensors_that_are_no_weights(files: dict[str, Path]) -> None:
    path = files["zip"]
    state = torch.load(path, weights_only=True)
    for tensor, what in (
        (torch.ones(8, dtype=torch.int32), "torch.int32"),
        (torch.ones(8, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(8, dtype=torch.complex64).conj(), "torch.complex64"),
        (torch.ones(8, dtype=torch.bool), "torch.bool"),
        (torch.ones(8).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    ):
        assert f"tensor {NORM} is {what}, expected" in str(saved_as(path, {**state, NORM: tensor}))
    for value in (torch.ones(8).to_sparse(), torch.ones(8, device="meta"), {"a": 1}, 1.0, None):
        found = saved_as(path, {**state, NORM: value})
        assert "holds something other than tensors by name: save the model's state_dict()" in str(
            found
        )
    assert "has shape (), expected (8,)" in str(saved_as(path, {**state, NORM: torch.tensor(1.0)}))
    for content in (None, [], {1: torch.ones(8)}, {"state_dict": state}, torch.ones(8)):
        assert "holds something other than tensors by name" in str(saved_as(path, content))
    assert "lacks tensors" in str(saved_as(path, {}))


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compressed: bool = False) -> None:
    """The records of a zip, changed."""
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w", kind) as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
    path.write_bytes(out.getvalue())


@pytest.mark.parametrize("kept", [0, 4], ids=["empty", "cut"])
def test_records_of_a_zip_that_are_cut(kept: int, files: dict[str, Path]) -> None:
    """torch maps from a record's start as much as the pickle states, into the next record."""
    path = files["zip"]
    rewritten(path, lambda name, content: content[:kept] if "/data/" in name else content)
    assert "is truncated or damaged (a tensor is cut)" in str(refusal(path))


def test_a_compressed_zip_holds_the_same_weights(files: dict[str, Path]) -> None:
    path = files["zip"]
    before = checkpoints.load(path.parent).model.state_dict()
    rewritten(path, lambda name, content: content, compressed=True)
    after = checkpoints.load(path.parent).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"hello world", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
    ],
    ids=["empty", "text", "start of a zip", "zip of nothing", "2 GiB of text", "deep"],
)  # fmt: skip
def test_files_that_torch_did_not_write(content: bytes, files: dict[str, Path]) -> None:
    files["zip"].write_bytes(content)
    found = refusal(files["zip"])
    assert found is not None
    assert "is truncated or damaged" in found
    assert "()" not in found


class Runs:
    """Makes a file when a careless loader unpickles it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("how", ["zip", "legacy", "protocol 2", "protocol 5", "inside a zip"])
def test_no_pickle_runs_code(how: str, files: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for payload in (
        Runs(os.system, f"touch {marker}"),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(exec, f"open({str(marker)!r}, 'w')"),
        Runs(torch.save, {}, str(marker)),
        Runs(os.mkdir, str(marker)),
    ):
        path = files["zip"]
        content = {"payload": payload, NORM: torch.ones(8)}
        if how.startswith("protocol"):
            path.write_bytes(pickle.dumps(content, protocol=int(how[-1])))
        elif how == "inside a zip":
            torch.save({NORM: torch.ones(8)}, path)
            data = pickle.dumps(content, protocol=2)
            rewritten(path, lambda name, old, new=data: new if name.endswith("data.pkl") else old)  # type: ignore[misc]
        else:
            torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
        found = refusal(path)
        assert found is not None
        assert "was not loaded" in found
        assert not marker.exists()


# ---- what stands in a file's place -------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_no_file_where_the_weights_should_be(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    config = (files["zip"].parent / "config.json").read_bytes()
    path = tmp_path / name
    for put, message in (
        (path.mkdir, "is a folder, expected a file"),
        (lambda: os.mkfifo(path), "is a FIFO, expected a file"),
        (lambda: path.symlink_to("absent"), "is a link to a file that is not there"),
        (lambda: path.symlink_to(name), "cannot be read (Too many levels of symbolic links)"),
    ):
        (tmp_path / "config.json").write_bytes(config)
        put()
        found = refusal(path)
        assert found is not None
        assert message in found
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": 5}, "names the shard '5', expected the plain name of a *.safetensors file"),
        ({"a": None}, "names the shard 'None'"),
        ({"a": "/etc/x.safetensors"}, "names the shard '/etc/x.safetensors'"),
        ({"a": "a\0.safetensors"}, "is missing, though"),
        ({"a": "\ud800.safetensors"}, "is missing, though"),
        ({"a": "x" * 300 + ".safetensors"}, "File name too long"),
        ({}, "holds no weight_map"),
        ([], "holds no weight_map"),
        (5, "holds no weight_map"),
    ],
    ids=str,
)
def test_an_index_that_is_damaged(
    weight_map: object, message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((files["zip"].parent / "config.json").read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert message in str(refusal(index))


# ---- any damage --------------------------------------------------------------------------------


def damaged(content: bytes, random: random.Random, header: int) -> bytes:
    """A file with some bytes flipped, most of them near its start, or cut, or with bytes put in."""
    how = random.randrange(4)
    at = random.randrange(len(content) if random.randrange(2) else min(header, len(content)))
    if how == 0:
        return content[:at]
    if how == 1:
        inserted = random.randbytes(random.randrange(1, 64))
        return content[:at] + inserted + content[at + random.choice((0, len(inserted))) :]
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        place = min(at + random.randrange(64), len(changed) - 1)
        changed[place] ^= random.choice((1 << random.randrange(8), random.randrange(1, 256)))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "config.json"])
def test_any_damage_is_one_line_or_none(kind: str, files: dict[str, Path]) -> None:
    """What is not refused loads: a number in a weight or a size that nothing depends on was changed."""
    path = files.get(kind, files["safetensors"])
    target = path.parent / kind if kind == "config.json" else path
    whole = target.read_bytes()
    refused = 0
    try:
        for seed in range(150):
            target.write_bytes(damaged(whole, random.Random(f"{kind} {seed}"), 3000))
            refused += refusal(path) is not None
    finally:
        target.write_bytes(whole)
    assert refused > 75
