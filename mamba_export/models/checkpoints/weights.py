"""Weight files of a folder -> tensors by name, read one at a time. No file's code ever runs."""

from __future__ import annotations

from pathlib import Path

from mamba_export.errors import CheckpointError
from mamba_export.models.checkpoints.fields import read_object
from mamba_export.models.checkpoints.safetensors_file import read_safetensors
from mamba_export.models.checkpoints.stored import StoredTensor
from mamba_export.models.checkpoints.torch_file import read_torch_file
from mamba_export.untrusted import is_there

# In the order in which transformers looks for its own.
_SINGLE_OR_INDEX = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.safetensors",  # Mistral's own
)


def open_weights(folder: Path) -> list[StoredTensor]:
    """Tensors of a folder's weight files, in the files' order; a name occurs once.

    Safetensors are preferred to pickles, which torch.load(weights_only=True, mmap=True) reads.

    Raises:
        CheckpointError: no weight file, or one that is damaged, missing, or more than tensors.
        OSError: a file cannot be read.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _files(folder):
        is_safe = path.suffix == ".safetensors"
        stored = read_safetensors(path) if is_safe else read_torch_file(path)
        tensors.update((tensor.name, tensor) for tensor in stored)
    return list(tensors.values())


def _files(folder: Path) -> list[Path]:
    """The weight file, or the shards that the index names."""
    for name in _SINGLE_OR_INDEX:
        path = folder / name
        if is_there(path, error=CheckpointError):
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
        if not is_there(shard, error=CheckpointError):
            raise CheckpointError(f"shard {shard} is missing, though {index.name} names it: add it")
        shards.append(shard)
    return shards
