"""What is attacked: a tiny checkpoint in three forms, its exports and an engine, copied for each attempt."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

from attacks.oracle import SECRET

CHECKPOINT, SHARDED, PICKLE = "checkpoint", "sharded", "pickle"
EXPORTED, SINGLE, ENGINE = "exported", "single", "engine"


@dataclass(frozen=True)
class Place:
    """Where an attempt is made.

    Args:
        root: of a run; outside of ``folder``, nothing of it may change.
        folder: the attempt's own, and the current one.
        rng: the attempt's.
    """

    root: Path
    folder: Path
    rng: Random

    def copy(self, name: str, to: str = "model") -> Path:
        """A copy of a folder of the material."""
        return Path(shutil.copytree(self.root / "material" / name, self.folder / to, symlinks=True))

    def material(self, name: str) -> Path:
        """A folder of the material itself: to be read only."""
        return self.root / "material" / name


def main(*arguments: str) -> int:
    """The command line, silent; its exit code."""
    from mamba_export.cli.app import main as command

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            command(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def make_material(root: Path) -> None:
    """Write the material below ``root``, and a secret outside of every attempt's folder."""
    import torch
    from safetensors.torch import load_file, save_file

    from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
    from mamba_export.models import MambaConfig, MambaLM, checkpoints

    for name in ("outside", "tmp", "home"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o777)
    (root / "outside" / "secret.txt").write_text(SECRET)
    torch.manual_seed(0)
    model = MambaLM(MambaConfig(d_model=16, n_layer=1, vocab_size=256, eos_token_id=0)).eval()
    with torch.no_grad():
        model.embeddings.weight.mul_(20)  # so that an argmax means something

    plain = root / "material" / CHECKPOINT
    checkpoints.save(model, plain)
    write_byte_tokenizer(plain)
    (plain / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [0, 10], "max_length": 64, "do_sample": False})
    )
    tensors = load_file(plain / "model.safetensors")

    sharded = Path(shutil.copytree(plain, root / "material" / SHARDED))
    (sharded / "model.safetensors").unlink()
    names, half = sorted(tensors), len(tensors) // 2
    parts = {1: names[:half], 2: names[half:]}
    files = {part: f"model-0000{part}-of-00002.safetensors" for part in parts}
    for part, members in parts.items():
        save_file({name: tensors[name] for name in members}, sharded / files[part])
    weight_map = {name: files[part] for part, members in parts.items() for name in members}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))

    pickled = Path(shutil.copytree(plain, root / "material" / PICKLE))
    (pickled / "model.safetensors").unlink()
    torch.save(tensors, pickled / "pytorch_model.bin")

    exported, single = root / "material" / EXPORTED, root / "material" / SINGLE
    assert main("export", str(plain), "-o", str(exported)) == 0
    assert main("export", str(plain), "-o", str(single), "--no-fuse-layers") == 0
    engine = Path(shutil.copytree(exported, root / "material" / ENGINE))
    main(
        "build", str(engine)
    )  # where no TensorRT is installed, it stays a folder without an engine
