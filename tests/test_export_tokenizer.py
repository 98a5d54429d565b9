"""What an exported folder takes over from a checkpoint's tokenizer, and what is said where there is none."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import transformers
from tokenizer_kinds import KINDS
from typer.testing import CliRunner

from mamba_export.cli.app import app
from mamba_export.errors import CheckpointError, MambaExportWarning
from mamba_export.export import export
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.folder.tokenizer import load_tokenizer
from mamba_export.models import MambaConfig, MambaLM, checkpoints

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint without a tokenizer."""
    folder = tmp_path / "model"
    checkpoints.save(MambaLM(MambaConfig(d_model=8, n_layer=1, vocab_size=300)).eval(), folder)
    return folder


def exported(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, result.stderr


def test_chat_templates_are_taken_over(checkpoint: Path, tmp_path: Path) -> None:
    KINDS["byte-level BPE"](checkpoint)
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    theirs.chat_template = {"default": TEMPLATE, "tools": f"tools: {TEMPLATE}"}
    theirs.save_pretrained(checkpoint)
    assert (checkpoint / "chat_template.jinja").is_file()
    out = export(checkpoint, tmp_path / "out")
    again = transformers.AutoTokenizer.from_pretrained(out)
    assert again.chat_template == theirs.chat_template
    chat = [{"role": "user", "content": "the end"}]
    for name in ("default", "tools"):
        text = again.apply_chat_template(chat, chat_template=name, tokenize=False)
        assert text.endswith("the end")


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_a_checkpoint_with_another_tokenizer_alone_is_told(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / name).write_bytes(b"\x0a\x0e\x0a\x05")
    code, said = exported(checkpoint, "-o", tmp_path / "out")
    assert code == 0
    first, second = said.splitlines()
    assert first.startswith(
        f"note: {checkpoint} holds {name} and no tokenizer.json, so the exported"
    )
    assert "--tokenizer" in first
    assert second.startswith("wrote ")
    with pytest.warns(MambaExportWarning, match=rf"holds {name} and no tokenizer\.json"):
        export(checkpoint, tmp_path / "again")


def test_a_checkpoint_without_a_tokenizer_is_told(checkpoint: Path, tmp_path: Path) -> None:
    code, said = exported(checkpoint, "-o", tmp_path / "out")
    assert code == 0
    assert said.startswith(
        f"note: {checkpoint} holds no tokenizer.json, so the exported folder takes"
    )


def test_nothing_is_said_where_there_is_one(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_byte_tokenizer(other)
    code, said = exported(checkpoint, "-o", tmp_path / "out", "--tokenizer", other)
    assert code == 0
    assert said.startswith("wrote ")
    (checkpoint / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error", MambaExportWarning)
        export(checkpoint, tmp_path / "again")


def test_a_tokenizer_json_stands_for_its_folder(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_byte_tokenizer(other)
    out = export(checkpoint, tmp_path / "out", tokenizer=other / "tokenizer.json")
    assert load_tokenizer(out).encode("a") == [97]
    assert (out / "tokenizer_config.json").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tokenizer.model", "tokenizer.model is a file: pass the folder that holds tokenizer.json"),
        ("", "the tokenizer's path is empty: pass a folder that holds a tokenizer.json"),
        ("nothing", "nothing: no such folder"),
        ("empty", "empty holds no tokenizer.json: pass a folder that does"),
    ],
)
def test_a_tokenizer_that_is_none(
    given: str, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    path = f"{tmp_path}/{given}" if given else ""
    with pytest.raises(CheckpointError, match=message) as error:
        export(checkpoint, tmp_path / "out", tokenizer=path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_ends_a_text_is_the_checkpoints_and_not_the_tokenizers(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_byte_tokenizer(other)
    (other / "generation_config.json").write_text('{"eos_token_id": 3}')
    out = export(checkpoint, tmp_path / "out", tokenizer=other)
    assert not (out / "generation_config.json").exists()
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 4}')
    out = export(checkpoint, tmp_path / "again", tokenizer=other)
    assert (out / "generation_config.json").read_text() == '{"eos_token_id": 4}'


@pytest.mark.parametrize("linked", ["chat_template.jinja", "additional_chat_templates"])
def test_templates_elsewhere_are_not_copied(linked: str, checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.jinja").write_text("secret")
    is_folder = linked.startswith("additional")
    (checkpoint / linked).symlink_to(elsewhere if is_folder else elsewhere / "secret.jinja")
    write_byte_tokenizer(checkpoint)
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
