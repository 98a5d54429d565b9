"""A checkpoint -> MambaLM: names and shapes are checked first, then tensors are read one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mamba_export.errors import CheckpointError
from mamba_export.models import MambaLM, ModelConfig, cast
from mamba_export.models.checkpoints.families import read_config
from mamba_export.models.checkpoints.family import Family
from mamba_export.models.checkpoints.naming import EMBEDDING, HEAD
from mamba_export.models.checkpoints.source import locate, tokenizer_files
from mamba_export.models.checkpoints.stored import StoredTensor
from mamba_export.models.checkpoints.weights import open_weights
from mamba_export.printing import printable

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    model: in eval mode, on the CPU; matrices in the dtype asked for, channel parameters in fp32.
    config: the model's configuration.
    folder: where the files are (the hub's cache for a downloaded one).
    source: what was passed to ``load``.
    format: the family's name: "transformers", "state-spaces" or "mistral".
    architecture: the family's name of the model: "mamba", "falcon_mamba" or "mamba2".
    tokenizer_files: the tokenizer's and the generation configuration's files that the folder holds.
    bos_token_id: token that starts a text, or None.
    pad_token_id: token that fills rows which have ended, or None.
    """

    model: MambaLM
    config: ModelConfig
    folder: Path
    source: str
    format: str
    architecture: str
    tokenizer_files: list[Path]
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    @property
    def eos_token_id(self) -> int | tuple[int, ...] | None:
        """Token that ends a text, several of which any one does, or None."""
        return self.config.eos_token_id


def load(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Load a checkpoint: transformers' Mamba, FalconMamba or Mamba2, state-spaces' or Mistral's own format.

    Args:
        source: a local folder, or a Hugging Face id (owner/name) that is no existing path.
        dtype: the matrices', embedding's and norms'. A_log, D, the convolution, the step size's bias and
            a gated norm stay in fp32, straight from the file's dtype (``mamba_export.models.cast``'s rule).
        progress: called with a line at each stage. Nothing is printed.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, unsafe or of another architecture.
        ValueError: ``dtype`` is not fp32, fp16, bf16 or float64.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype}, expected one of {', '.join(map(str, _DTYPES))}")
    try:
        folder = locate(source, progress)
        family, description = read_config(folder)
        tokenizer = tokenizer_files(folder)
        stored = _by_our_names(family, open_weights(folder))
        model = assemble(folder, family, description.config, stored, dtype, progress)
    except OSError as error:
        where = error.filename or source
        raise CheckpointError(f"cannot read {where}: {error.strerror or error}") from error
    return Checkpoint(
        model=model,
        config=model.config,
        folder=folder,
        source=str(source),
        format=family.name,
        architecture=description.architecture,
        tokenizer_files=tokenizer,
        bos_token_id=description.bos_token_id,
        pad_token_id=description.pad_token_id,
    )


def _by_our_names(family: Family, tensors: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors by MambaLM's names. CheckpointError where two stand for one parameter."""
    stored: dict[str, StoredTensor] = {}
    for tensor in tensors:
        other = stored.setdefault(family.our_name(tensor.name), tensor)
        if other is not tensor:
            raise CheckpointError(
                f"{tensor.file}: tensors {other.name} and {tensor.name} both stand for "
                f"{family.file_name(family.our_name(tensor.name))}: leave one of them out"
            )
    return stored


def _settle_head(config: ModelConfig, stored: dict[str, StoredTensor]) -> ModelConfig:
    """Drop a tied head from ``stored``. As in transformers the files overrule the config:

    a head without an embedding takes the embedding's place, and two that differ are not tied.
    """
    if not config.tie_embeddings or HEAD not in stored:
        return config
    if EMBEDDING not in stored:
        stored[EMBEDDING] = stored.pop(HEAD)
        return config
    embedding, head = stored[EMBEDDING], stored[HEAD]
    comparable = embedding.dtype == head.dtype and embedding.dtype in _DTYPES
    if not comparable or not torch.equal(embedding.read(), head.read()):
        return config.replace(tie_embeddings=False)
    del stored[HEAD]
    return config


def assemble(
    folder: Path,
    family: Family,
    config: ModelConfig,
    stored: dict[str, StoredTensor],
    dtype: torch.dtype,
    progress: Callable[[str], None] | None,
) -> MambaLM:
    """The model of a configuration and stored tensors, by our names.

    Args:
        folder: for errors.
        family: the tensors'.
        config: of the model; its ``tie_embeddings`` gives way to the tensors.
        stored: a tied head may be dropped from it.
        dtype, progress: see ``load``.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape or an unknown dtype.
    """
    config = _settle_head(config, stored)
    for layer in range(config.n_layer):  # before a model of a billion layers is built
        norm = f"backbone.layers.{layer}.norm.weight"
        if norm not in stored:
            raise _missing(folder, family, [norm])
    try:
        with torch.device("meta"):
            model = MambaLM(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise CheckpointError(f"{folder / 'config.json'} asks for impossible sizes") from error
    cast(model, dtype)  # no weights yet: it leaves on each parameter the dtype that it is to have
    parameters = dict(model.named_parameters())
    _check(folder, family, parameters, stored)

    # File by file, so that progress says something, and tensor by tensor, so that beside the model no
    # more than one tensor is in memory (a pickle's pages stay mapped, for the system to take back).
    files = list(dict.fromkeys(tensor.file for tensor in stored.values()))
    for index, file in enumerate(files):
        if progress is not None:
            progress(f"reading {file.name} ({index + 1} of {len(files)})")
        for name in [name for name in parameters if stored[name].file == file]:
            _assign(model, name, _read(stored[name], parameters[name].dtype))
    return model.eval()


def _check(
    folder: Path,
    family: Family,
    parameters: dict[str, nn.Parameter],
    stored: dict[str, StoredTensor],
) -> None:
    """The files hold the model's tensors, no others, in the model's shapes."""
    missing = [name for name in parameters if name not in stored]
    if missing:
        raise _missing(folder, family, missing)
    unexpected = [tensor.name for name, tensor in stored.items() if name not in parameters]
    if unexpected:
        raise CheckpointError(
            f"{folder} holds tensors that its config.json has no place for: {_few(unexpected)}; "
            "is the config of another model, or an option in it wrong?"
        )
    for name, parameter in parameters.items():
        tensor, expected = stored[name], tuple(parameter.shape)
        if tensor.shape != expected:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} has shape {tensor.shape}, expected "
                f"{expected} from config.json; is the config of another model?"
            )
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} is {tensor.dtype}, expected fp32, fp16, bf16 or "
                "float64; quantised weights are not supported"
            )


def _missing(folder: Path, family: Family, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{folder} lacks tensors that its config.json asks for: {_few(map(family.file_name, names))}; "
        "is the config of another model, or a file incomplete?"
    )


def _few(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(printable(name)[:120] for name in names[:3]) + rest


def _read(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """The tensor in ``dtype``, in memory of its own: the file may change or go once it is read."""
    tensor = stored.read()
    return torch.empty(tensor.shape, dtype=dtype).copy_(tensor)


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(tensor))
