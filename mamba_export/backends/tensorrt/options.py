"""How an engine is built, as asked for: the options of ``build`` and of ``bundle``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_export import contract, given
from mamba_export.backends.tensorrt.profiles import Profile, check_range, make_profiles, parse_range
from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.contract.program import split_axis
from mamba_export.errors import EngineError

if TYPE_CHECKING:  # it loads numpy, and the command line reads these defaults for its help
    from mamba_export.folder.metadata import Metadata


MAX_WORKSPACE_MIB = 1 << 24
"""16 TiB: more than any GPU has, and far from where TensorRT's count of bytes would end."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Args:
        precision: "fp32", "fp16" or "bf16", which must be the file's own; None takes it as it is.
        batch: minimum, optimum and maximum sequences a run.
        length: minimum, optimum and maximum steps a run, of the prefill profile; the decode profile has 1.
        past: minimum, optimum and maximum steps that were read before, of states that grow; None takes 0 to the
            maximum of ``length``, tuned for an eighth of that.
        sizes: minimum, optimum and maximum of other symbolic axes, by name.
        workspace_mib: limit of the scratch memory that a layer may take; None leaves it to TensorRT.
        timing_cache: file of kernel timings, read where it exists and written; TensorRT only.
        version_compatible: the engine runs on later TensorRT versions too; TensorRT only.
        hardware_compatible: the engine runs on every GPU from Ampere on; TensorRT only.
        plugin: our operators are plugins; False takes standard operators.
        runtime: "tensorrt", "tensorrt-rtx", or None for the best that is installed.
    """

    precision: str | None = None
    batch: tuple[int, int, int] = (1, 4, 16)
    length: tuple[int, int, int] = (1, 128, 4096)
    past: tuple[int, int, int] | None = None
    sizes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    plugin: bool = True
    runtime: str | None = None

    def profiles(self, metadata: Metadata) -> tuple[Profile, Profile]:
        """Prefill and decode of a program. EngineError where a range is wrong."""
        if not isinstance(self.sizes, Mapping):
            raise EngineError(f"sizes is {given.shown(self.sizes)}: give ranges by axis, a dict")
        sizes = {name: check_range(three, f"--size {name}=") for name, three in self.sizes.items()}
        axes = _other_axes(metadata)
        for name in sizes:
            if name not in axes:
                known = f"those there are: {', '.join(axes)}" if axes else "there is none"
                raise EngineError(
                    f"--size {name}: {metadata.folder} has no such axis beside batch and length; {known}"
                )
        longest = max(check_range(self.length, "--length"))
        usual = (0, max(1, longest // 8), longest)
        past = check_range(usual if self.past is None else self.past, "--past", minimum=0)
        grown = {state.grown_axis: past for state in metadata.states if state.grown_axis}
        return make_profiles(self.batch, self.length, {**sizes, **grown})


def _other_axes(metadata: Metadata) -> list[str]:
    """Symbolic axes that are neither batch nor length nor grow, by name."""
    grown = {state.grown_axis for state in metadata.states}
    values = (*metadata.inputs, *(state.past for state in metadata.states))
    names = [split_axis(size)[1] for v in values for size in v.shape if isinstance(size, str)]
    return [name for name in dict.fromkeys(names) if name not in (BATCH, LENGTH, *grown)]


def parse_workspace(text: str) -> int:
    """MiB of a size such as "512", "512M" or "4G"; EngineError where it is none."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "M")
    factor = {"M": 1, "G": 1 << 10}.get(unit)
    # Python reads no integer of thousands of digits; check_request knows the largest size.
    if factor is None or not number.isdecimal() or len(number) > 20 or int(number) == 0:
        raise EngineError(f"--workspace {text}: give MiB or GiB, as in 512M or 4G")
    return int(number) * factor


def as_options(options: BuildOptions | None) -> BuildOptions:
    """The options, or the defaults; EngineError for something else."""
    if options is None:
        return BuildOptions()
    if not isinstance(options, BuildOptions):
        raise EngineError(f"options is {given.shown(options)}: give a BuildOptions")
    return options


def check_request(metadata: Metadata, options: BuildOptions) -> None:
    """Refuse early what no engine can be built for. Raises EngineError."""
    if options.timing_cache is not None:
        given.path(options.timing_cache, "--timing-cache", EngineError)
    for name in ("plugin", "version_compatible", "hardware_compatible"):
        given.flag(getattr(options, name), name, EngineError)
    options.profiles(metadata)
    if options.precision is not None:
        given.one_of(options.precision, "precision", contract.DTYPES, EngineError)
    if options.precision not in (None, metadata.dtype):
        raise EngineError(
            f"{metadata.folder} is {metadata.dtype} and the file's dtype is the engine's: for "
            f"{options.precision} export the model again with --dtype {options.precision}"
        )
    if metadata.weights is not None:
        refused = {
            "--asymmetric": not metadata.weights.symmetric,
            "--pack-embeddings": metadata.weights.embeddings,
        }
        for option in [option for option, is_used in refused.items() if is_used]:
            raise EngineError(
                f"{metadata.folder} was exported with {option}, which TensorRT does not take: export the model "
                "again without"
            )
    if options.workspace_mib is not None:
        given.integer(options.workspace_mib, "--workspace", 1, MAX_WORKSPACE_MIB, EngineError)


def parse_sizes(texts: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Ranges by axis of options such as "height=224,224,512"; EngineError where one is none."""
    sizes = {}
    for text in texts:
        name, equals, numbers = text.partition("=")
        if not name or not equals:
            raise EngineError(
                f"--size {text}: give an axis and its range, as in height=224,224,512"
            )
        sizes[name] = parse_range(numbers, f"--size {name}=")
    return sizes
