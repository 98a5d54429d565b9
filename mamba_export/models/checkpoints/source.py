"""Where a checkpoint is: a local folder, or a Hugging Face id, downloaded to the hub's cache."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mamba_export import given
from mamba_export.errors import CheckpointError, named_first_line
from mamba_export.files import check_inside
from mamba_export.models.checkpoints.generation_config import FILE as GENERATION_CONFIG
from mamba_export.untrusted import check_file, is_folder, is_there, paths_in

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    GENERATION_CONFIG,
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""What an exported folder takes over from the checkpoint's, where it exists."""
_TEMPLATES = "additional_chat_templates"
"""A folder beside them, of templates with names; see ``name_in_output``."""

_TOKENIZER_PATTERNS = [*TOKENIZER_FILES, f"{_TEMPLATES}/*.jinja"]
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SAFETENSORS = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
_PICKLES = ["pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"]
_MISTRALS = ["params.json", "consolidated.safetensors"]


def locate(source: str | Path, progress: Callable[[str], None] | None = None) -> Path:
    """Folder of a checkpoint, downloaded where ``source`` is a Hugging Face id.

    The network is asked only for a string of the form owner/name that is no existing path.

    Raises:
        CheckpointError: no such folder, or the download failed.
        OSError: the path cannot be looked at.
    """
    return _locate(source, _download, progress)


def locate_tokenizer(
    source: str | Path, progress: Callable[[str], None] | None = None
) -> list[Path]:
    """Tokenizer files of a folder or a Hugging Face repository, whatever model it holds.

    A path of a tokenizer.json stands for its folder. Which token ends a text is the checkpoint's, so its
    generation_config.json is none of them.

    Raises:
        CheckpointError: no such folder, the download failed, or there is no tokenizer.json.
        OSError: the path cannot be looked at.
    """
    if not isinstance(source, str):  # a text may be the id of a repository
        source = given.path(source, "the tokenizer", CheckpointError)
    if not str(source):
        raise CheckpointError(
            "the tokenizer's path is empty: pass a folder that holds a tokenizer.json, or a "
            "Hugging Face id"
        )
    path = given.path(source, "the tokenizer", CheckpointError)
    if is_there(path, error=CheckpointError) and not is_folder(path, error=CheckpointError):
        if path.name != TOKENIZER_FILES[0]:
            raise CheckpointError(
                f"{source} is a file: pass the folder that holds {TOKENIZER_FILES[0]}"
            )
        source = path.parent

    def download(hub_id: str, progress: Callable[[str], None] | None) -> Path:
        return _snapshot(hub_id, _TOKENIZER_PATTERNS, progress)

    files = tokenizer_files(_locate(source, download, progress))
    files = [file for file in files if file.name != GENERATION_CONFIG]
    if not any(file.name == TOKENIZER_FILES[0] for file in files):
        raise CheckpointError(f"{source} holds no {TOKENIZER_FILES[0]}: pass a folder that does")
    return files


def _locate(
    source: str | Path,
    download: Callable[[str, Callable[[str], None] | None], Path],
    progress: Callable[[str], None] | None,
) -> Path:
    if not isinstance(source, str):  # a text may be the id of a repository
        source = given.path(source, "the checkpoint", CheckpointError)
    if not str(source):
        raise CheckpointError("the checkpoint's path is empty: pass a folder or a Hugging Face id")
    path = given.path(source, "the checkpoint", CheckpointError)
    if is_folder(path, error=CheckpointError):
        return path
    if is_there(path, error=CheckpointError):
        raise CheckpointError(f"{source} is a file: pass the folder that holds config.json")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"{source}: no such folder; pass an existing one, or a Hugging Face id (owner/name)"
        )
    return download(source, progress)


def _download(hub_id: str, progress: Callable[[str], None] | None) -> Path:
    """Snapshot of a Hugging Face repository: safetensors, or pickles and Mistral's own where it has none."""
    wanted = ["config.json", *_TOKENIZER_PATTERNS]
    folder = _snapshot(hub_id, [*wanted, *_SAFETENSORS], progress)
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(hub_id, [*wanted, *_PICKLES, *_MISTRALS], progress)
    return folder


def _snapshot(hub_id: str, files: list[str], progress: Callable[[str], None] | None) -> Path:
    from huggingface_hub import (
        snapshot_download,  # takes a while to import, and is not always needed
    )

    if progress is not None:
        progress(f"downloading {hub_id} from the Hugging Face Hub")
    try:
        with _quiet_hub():
            return Path(snapshot_download(hub_id, allow_patterns=files))
    # The hub raises its HTTP client's errors too, and the client differs between its versions.
    except Exception as error:
        raise CheckpointError(
            f"download of {hub_id!r} from the Hugging Face Hub failed: {_reason(error)}; "
            "no local folder has that name either: pass the path of one that holds the checkpoint"
        ) from error


def _reason(error: Exception) -> str:
    """Why a download failed, in a few words."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated (accept its terms on its page, then `hf auth login`)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or it is private"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set and the local cache lacks it"
        return "the Hub cannot be reached and the local cache lacks it"
    return named_first_line(error)[:200]


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Silence the hub's progress bars, log and warnings: what is shown is the caller's business."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    verbosity, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        if bars:
            disable_progress_bars()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                enable_progress_bars()


def check_links(files: Iterable[Path]) -> None:
    """Refuse tokenizer files that are links out of their folder, for they are copied.

    Raises:
        CheckpointError: one leads elsewhere than into its folder, or the hub's cache of its repository.
    """
    for file in files:
        folder = file.parents[len(name_in_output(file).parts) - 1]
        folders = [folder]
        if (
            folder.parent.name == "snapshots"
        ):  # of the hub's cache: models--OWNER--NAME/snapshots/REVISION
            folders.append(folder.parent.parent / "blobs")
        check_inside(file, *folders, error=CheckpointError)


def tokenizer_files(folder: Path) -> list[Path]:
    """Those of ``TOKENIZER_FILES`` that a folder holds, in that order, and its named chat templates.

    Raises:
        CheckpointError: one is no regular file, or cannot be read.
    """
    named = [folder / name for name in TOKENIZER_FILES]
    found = [path for path in named if is_there(path, error=CheckpointError)]
    templates = paths_in(folder / _TEMPLATES, error=CheckpointError)
    found += [path for path in templates if path.suffix == ".jinja"]
    for path in found:
        check_file(path, error=CheckpointError)
    return found


def name_in_output(file: Path) -> Path:
    """Where one of ``tokenizer_files`` lies in an exported folder, as in the checkpoint's."""
    is_template = file.parent.name == _TEMPLATES and file.suffix == ".jinja"
    return Path(_TEMPLATES, file.name) if is_template else Path(file.name)
