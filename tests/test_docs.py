"""README, CONTRIBUTING, CHANGELOG and docs/: links lead somewhere, and what they name exists."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest
import typer

from mamba_export.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(page.read_text("utf-8")) if found == language]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_to_a_file(name: str) -> None:
    page = ROOT / name
    for link in LINK.findall(BLOCK.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name}: {link}"
        assert target.is_relative_to(ROOT), f"{name}: {link} leaves the repository"
        if anchor:
            assert anchor in anchors(target), f"{name}: {link}"


def test_every_page_of_docs_is_reached_from_the_readme_or_its_index() -> None:
    linked = set()
    for page in (ROOT / "README.md", ROOT / "docs/README.md"):
        linked |= {(page.parent / link).resolve() for link in LINK.findall(page.read_text("utf-8"))}
    assert set(ROOT.glob("docs/*.md")) - linked <= {ROOT / "docs/README.md"}


@pytest.mark.parametrize("name", NAMES)
def test_python_blocks_compile_and_name_what_the_package_has(name: str) -> None:
    for code in blocks(ROOT / name, "python"):
        for node in ast.walk(ast.parse(code, name)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mamba_export"):
                module = importlib.import_module(str(node.module))
                for one in node.names:
                    assert hasattr(module, one.name), f"{name}: {node.module}.{one.name}"
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "mamba_export"
            ):
                module = importlib.import_module("mamba_export")
                assert node.attr in dir(module), f"{name}: mamba_export.{node.attr}"


def options(command: str | None) -> set[str]:
    """Long and short options of one command, or of all of them."""
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    chosen = commands.values() if command is None else [commands[command]]
    return {
        name
        for one in chosen
        for parameter in one.params
        for name in (*parameter.opts, *parameter.secondary_opts, "--help")
    }


@pytest.mark.parametrize("name", NAMES)
def test_command_lines_use_options_that_there_are(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    for command, rest in re.findall(r"mamba-export ([a-z-]+)([^`\n|]*)", text):
        known = options(command)
        used = re.findall(r"(?<![\w-])(--[a-z][a-z-]+|-[a-z])\b", rest.partition("#")[0])
        assert set(used) <= known, f"{name}: mamba-export {command} has no {set(used) - known}"


OF_OTHER_PROGRAMS = {
    "docs/tasks.md": {"--checkpoint", "--length", "--steps"},
    "docs/tensorrt.md": {"--engine", "--prompt", "--max-new-tokens", "--tokens", "--bench"},
}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "docs/performance.md"])
def test_options_in_the_text_belong_to_a_command(name: str) -> None:
    text = BLOCK.sub("", (ROOT / name).read_text("utf-8"))
    for span in re.findall(r"`(--[a-z][a-z-]+)", text):
        assert span in options(None) | OF_OTHER_PROGRAMS.get(name, set()), f"{name}: {span}"


@pytest.mark.parametrize("name", NAMES)
def test_paths_in_the_text_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    for path in re.findall(r"`((?:mamba_export|plugins|tools|tests|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{name}: {path}"
