"""The plugin library in TensorRT's own registry: NVIDIA's lean runtime, without a builder, version by version.

Its registry works without a GPU; creating its Runtime needs one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorrt_harness import driver, load_in_registry
from tensorrt_harness.described import (
    OPERATORS,
    T_TYPES,
    VERSION,
    attributes_of,
    described,
    fields,
    flags_of,
    text_of,
)
from tensorrt_harness.driver import Tensor

from mamba_export import contract

ROOT = Path(__file__).parents[1]
FOLDERS = sorted((ROOT / ".tensorrt-lean").glob("[0-9]*"))
SCRIPT = Path(load_in_registry.__file__)

pytestmark = [
    pytest.mark.skipif(not driver.is_built(), reason=driver.NOT_BUILT),
    pytest.mark.skipif(
        not FOLDERS, reason="no wheels of TensorRT's lean runtime: `make .tensorrt-lean` gets them"
    ),
]
EVERY_VERSION = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def wrong_each(T: int, op: str) -> list[tuple[int, list[Tensor], bool]]:
    """For each position: the contract's tensors, then another dtype there, then another format."""
    inputs, outputs = described(op, T)
    right = [*inputs, *outputs]
    queries = []
    for position, tensor in enumerate(right):
        changed = (
            tensor,
            replace(tensor, type=driver.INT32),
            replace(tensor, format=driver.LINEAR + 1),
        )
        for index, one in enumerate(changed):
            queries.append((position, [*right[:position], one, *right[position + 1 :]], index == 0))
    return queries


def queries_of(op: str) -> list[tuple[int, list[Tensor], bool]]:
    return [query for T in T_TYPES for query in wrong_each(T, op)]


def asked_of(op: str) -> dict[str, Any]:
    return {
        "fields": load_in_registry.plain_fields(fields(op, **{flags_of(op)[-1]: 1})),
        "bad_fields": load_in_registry.plain_fields(fields(op, **{flags_of(op)[-1]: 2})),
        "inputs": load_in_registry.plain_tensors(described(op)[0]),
        "queries": [
            (position, load_in_registry.plain_tensors(both)) for position, both, _ in queries_of(op)
        ],
    }


def run(folder: Path, with_runtime: bool) -> tuple[dict[str, Any], str]:
    """What a process with this version saw, and what it printed as errors."""
    request = load_in_registry.request_of(
        str(folder), with_runtime, {op: asked_of(op) for op in OPERATORS}
    )
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, SCRIPT],
        input=request,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def check(folder: Path, answer: dict[str, Any]) -> None:
    """Everything that does not depend on where messages go."""
    assert answer["version"] == folder.name.split(".post")[0]
    assert list(answer["operators"]) == list(OPERATORS)
    for op, seen in answer["operators"].items():
        chosen = {flags_of(op)[-1]: 1}
        _, outputs = described(op)
        assert seen["creator"] == "IPluginCreatorV3One"
        assert seen["interface"] == "PLUGIN CREATOR_V3ONE"
        assert seen["attributes"] == [one.name for one in attributes_of(op)]
        assert seen["names"] == [op, contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE]
        assert seen["kinds"] == ["PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME"]
        assert seen["outputs"] == len(outputs)
        assert seen["metadata"] == seen["clone"] == seen["reloaded"] == text_of(op, **chosen)
        assert seen["written"] == load_in_registry.plain_fields([VERSION, *fields(op, **chosen)])
        assert seen["formats"] == [expected for *_, expected in queries_of(op)]
        assert seen["types"] == [output.type for output in outputs]
        assert seen["shapes"] == [list(output.shape) for output in outputs]
        assert seen["refused"]


def refusals() -> list[str]:
    """What the library says of the bad fields, an operator after the other."""
    return [
        f'mamba_export {op} "layers.3": field {flags_of(op)[-1]} is 2, expected 0 or 1'
        for op in OPERATORS
    ]


@EVERY_VERSION
def test_plugins_are_made_by_the_registry(folder: Path) -> None:
    """Without a Runtime the registry has no logger yet, and the library prints its line."""
    answer, printed = run(folder, with_runtime=False)
    check(folder, answer)
    assert [line for line in printed.splitlines() if "mamba_export" in line] == refusals()


@pytest.mark.gpu
@EVERY_VERSION
def test_a_runtime_takes_the_plugins_and_their_messages(folder: Path) -> None:
    answer, printed = run(folder, with_runtime=True)
    check(folder, answer)
    assert answer["runtime"]
    assert [line for line in answer["logged"] if "mamba_export" in line] == refusals()
    assert "mamba_export" not in printed
