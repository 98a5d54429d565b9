"""Benchmarks: records, tables, limits, plots, and small runs. No time gates anything.

Figures of a GPU in here are made up, to test what is done with them.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bench import (
    RecordFile,
    Row,
    gpu,
    gpu_models,
    gpu_operators,
    limits,
    load_records,
    model_rows,
    new_record,
    operator_rows,
    read_record,
    rivals,
    section,
    update_readme,
)
from bench import models as models_module
from bench import operators as operators_module
from bench.limits import Ceilings
from bench.plots import plot_file, write_plots
from bench.random_folder import fill_weights, write_graph
from bench.record import LIMIT, OURS, rows_of
from bench.tables import grids, markdown, print_rows
from bench.timing import median_milliseconds
from mamba_export import contract
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.cli import run_app
from mamba_export.errors import MambaExportError
from mamba_export.models import MambaConfig, MambaLM

ROOT = Path(__file__).parent.parent
ROWS = [
    Row("scan", "slow", 10.0), Row("scan", "fast", 2.0), Row("scan", "absent", None, "not installed"),
]  # fmt: skip
SCAN = {"dtype": "bf16", "batch": 1, "d_inner": 1536, "length": 512, "d_state": 16}
PREFILL = {"model": "130m", "dtype": "fp16", "batch": 1, "length": 512}
MADE_UP = [
    Row.of("scan", SCAN, OURS, 0.020),
    Row.of("scan", SCAN, "mamba_ssm", 0.040),
    Row.of("scan", SCAN, LIMIT, 0.010, "exponentials"),
    Row.of("scan", {**SCAN, "dtype": "fp32"}, OURS, 0.0777),
    Row.of("scan, inputs in the cache", SCAN, OURS, 0.0666),
    Row.of("prefill", PREFILL, OURS, 2.5),
    Row.of("prefill", PREFILL, "mamba_ssm", None, "not installed (No module named 'mamba_ssm')"),
    Row.of("prefill", PREFILL, LIMIT, 0.5, "products"),
    Row.of("prefill", {**PREFILL, "batch": 64}, OURS, 55.5),
    *(
        Row.of("decode", {"model": model, "dtype": "fp16", "batch": 1}, name, time)
        for model, times in (("130m", (0.4, 2.0, 0.1)), ("2.8b", (2.4, 5.0, 1.9)))
        for name, time in zip((OURS, "mamba_ssm", LIMIT), times, strict=True)
    ),
    *(
        Row.of(
            "long",
            {"model": "130m", "dtype": "fp16", "batch": 1, "tokens_read": n},
            OURS,
            0.4,
            "2 GB",
        )
        for n in (1_000, 1_000_000)
    ),
]


@pytest.fixture
def record() -> dict:
    more = {"method": "measured so", "note": "built so", "ceilings": {"bandwidth": 1.0}}
    return new_record(MADE_UP, "a GPU", "a command", {"torch": "2"}, **more)


# Records


def test_record_holds_what_it_is_given(record: dict, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(record))
    assert rows_of(read_record(file)) == MADE_UP
    assert set(record) == {
        "date", "device", "versions", "command", "method", "note", "ceilings", "rows",
    }  # fmt: skip


def test_shipped_records_are_read() -> None:
    assert load_records(ROOT), "tools/records holds at least the CPU's"


def test_record_is_whole_after_every_row(record: dict, tmp_path: Path) -> None:
    file = RecordFile(tmp_path, record)
    assert file.path.name == f"{record['date']}-a-gpu.json"
    for count, row in enumerate(MADE_UP, start=1):
        file.add(row)
        assert len(read_record(file.path)["rows"]) == count
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name], "nothing half written"


def test_record_is_continued(record: dict, tmp_path: Path) -> None:
    RecordFile(tmp_path, record).add(MADE_UP[0])
    later = RecordFile(tmp_path, {**record, "command": "another"})
    later.add(Row.of("scan", SCAN, OURS, 0.019))
    later.add(MADE_UP[1])
    content = read_record(later.path)
    assert [row["milliseconds"] for row in content["rows"]] == [0.019, 0.040]
    assert content["command"] == "a command; another"


@pytest.mark.parametrize("name", ["date", "device", "versions"])
def test_record_of_something_else_is_refused(record: dict, tmp_path: Path, name: str) -> None:
    file = tmp_path / "r.json"
    RecordFile(file, record)
    with pytest.raises(MambaExportError, match=f"another {name.removesuffix('s')}"):
        RecordFile(file, {**record, name: "other"})


def test_bad_record_is_named(record: dict, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    for text in ("{", "[]", '{"rows": [{"speed": 1}]}', '{"rows": []}'):
        file.write_text(text)
        with pytest.raises(MambaExportError, match=r"r\.json is not a record"):
            read_record(file)
    with pytest.raises(MambaExportError, match="cannot be written"):
        RecordFile(tmp_path / "none" / "r.json", record)


# Tables and README


def test_table_compares_with_the_slowest() -> None:
    table = section([new_record(ROWS, "a machine", "a command")])
    assert "| scan | fast | 2 | 5.0x |" in table
    assert "| scan | absent | not installed |  |" in table


def test_gpu_tables_compare_with_rival_and_limit() -> None:
    scan, _, prefill, decode, long = grids(MADE_UP)
    assert scan.header == [
        "dtype", "batch", "d_inner", "length", "d_state",
        "mamba_export, us", "mamba_ssm, us", "limit, us", "mamba_ssm / mamba_export", "mamba_export / limit",
    ]  # fmt: skip
    assert scan.lines[0] == [
        "bf16", "1", "1536", "512", "16", "20", "40", "10 (exponentials)", "2x", "2x",
    ]  # fmt: skip
    assert "| 130m | fp16 | 1 | 512 | 2.5 | not installed" in markdown(prefill)
    assert decode.header[3] == "mamba_export, ms"
    assert long.lines[1][3:5] == ["1000000", "0.4 (2 GB)"]


def test_print(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([*ROWS, *MADE_UP], "a machine")
    printed = capsys.readouterr().out
    assert "5.0x" in printed
    assert "a machine: decode" in printed


def test_section_shows_a_choice_of_a_gpu_record(record: dict) -> None:
    places = {"scan": "tools/records/p.png", "convolution": "tools/records/none.png"}
    text = section([{**record, "plots": places}])
    assert "Selective scan, gate" in text
    assert "| 20 |" in text
    for hidden in ("77.7", "66.6", "55.5"):
        assert hidden not in text, "other dtypes, warm inputs and large batches stay in the record"
    assert "time at each shape, beside mamba_ssm and the limit](tools/records/p.png)" in text
    assert "none.png" not in text
    assert "measured so" in text
    assert "built so" in text


def test_section_has_the_newest_of_each_device(record: dict) -> None:
    old = {**record, "date": "2001-01-01"}
    other = {**record, "device": "another"}
    text = section([record, old, other])
    assert "2001" not in text
    assert "another (" in text
    without = {**record, "rows": [row for row in record["rows"] if row["kind"] != "decode"]}
    text = section([without, old])
    assert text.index("2001") < text.index("Decode, a token of every sequence")
    assert text.count("Selective scan, gate") == 1


def test_readme_section_is_replaced(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    readme.write_text(text, encoding="utf-8")
    update_readme(readme, [new_record(ROWS, "a machine", "a command")])
    update_readme(readme, [new_record(ROWS, "another machine", "a command")])
    written = readme.read_text(encoding="utf-8")
    assert "another machine" in written
    assert "a machine (" not in written
    readme.write_text("no table")
    with pytest.raises(ValueError, match="lacks the line"):
        update_readme(readme, [])


def test_readme_holds_the_records() -> None:
    assert section(load_records(ROOT)) in (ROOT / "README.md").read_text(encoding="utf-8")


# Plots


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "r.json"
    drawn = write_plots(file, MADE_UP)
    assert drawn == [plot_file(file, name) for name in ("scan", "prefill", "decode", "long")]
    for path in drawn:
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size < 100_000
    assert write_plots(file, ROWS) == [], "nothing to draw of a CPU"


def test_plots_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MambaExportError, match="pip install matplotlib"):
        write_plots(tmp_path / "r.json", MADE_UP)


# Limits

H100 = Ceilings(3.018e12, limits.special_function_rate(132, 1.98e9), {"fp16": 8e14})


def test_special_function_rate() -> None:
    assert H100.special_rate == 132 * 16 * 1.98e9


def test_scan_bytes_are_those_of_the_tensors() -> None:
    for batch, d_inner, length, d_state, dtype in ((2, 32, 5, 16, "bf16"), (1, 8, 3, 4, "fp32")):
        [inputs] = gpu_operators.scan_inputs(1, batch, d_inner, length, d_state, dtype, "cpu")
        y, last = torch.ops.mamba_export.selective_scan(**inputs)
        moved = sum(tensor.nbytes for tensor in (*inputs.values(), y, last))
        assert limits.scan_bytes(batch, d_inner, length, d_state, dtype) == moved


def test_conv_bytes_are_those_of_the_tensors() -> None:
    [inputs] = gpu_operators.conv_inputs(1, 2, 32, 5, "bf16", "cpu")
    y, last = torch.ops.mamba_export.causal_conv1d(**inputs)
    moved = sum(tensor.nbytes for tensor in (*inputs.values(), y, last))
    assert limits.conv_bytes(2, 32, 5, 4, "bf16") == moved


def test_scan_limit() -> None:
    limit = limits.scan(H100, 64, 1536, 512, 16, "bf16")
    assert limit.bound == "exponentials"
    # 20 special functions an element at 4.18e12 a second: 4.8 ps an element.
    assert limit.milliseconds == pytest.approx(64 * 1536 * 512 * 4.783e-12 * 1e3, rel=1e-3)
    assert limits.scan(H100, 1, 1536, 512, 1, "fp32").bound == "memory"


def test_step_limit_is_the_state_once_each_way() -> None:
    assert limits.step(H100, 64, 5120, 16).milliseconds == pytest.approx(
        1e3 * 2 * 64 * 5120 * 16 * 4 / 3.018e12
    )


def test_weight_bytes_are_those_of_the_model() -> None:
    config = MambaConfig(d_model=32, n_layer=3, vocab_size=96, d_state=8)
    model = MambaLM(config)
    final_norm = 4 * config.d_model
    parameters = sum(p.nbytes for p in model.parameters())
    assert limits.weight_bytes(config, "fp32") == parameters - final_norm


def test_state_bytes_are_those_of_the_model() -> None:
    config = MambaConfig(d_model=32, n_layer=3, vocab_size=96, d_state=8)
    states = [t for layer in MambaLM(config).initial_state(5) for t in layer]
    assert limits.state_bytes(config, 5, "fp32") == sum(t.nbytes for t in states)


@pytest.mark.parametrize(
    ("size", "milliseconds"), [("130m", 0.09), ("370m", 0.25), ("1.4b", 0.92), ("2.8b", 1.85)]
)
def test_decode_limit_at_published_sizes(size: str, milliseconds: float) -> None:
    limit = limits.decode(H100, MambaConfig.published(size), 1, "fp16")
    assert limit.bound == "weights"
    assert limit.milliseconds == pytest.approx(milliseconds, abs=0.02)


def test_decode_limit_of_many_sequences_is_their_states() -> None:
    assert limits.decode(H100, MambaConfig.published("130m"), 64, "fp16").bound == "states"


def test_prefill_limit_counts_products() -> None:
    config = MambaConfig.published("2.8b")
    limit = limits.prefill(H100, config, 1, 8192, "fp16")
    assert limit.bound == "products"
    matrices = sum(
        p.numel()
        for layer in _meta(config).backbone.layers
        for name, p in layer.mixer.named_parameters()
        if "proj.weight" in name
    )
    operations = 2 * 8192 * matrices + 2 * config.vocab_size * config.d_model
    assert limit.milliseconds == pytest.approx(1e3 * operations / 8e14)
    assert limits.prefill(H100, config, 1, 1, "fp16").bound == "weights"


def _meta(config: MambaConfig) -> MambaLM:
    with torch.device("meta"):
        return MambaLM(config)


# Models with random weights


@pytest.mark.parametrize("last_logits_only", [True, False])
def test_random_folder_runs(
    tmp_path: Path, tiny_config: MambaConfig, last_logits_only: bool
) -> None:
    folder = tmp_path / "m"
    write_graph(tiny_config, folder, dtype="fp32", last_logits_only=last_logits_only)
    assert not (folder / contract.WEIGHTS_FILE).exists()
    size = fill_weights(folder)
    assert size == (folder / contract.WEIGHTS_FILE).stat().st_size
    onnx.checker.check_model(str(folder / contract.MODEL_FILE))
    session = OrtSession(folder, providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(0).integers(0, 256, (2, 40))
    logits, state = session.run(tokens)
    assert logits.shape == (2, 1 if last_logits_only else 40, 256)
    assert np.isfinite(logits).all()
    assert logits.std() > 1e-3
    assert all(np.isfinite(tensor).all() for tensor in state.numpy())


def test_random_folder_fills_every_parameter(tmp_path: Path, tiny_config: MambaConfig) -> None:
    write_graph(tiny_config, tmp_path / "m", dtype="fp16")
    fill_weights(tmp_path / "m")
    model = onnx.load(tmp_path / "m" / contract.MODEL_FILE)
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    names = {n.replace(".A_log", ".A") for n, _ in MambaLM(tiny_config).named_parameters()}
    assert names <= set(arrays)
    assert all(
        np.isfinite(a).all() and np.abs(a).max() > 0 for n, a in arrays.items() if n in names
    )
    A = arrays["backbone.layers.1.mixer.A"]
    np.testing.assert_array_equal(A, np.tile(-np.arange(1.0, 17), (64, 1)))


def test_random_folder_dtype_is_checked(tmp_path: Path, tiny_config: MambaConfig) -> None:
    with pytest.raises(MambaExportError, match="dtype 'int8' is unknown"):
        write_graph(tiny_config, tmp_path / "m", dtype="int8")


# Runs on the CPU


def test_operators_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators_module, "SHAPES", ((1, 32, 8),))
    monkeypatch.setattr(operators_module, "median_milliseconds", lambda call: (call(), 1.0)[1])
    names = [row.implementation for row in operator_rows()]
    assert names[0] == "PyTorch, vectorised"
    assert "ONNX Runtime, function body" in names


@pytest.mark.parametrize("kinds", [("prefill",), ("decode",)])
def test_models_run(
    monkeypatch: pytest.MonkeyPatch, tiny_config: MambaConfig, kinds: tuple[str, ...]
) -> None:
    monkeypatch.setattr(MambaConfig, "published", lambda size: tiny_config)
    monkeypatch.setattr(models_module, "median_milliseconds", lambda call: (call(), 1.0)[1])
    monkeypatch.setattr(rivals, "transformers_absent", lambda: "not installed (made up)")
    rows = list(model_rows("130m", 8, lambda _: None, kinds))
    assert {row.what.split(",")[1] for row in rows} == {
        " prefill of 8 tokens" if kinds == ("prefill",) else " a decoded token"
    }
    assert rows[-1].note == "not installed (made up)"


def test_median_repeats() -> None:
    calls: list[int] = []
    assert median_milliseconds(lambda: calls.append(1), seconds=0.0) >= 0
    assert len(calls) == 4, "one to warm up, three timed"
    median_milliseconds(lambda: calls.append(1), seconds=0.0, least=1)
    assert len(calls) == 6


# The GPU's part, without one


def test_rivals_get_the_same_numbers() -> None:
    """Our operator on its inputs equals the recurrence over the arguments that mamba_ssm gets."""
    [inputs] = gpu_operators.scan_inputs(1, 2, 6, 5, 3, "fp32", "cpu")
    inputs["initial_state"].zero_()
    y, last = torch.ops.mamba_export.selective_scan(**inputs)
    theirs = rivals.scan_arguments(**inputs)
    delta = torch.nn.functional.softplus(theirs["delta"] + theirs["delta_bias"][:, None])
    state, ys = torch.zeros(2, 6, 3), []
    for t in range(5):
        dt, u = delta[..., t, None], theirs["u"][..., t, None]
        state = torch.exp(dt * theirs["A"]) * state + dt * u * theirs["B"][:, :, :, t]
        ys.append((state * theirs["C"][:, :, :, t]).sum(-1))
    out = torch.stack(ys, -1) + theirs["D"][:, None] * theirs["u"]
    out *= torch.nn.functional.silu(theirs["z"])
    torch.testing.assert_close(y.transpose(1, 2), out)
    torch.testing.assert_close(last, state)


def test_step_arguments_are_the_first_step() -> None:
    [inputs] = gpu_operators.scan_inputs(1, 2, 6, 1, 3, "fp32", "cpu")
    theirs = rivals.step_arguments(**inputs)
    assert theirs["x"].shape == (2, 6)
    assert theirs["B"].shape == (2, 3)
    assert theirs["state"].data_ptr() == inputs["initial_state"].data_ptr()


def test_absent_mamba_ssm_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tiny_config: MambaConfig
) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    rivals.mamba_ssm_absent.cache_clear()
    try:
        cases = gpu_models.Cases(sizes=("130m",), lengths=(8,), batches=(1, 8))
        rows = list(gpu_models._mamba_ssm_rows(tiny_config, "130m", cases, lambda _: None))
    finally:
        rivals.mamba_ssm_absent.cache_clear()
    assert len(rows) == 4
    assert all(row.milliseconds is None and "not installed" in row.note for row in rows)


def test_prompts_of_too_many_tokens_are_left_out() -> None:
    cases = gpu_models.Cases(lengths=(8, 16), batches=(1, 2), most_tokens=16)
    kept = [(batch, length) for batch, length, _ in gpu_models._prefill_cases("130m", cases)]
    assert kept == [(1, 8), (1, 16), (2, 8)]


def test_failing_measurement_is_a_note() -> None:
    def fails() -> float:
        raise RuntimeError("CUDA out of memory.\nmore lines")

    row = gpu_models._try("prefill", PREFILL, OURS, fails)
    assert (row.milliseconds, row.note) == (None, "RuntimeError: CUDA out of memory.")


def test_model_cases_run_on_the_cpu_too(
    monkeypatch: pytest.MonkeyPatch, tiny_config: MambaConfig, tmp_path: Path
) -> None:
    """The very code that times a GPU, on the CPU's provider: a session does not care."""
    monkeypatch.setattr(MambaConfig, "published", lambda size: tiny_config)
    monkeypatch.setattr(gpu_models, "_PROVIDERS", ["CPUExecutionProvider"])
    monkeypatch.setattr(gpu, "used_bytes", lambda: 5_000_000_000)
    monkeypatch.setattr(gpu_models, "_LONG", (10, 30))
    monkeypatch.setattr(gpu_models, "_CHUNK", 8)
    gpu_models.prepare_graphs(tmp_path, ["130m"], "fp32", lambda _: None)
    cases = gpu_models.Cases(
        sizes=("130m",), lengths=(8, 16), batches=(1, 2), dtype="fp32", graphs=tmp_path,
        mamba_ssm=False, transformers=False,
    )  # fmt: skip
    ceilings = Ceilings(1e12, 1e12, {"fp32": 1e13})
    rows = list(gpu_models.model_rows(ceilings, cases, lambda _: None))
    rows += gpu_models.long_rows(ceilings, cases, lambda _: None)
    assert all(row.milliseconds for row in rows), [row.note for row in rows]
    prefill, decode, long = grids(rows)
    assert len(prefill.lines) == 4
    assert len(decode.lines) == 2
    assert [line[3] for line in long.lines] == ["10", "30"]
    assert "5.00 GB in use" in long.lines[0][4]


# The command


def _run(*arguments: str) -> int:
    """Run tools/benchmark.py in this process; its exit code."""
    path = ROOT / "tools" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as ended:
        run_app(module.app, list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "9b"], "--size '9b' is unknown: use 130m"),
        (["--device", "tpu"], "--device 'tpu' is unknown: use cpu, cuda"),
        (["--what", "training"], "--what 'training' is unknown"),
        (["--length", "-3"], "expected whole numbers above 0"),
        (["--long"], "need --device cuda"),
        (["--plots"], "add --record"),
        (["--device", "cuda", "--shape", "1x2x3"], "--shape '1x2x3' is unknown"),
    ],
)
def test_bad_options(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(*arguments) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--device", "cuda") == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_cpu_run_writes_a_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operators_module, "SHAPES", ((1, 32, 8),))
    monkeypatch.setattr(operators_module, "median_milliseconds", lambda call: (call(), 1.0)[1])
    file = tmp_path / "r.json"
    assert _run("--what", "operator", "--record", str(file), "--note", "a note") == 0
    record = read_record(file)
    assert record["note"] == "a note"
    assert len(record["rows"]) >= 2
    assert "PyTorch, vectorised" in capsys.readouterr().out


def test_gpu_run_from_end_to_end_with_the_gpu_taken_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_config: MambaConfig
) -> None:
    """All of a GPU's run but the GPU: tensors on the CPU, every kernel time 1 ms."""
    pytest.importorskip("matplotlib")

    def one_millisecond(launch: Callable[[int], object], sets: int = 1) -> float:
        for index in range(sets):
            launch(index)
        return 1.0

    ceilings = Ceilings(1e12, 1e12, dict.fromkeys(("fp32", "fp16", "bf16"), 1e13))
    for name, value in {
        "require_gpu": lambda: None,
        "gpu_name": lambda: "No GPU",
        "measure_ceilings": lambda: ceilings,
        "launch_milliseconds": lambda: 0.001,
        "kernel_milliseconds": one_millisecond,
        "sets_to_rotate": lambda size: 2,
        "used_bytes": lambda: 1,
    }.items():
        monkeypatch.setattr(gpu, name, value)
    for name in ("scan_inputs", "conv_inputs"):
        on_cpu = functools.partial(getattr(gpu_operators, name), device="cpu")
        monkeypatch.setattr(gpu_operators, name, on_cpu)
    monkeypatch.setattr(gpu_operators, "STEP_SHAPES", ((2, 32),))
    monkeypatch.setattr(gpu_operators, "SHAPES", ((1, 32, 8),))
    monkeypatch.setattr(gpu_operators, "WIDE_SHAPES", ((1, 32, 8),))
    monkeypatch.setattr(gpu_models, "_PROVIDERS", ["CPUExecutionProvider"])
    monkeypatch.setattr(gpu_models, "_LONG", (10, 30))
    monkeypatch.setattr(MambaConfig, "published", lambda size: tiny_config)
    for name in ("mamba_ssm_absent", "causal_conv1d_absent", "transformers_absent"):
        monkeypatch.setattr(rivals, name, lambda: "not installed (made up)")
    code = _run(
        *("--device", "cuda", "--long", "--size", "130m", "--length", "8", "--batch", "1,2"),
        *(
            "--dtype",
            "fp32",
            "--operator-dtypes",
            "bf16,fp32",
            "--plots",
            "--record",
            str(tmp_path),
        ),
    )
    assert code == 0
    [file] = tmp_path.glob("*-no-gpu.json")
    record = read_record(file)
    kinds = dict.fromkeys(row["kind"] for row in record["rows"])
    assert list(kinds) == [
        "scan", "scan, inputs in the cache", "step", "convolution", "prefill", "decode", "long",
    ]  # fmt: skip
    assert record["ceilings"]["launch_milliseconds"] == 0.001
    assert "CUDA graph" in record["method"]
    timed = [row for row in record["rows"] if row["milliseconds"] is not None]
    assert {row["implementation"] for row in timed} >= {OURS, LIMIT}
    assert len(list(tmp_path.glob("*.png"))) >= 3


@pytest.mark.gpu
def test_kernel_time_is_that_of_a_copy() -> None:
    ceilings = gpu.measure_ceilings(("fp16",))
    assert 1e11 < ceilings.bandwidth < 2e13
    assert 1e12 < ceilings.product_rate["fp16"] < 1e16
    assert 1e-4 < gpu.launch_milliseconds() < 0.1


@pytest.mark.gpu
def test_operators_are_timed_on_a_gpu() -> None:
    ceilings = Ceilings(3e12, 4e12, {"fp16": 7e14})
    rows = list(gpu_operators.operator_rows(ceilings, ["bf16"], [(1, 1536, 512)]))
    ours = [row for row in rows if row.implementation == OURS]
    assert all(row.milliseconds for row in ours), [row.note for row in ours]
