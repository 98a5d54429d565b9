"""Weight files of a folder -> tensors by name, read one at a time. No file's code ever runs."""

from __future__ import annotations

import errno
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mamba_export.errors import CheckpointError, first_line
from mamba_export.models.checkpoints.fields import read_object

# In the order in which transformers looks for them.
_SINGLE_OR_INDEX = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its name and shape there, and how to read it (whatever its dtype)."""

    file: Path
    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def open_weights(folder: Path) -> list[StoredTensor]:
    """Tensors of a folder's weight files, in the files' order; a name occurs once.

    Safetensors are preferred to pickles, which torch.load(weights_only=True, mmap=True) reads.

    Raises:
        CheckpointError: no weight file, or one that is damaged, missing, or more than tensors.
        OSError: a file cannot be read.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _files(folder):
        stored = _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)
        tensors.update((tensor.name, tensor) for tensor in stored)
    return list(tensors.values())


def _files(folder: Path) -> list[Path]:
    """The weight file, or the shards that the index names."""
    for name in _SINGLE_OR_INDEX:
        path = folder / name
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    expected = ", ".join(_SINGLE_OR_INDEX)
    raise CheckpointError(f"{folder} holds no weights: expected one of {expected}")


def _shards(index: Path) -> list[Path]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} holds no weight_map: fetch the file again")
    suffix = ".safetensors" if index.name.startswith("model.") else ".bin"
    shards = []
    for name in sorted(set(map(str, weight_map.values()))):
        # A name with a path in it could point anywhere on the disk.
        if Path(name).name != name or not name.endswith(suffix):
            raise CheckpointError(
                f"{index} names the shard {name!r}, expected the plain name of a *{suffix} file"
            )
        shard = index.parent / name
        if not shard.is_file():
            raise CheckpointError(f"shard {shard} is missing, though {index.name} names it: add it")
        shards.append(shard)
    return shards


def _safetensors(path: Path) -> list[StoredTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    except SafetensorError as error:
        raise _damaged(path, error) from error
    return [
        StoredTensor(path, name, shape, partial(_read_safetensors, path, name))
        for name, shape in shapes.items()
    ]


def _read_safetensors(path: Path, name: str) -> Tensor:
    # The file is opened anew for each tensor: what an opening has read stays mapped, and counts as
    # ours, until the last of its tensors is gone. It costs a millisecond.
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _pickle(path: Path) -> list[StoredTensor]:
    state = _torch_load(path)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for name, value in state.items()
    ):
        raise CheckpointError(
            f"{path} holds something other than tensors by name: save the model's state_dict() alone"
        )
    return [
        StoredTensor(path, name, tuple(tensor.shape), tensor.detach)
        for name, tensor in state.items()
    ]


def _torch_load(path: Path) -> object:
    """torch.load that constructs tensors and plain containers, and nothing else.

    Raises:
        CheckpointError: the pickle asks for anything else, or the file is damaged.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # older than PyTorch 1.6: no zip, cannot be mapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old protocols and of TorchScript
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    # A damaged file makes torch's parser stumble in many ways: RuntimeError, EOFError, KeyError...
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: nothing to map
            raise
        culprit = _refused(error)
        if culprit is None:
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"{path} is refused and was not loaded: it holds code or objects ({culprit}), "
            "not tensors alone; ask its author for safetensors"
        ) from error


def _refused(error: Exception) -> str | None:
    """What weights_only refused to construct, or None where the error is about something else."""
    if "TorchScript" in str(error):
        return "TorchScript"
    if not isinstance(error, pickle.UnpicklingError):
        return None
    found = re.search(r"(?:GLOBAL|unrecognized function|but got) (\S+(?: '[^']+'>)?)", str(error))
    return found and found.group(1)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return CheckpointError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull`")
    # weights_only's reason comes after a paragraph of advice not to heed it.
    reason = first_line(error, after="WeightsUnpickler error:")[:160]
    foreign = " or no file of torch.save" if isinstance(error, pickle.UnpicklingError) else ""
    return CheckpointError(
        f"{path} is truncated or damaged{foreign} ({reason}) and was not loaded: fetch it again"
    )
