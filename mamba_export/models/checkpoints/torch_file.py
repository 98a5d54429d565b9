"""A file of torch.save -> tensors by name. Its code never runs."""

from __future__ import annotations

import errno
import pickle
import re
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from mamba_export.errors import CheckpointError
from mamba_export.models.checkpoints.stored import StoredTensor, damaged
from mamba_export.untrusted import open_file, utf8_name


def read_torch_file(path: Path) -> list[StoredTensor]:
    """Tensors of a file, in its order, through torch.load(weights_only=True), mapped where that is possible.

    Raises:
        CheckpointError: it holds more than tensors by name, is damaged, or cannot be read.
    """
    state = _torch_load(path)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value)
        for name, value in state.items()
    ):
        raise CheckpointError(
            f"{path} holds something other than tensors by name: save the model's state_dict() alone"
        )
    return [
        StoredTensor(path, name, tuple(tensor.shape), tensor.dtype, tensor.detach)
        for name, tensor in state.items()
    ]


def _is_plain(tensor: Tensor) -> bool:
    """Whether it has a number an element: it is neither sparse nor "meta", of a model never loaded."""
    return tensor.layout == torch.strided and tensor.device.type == "cpu"


def _torch_load(path: Path) -> object:
    """torch.load that constructs tensors and plain containers, and nothing else.

    Raises:
        CheckpointError: the pickle asks for anything else, or the file is damaged.
    """
    with open_file(path, error=CheckpointError) as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # older than PyTorch 1.6: no zip, cannot be mapped
    try:
        sizes = _zip_storages(path) if is_zip else None
        with warnings.catch_warnings(), utf8_name(path, error=CheckpointError) as name:
            warnings.simplefilter("ignore")  # torch warns of old protocols and of TorchScript
            loaded = torch.load(name, map_location="cpu", weights_only=True, mmap=sizes is not None)
        if sizes is not None:
            _check_storages(loaded, sizes)
        return loaded
    # A damaged file makes torch's parser stumble in many ways: RuntimeError, EOFError, KeyError...
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: nothing to map
            raise
        culprit = _refused(error)
        if culprit is None:
            raise damaged(path, error) from error
        raise CheckpointError(
            f"{path} is refused and was not loaded: it holds code or objects ({culprit}), "
            "not tensors alone; ask its author for safetensors"
        ) from error


def _zip_storages(path: Path) -> Counter[int] | None:
    """How many storages of which size a file of torch.save holds; None where it was compressed afterwards.

    torch maps a storage from where its record starts, at the size that the pickle states: of a record that is
    shorter or compressed it would read other bytes than the tensor's, and say nothing.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        return None
    return Counter(record.file_size for record in records if "/data/" in record.filename)


def _check_storages(state: object, sizes: Counter[int]) -> None:
    """Raise ValueError where tensors state storages that a file does not hold whole."""
    tensors = state.values() if isinstance(state, dict) else ()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if isinstance(tensor, Tensor) and _is_plain(tensor)
    }
    if Counter(size for size in storages.values() if size) - sizes:
        raise ValueError("a tensor is cut")


def _refused(error: Exception) -> str | None:
    """What weights_only refused to construct, or None where the error is about something else."""
    if "TorchScript" in str(error):
        return "TorchScript"
    if not isinstance(error, pickle.UnpicklingError):
        return None
    found = re.search(r"(?:GLOBAL|unrecognized function|but got) (\S+(?: '[^']+'>)?)", str(error))
    return found and found.group(1)
