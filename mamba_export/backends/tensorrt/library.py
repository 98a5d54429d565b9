"""Finding and importing TensorRT or TensorRT-RTX, and its messages as one clear line.

TensorRT-RTX's parser opens ``libtensorrt_rtx.so`` when it meets a plugin, and ends the process where there
is no file of that unversioned name, which its wheels do not have. The parser looks beside itself first, so it
is loaded here through a folder of links that has the name.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import importlib.util
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mamba_export import given, requirements
from mamba_export.backends.tensorrt.names import KINDS, TENSORRT, TENSORRT_RTX, Kind
from mamba_export.errors import EngineError, first_line
from mamba_export.interrupts import deferred

_RTX_LIBRARIES = "tensorrt_rtx_libs"
_RTX_CORE = "libtensorrt_rtx.so"
_RTX_PARSER = "libtensorrt_onnxparser_rtx.so"


@dataclass(frozen=True)
class Library:
    """An imported runtime.

    Args:
        kind: which of the two.
        module: its Python API.
        logger: the one logger of the process, which keeps messages instead of printing them.
    """

    kind: Kind
    module: Any
    logger: Any

    @property
    def version(self) -> str:
        """Its version, "major.minor.patch"."""
        return ".".join(str(self.module.__version__).split(".")[:3])

    def __str__(self) -> str:
        return f"{self.kind.title} {self.version}"

    def reason(self) -> str:
        """What went wrong since the last call, in one line; the logger is emptied."""
        errors = [_plain(message) for message in self.logger.take_errors()]
        return errors[0] if errors else "it gives no reason"


def is_installed(kind: Kind) -> bool:
    """Whether a runtime can be imported; it is not."""
    return requirements.is_installed(kind.module)


def choose(option: str | None, gpu_present: bool) -> Kind:
    """The kind that ``--runtime`` asks for.

    Args:
        option: "tensorrt", "tensorrt-rtx", or None or "auto" for the best that is installed: TensorRT
            where a GPU is (its builder needs one), else TensorRT-RTX.
        gpu_present: whether this machine has an NVIDIA GPU.

    Raises:
        EngineError: the option is unknown, or neither is installed.
    """
    if option not in (None, "auto"):
        known = {kind.option: kind for kind in KINDS}
        return known[given.one_of(option, "runtime", ("auto", *known), EngineError)]
    order = (TENSORRT, TENSORRT_RTX) if gpu_present else (TENSORRT_RTX, TENSORRT)
    for kind in order:
        if is_installed(kind):
            return kind
    raise EngineError(
        f"neither TensorRT nor TensorRT-RTX is installed: {TENSORRT_RTX.install}, "
        "or --bundle FOLDER to build on the target"
    )


@functools.cache
def load(kind: Kind) -> Library:
    """Import a runtime, once.

    Raises:
        EngineError: it is not installed, is older than what plugins need, or does not load.
    """
    if not is_installed(kind):
        raise EngineError(f"{kind.title} is not installed: {kind.install}")
    if kind is TENSORRT_RTX:
        _link_rtx()
    try:
        module = importlib.import_module(kind.module)
    except (ImportError, OSError) as error:
        raise EngineError(f"{kind.title} cannot be loaded: {first_line(error)}") from error
    library = Library(kind, module, _logger(module))
    if kind is TENSORRT and tuple(map(int, library.version.split(".")[:2])) < (10, 1):
        raise EngineError(
            f"{library} is too old: its parser cannot use our plugins; 10.1 or newer is needed"
        )
    return library


def _link_rtx() -> None:
    """Load TensorRT-RTX's parser from a folder where it finds the unversioned name."""
    spec = importlib.util.find_spec(_RTX_LIBRARIES)
    if spec is None or spec.origin is None:
        return  # not from wheels: a system's installation has the name
    folder = Path(spec.origin).parent
    if (folder / _RTX_CORE).exists():
        return
    core, parser = (
        next(iter(sorted(folder.glob(f"{name}.*"))), None) for name in (_RTX_CORE, _RTX_PARSER)
    )
    if core is None or parser is None:
        return  # an unknown layout: let the import try
    if _is_loaded(parser):  # tensorrt_rtx was imported, or tensorrt_rtx_libs alone
        try:
            ctypes.CDLL(_RTX_CORE)  # somebody arranged for the name already
        except OSError:
            raise EngineError(
                "tensorrt_rtx was imported before mamba_export could load it, and its parser would end the "
                f"process at the first plugin, where it finds no {_RTX_CORE}: build an engine before importing "
                "it, or put a link of that name on LD_LIBRARY_PATH"
            ) from None
        return
    try:
        with deferred():
            links = Path(tempfile.mkdtemp(prefix="mamba_export-rtx-"))
            atexit.register(shutil.rmtree, links, ignore_errors=True)
        for name, target in ((_RTX_CORE, core), (core.name, core), (parser.name, parser)):
            (links / name).symlink_to(target)
    except OSError as error:
        raise EngineError(
            f"no temporary folder can be made ({error.strerror}): set TMPDIR to one that can be written"
        ) from error
    # The wheel's own import finds both loaded already: a library is known by its file, not by its path.
    for name in (core.name, parser.name):
        ctypes.CDLL(str(links / name))


def _is_loaded(file: Path) -> bool:
    """Whether this process has a shared library loaded; it is not loaded for the question."""
    try:
        ctypes.CDLL(str(file), mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def _logger(module: Any) -> Any:
    class Messages(module.ILogger):
        """Keeps errors; TensorRT has one logger a process."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                self._errors.append(message)

        def take_errors(self) -> list[str]:
            errors, self._errors = self._errors, []
            return errors

    return Messages()


def _plain(message: str) -> str:
    """A message without TensorRT's codes and places in its source."""
    line = " ".join(message.split())
    line = re.sub(r"^\S+: Error Code \d+: ", "", line)
    line = re.sub(r"^\[\S+\] Error Code \d+: ", "", line)
    line = re.sub(r"\(?\s*In \S+ at /?_src/\S+\s*", "", line)
    return line.strip(" .") or "it gives no reason"
