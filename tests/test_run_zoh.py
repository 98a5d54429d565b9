"""The record of exact zero-order hold beside Euler's rule: a small model, read with both."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import run_zoh
import train_lm
from mamba_export.errors import MambaExportError
from mamba_export.models import Mamba2Config, MambaConfig, MambaLM, checkpoints
from report.record import newest_records
from zoh.scan import coefficient_difference, scan_difference


def test_a_record_of_a_model(tmp_path: Path) -> None:
    # Steps large enough that the two rules part.
    config = MambaConfig(16, 1, 256, dt_min=0.2, dt_max=1.0, exact_zoh=True)
    model = MambaLM(config)
    model.embeddings.weight.data *= (
        20  # expectations that are no longer all alike, and by the block
    )
    model.backbone.mixers[0].out_proj.weight.data *= 20
    checkpoints.save(model, tmp_path / "exact")
    text = tmp_path / "text.txt"
    text.write_text("In the beginning was the Word, and so on.\n" * 40)
    records = tmp_path / "records"
    records.mkdir()
    options = ["--text", str(text), "--model", str(tmp_path / "exact"), "--commit", "0" * 40]
    run_zoh.run(["--record", str(records), "--quick", *options])
    [record] = newest_records(records).values()
    assert (record.task, record.quick) == ("zoh", True)
    exports, bits, steps = record.tables
    assert [tuple(row[1:]) for row in exports.rows] == [
        ("1 MambaLayer", "euler"),
        ("1 CausalConv1d, 1 SelectiveScanExactZoh", "zoh"),
    ]
    [row] = bits.rows
    name, trained, other, own, change, *_ = row
    assert (name, trained) == ("exact", "exact zero-order hold")
    assert own > 6, "a model that knows nothing needs a byte a byte"
    assert change == pytest.approx(other - own, abs=2e-4)
    assert len(steps.rows) == 1
    assert [claim.holds for claim in record.claims] == [True] * 2


def test_the_coefficient_s_difference_is_that_of_the_formula() -> None:
    x = torch.tensor([1e-6, 0.1, 1.0, 20.0], dtype=torch.float64)
    expected = [one / -math.expm1(-one) - 1 for one in x.tolist()]
    assert coefficient_difference(x).tolist() == pytest.approx(expected, rel=1e-9)
    # One rate and equal steps: every output differs by the coefficient's share.
    found = scan_difference([0.1], torch.ones(1), 0.0)
    assert found == pytest.approx(expected[1:2], rel=1e-9)


def test_other_models_are_refused(tmp_path: Path) -> None:
    config = Mamba2Config(d_model=16, n_layer=1, vocab_size=256, head_dim=16)
    checkpoints.save(MambaLM(config), tmp_path / "two")
    (tmp_path / "two" / run_zoh.SAMPLE).write_text("text\n")
    with pytest.raises(MambaExportError, match="is of mamba2, expected a model of mamba"):
        run_zoh.run(
            ["--record", str(tmp_path), "--commit", "0" * 40, "--model", str(tmp_path / "two")]
        )
    options = ["text", "--out", "out", "--mixer", "mamba2", "--exact-zoh"]
    with pytest.raises(MambaExportError, match="--exact-zoh is of mamba: leave it out"):
        train_lm.make_config(train_lm.build_parser().parse_args(options))
    options.remove("mamba2")
    options.remove("--mixer")
    config = train_lm.make_config(train_lm.build_parser().parse_args(options))
    assert isinstance(config, MambaConfig)
    assert config.exact_zoh
