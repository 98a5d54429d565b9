"""No command on local folders opens a socket, asks for a name or leaves a file in the user's folders.

A preloaded library (socket_log.c) sees every socket of a process, whoever opens it. ONNX Runtime 1.32's
telemetry makes its database when it is imported and asks for its host some ten seconds later; the database is
what a test need not wait for. By hand, over 13 s after the import: with ORT_DISABLE_TELEMETRY=0 one socket and
two look-ups, as this library and strace saw them; with the package's 1 none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.models import MambaLM, checkpoints

ROOT = Path(__file__).parent.parent
COMPILER = shutil.which("gcc") or shutil.which("cc")

CONTINUOUS_INTEGRATION = (
    "CI",
    "TF_BUILD",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "CIRCLECI",
    "TRAVIS",
    "JENKINS_URL",
    "CODEBUILD_BUILD_ID",
    "BUILDKITE",
    "TEAMCITY_VERSION",
    "APPVEYOR",
)
"""Where one of these is set, ONNX Runtime has its telemetry off: no test of ours may rest on that."""

pytestmark = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"),
    reason="no C compiler, or no Linux: the library that sees sockets is not built",
)


@pytest.fixture(scope="module")
def logger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("socket") / "socket_log.so"
    source = Path(__file__).parent / "socket_log.c"
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


class Watched:
    """A Python process under the library, in a home of its own."""

    def __init__(self, logger: Path, folder: Path, script: str, **variables: str) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        log = folder / "sockets"
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "XDG_", "ORT_")) and name not in CONTINUOUS_INTEGRATION
        }
        self.result = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={
                **kept,
                "HOME": str(self.home),
                "LD_PRELOAD": str(logger),
                "SOCKET_LOG": str(log),
                **variables,
            },
        )
        self.sockets = log.read_text().splitlines() if log.exists() else []

    @property
    def files(self) -> list[Path]:
        return [path for path in self.home.rglob("*") if path.is_file()]


COMMANDS = """\
import sys
from mamba_export.cli import main
source, out = {source!r}, {out!r}
for command in (
    ["export", source, "-o", out],
    ["run", out, "--prompt", "a", "--max-new-tokens", "2"],
    ["verify", out, "--quick"],
    ["doctor"],
):
    try:
        main(command)
    except SystemExit as stop:
        if stop.code:
            raise
"""


def test_commands_on_local_folders(logger: Path, tiny_model: MambaLM, tmp_path: Path) -> None:
    source = tmp_path / "model"
    checkpoints.save(tiny_model, source)
    write_byte_tokenizer(source)
    script = COMMANDS.format(source=str(source), out=str(tmp_path / "out"))
    watched = Watched(logger, tmp_path, script)
    assert watched.result.returncode == 0, watched.result.stderr
    assert "checks passed" in watched.result.stdout
    assert watched.sockets == []
    assert not [path for path in watched.files if "onnxruntime" in str(path)]


@pytest.mark.skipif(
    b"ORT_DISABLE_TELEMETRY"
    not in Path(onnxruntime.capi.onnxruntime_pybind11_state.__file__).read_bytes(),
    reason="this ONNX Runtime has no telemetry that a variable switches off",
)
def test_telemetry_is_seen_where_a_user_wants_it(logger: Path, tmp_path: Path) -> None:
    """And so is what the other tests look for: a user's own value of the variable stays."""
    script = "import mamba_export.backends.onnxruntime.session"
    watched = Watched(logger, tmp_path, script, ORT_DISABLE_TELEMETRY="0")
    assert watched.result.returncode == 0, watched.result.stderr
    assert any(path.suffix == ".db" for path in watched.files)


@pytest.mark.parametrize(
    ("models", "asks"),
    [(["no/such/folder", "./nothing", "one", "/none/at-all"], False), (["someone/model"], True)],
)
def test_the_network_is_asked_for_an_id_alone(
    models: list[str], asks: bool, logger: Path, tmp_path: Path
) -> None:
    script = (
        "from mamba_export.cli import main\n"
        f"for model in {models}:\n"
        "    try: main(['export', model, '-o', 'unwritten'])\n"
        "    except SystemExit as stop: assert stop.code == 2\n"
    )
    watched = Watched(logger, tmp_path, script, HF_ENDPOINT="http://127.0.0.1:9")
    assert watched.result.returncode == 0, watched.result.stderr
    lines = watched.result.stderr.splitlines()
    assert len(lines) == len(models)
    assert all(line.startswith("error: ") for line in lines)
    assert bool(watched.sockets) == asks
