"""``bundle``: a folder with all that a target needs to build its engine itself. Needs no TensorRT here."""

from __future__ import annotations

import shutil
from pathlib import Path

from mamba_export import given
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
from mamba_export.files import new_folder
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
        force: replace an existing folder.

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
    with new_folder(out, force=force) as target:
        for path in sorted(metadata.folder.iterdir()):
            if path.suffix in _KEPT_SUFFIXES and path.name not in _NOT_WRITTEN_BY_EXPORT:
                shutil.copyfile(path, target / path.name)
        (target / GRAPH_FILE).write_bytes(graph.SerializeToString())
        write_json(target / DESCRIPTION_FILE, description.to_json())
        (target / DEPLOY_FILE).write_text(deploy_text(metadata, options), encoding="utf-8")
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
        source = root / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("build", "__*__"))
        else:
            shutil.copyfile(source, target / name)
