"""``bundle``: a folder with all that a target needs to build its engine itself. Needs no TensorRT here."""

from __future__ import annotations

from pathlib import Path

from mamba_export import contract, given
from mamba_export.backends.tensorrt.deploy import PLUGIN_SOURCE, deploy_text, why_no_line
from mamba_export.backends.tensorrt.description import describe
from mamba_export.backends.tensorrt.names import (
    DEPLOY_FILE,
    DESCRIPTION_FILE,
    GRAPH_FILE,
    TENSORRT,
)
from mamba_export.backends.tensorrt.options import BuildOptions, as_options, check_request
from mamba_export.backends.tensorrt.surgery import described_graph
from mamba_export.errors import EngineError
from mamba_export.files import check_inside, copy_file, new_folder, write_bytes, write_text
from mamba_export.folder.metadata import read_metadata, write_json
from mamba_export.libraries import TRT_PLUGIN

_SOURCES = ("CMakeLists.txt", "plugins")
_NOT_WRITTEN_BY_EXPORT = {DEPLOY_FILE, DESCRIPTION_FILE, GRAPH_FILE}
_KEPT_SUFFIXES = (".onnx", ".data", ".json", ".model", ".txt")


def bundle(
    folder: str | Path,
    out: str | Path,
    options: BuildOptions | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write a bundle: graph, weights, metadata, tokenizer, plugin sources, engine.json and DEPLOY.md.

    engine.json describes the engine that DEPLOY.md's command builds; what only the build knows is null.

    Args:
        folder: what ``export`` wrote.
        out: folder to write; it appears whole or not at all.
        options: of the engine; ``runtime`` is TensorRT's, whatever they say.
        force: replace an existing folder that this or `export` wrote, or an empty one; never one that is,
            holds or lies in ``folder``.

    Returns:
        The folder.

    Raises:
        MambaExportError: bad input, or the plugin's sources are not here; nothing is written.
    """
    options = as_options(options)
    force = given.flag(force, "force", EngineError)
    out = given.path(out, "the bundle's folder", EngineError)
    metadata = read_metadata(folder)
    check_request(metadata, options)
    if problem := why_no_line(metadata, options):
        raise EngineError(problem)
    sources = _sources() if options.plugin else None
    with new_folder(
        out, marker=contract.METADATA_FILE, force=force, sources=[metadata.folder]
    ) as target:
        graph, nodes = described_graph(metadata, plugin=options.plugin)
        description = describe(
            metadata,
            runtime=TENSORRT.name,
            profiles=options.profiles(metadata),
            plugins=nodes if options.plugin else {},
            plugin_library=TRT_PLUGIN.file if options.plugin else None,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
        )
        for path in sorted(metadata.folder.iterdir()):
            kept = path.suffix in _KEPT_SUFFIXES and path.name not in _NOT_WRITTEN_BY_EXPORT
            if kept and path.is_file():
                check_inside(path, metadata.folder, error=EngineError)
                copy_file(path, target / path.name)
        write_bytes(target / GRAPH_FILE, graph.SerializeToString())
        write_json(target / DESCRIPTION_FILE, description.to_json())
        write_text(target / DEPLOY_FILE, deploy_text(metadata, options))
        if sources is not None:
            _copy_sources(sources, target / PLUGIN_SOURCE)
    return out


def _sources() -> Path:
    """Where the plugin's sources are: in the package, or in the checkout around it."""
    package = Path(__file__).resolve().parents[2]
    for root in (package / "sources", package.parent):
        if all((root / name).exists() for name in (*_SOURCES, "plugins/tensorrt")):
            return root
    raise EngineError(
        "the plugin's sources are not installed with mamba_export: run this from its sources, "
        "or --no-plugin"
    )


def _copy_sources(root: Path, target: Path) -> None:
    target.mkdir()
    for name in _SOURCES:
        _copy(root / name, target / name)


def _copy(source: Path, target: Path) -> None:
    if not source.is_dir():
        copy_file(source, target)
    elif source.name != "build" and not source.match("__*__"):
        target.mkdir()
        for path in source.iterdir():
            _copy(path, target / path.name)
