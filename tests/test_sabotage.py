"""verify finds faults: each planted into the compiled CPU kernels, each named by the operator that has it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cuda_faults
import pytest
from planted_faults import (
    EXACT,
    VARIABLE,
    DualMixer,
    Fault,
    Patch,
    build,
    built_file,
    export_dual,
    exports,
    failing,
    patched,
)

from mamba_export import libraries, verify
from mamba_export.models import MambaConfig
from mamba_export.operators import kernel_library

pytestmark = [
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake"),
    pytest.mark.skipif(
        not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler"
    ),
]

SUPPORT = [
    Patch("cpu/simd.h", "namespace mamba {\n", "namespace mamba {\nextern int planted_fault;\n"
          "static inline bool is_planted(int number) { return planted_fault == number; }\n"),
    Patch("cpu/dispatch.cpp", "namespace {\n\nconst mamba::CpuKernels& pick() {",
          "namespace mamba {\nint planted_fault = 0;\n}\n"
          "namespace {\n\nconst mamba::CpuKernels& pick() {"),
    Patch("cpu/threads.h", "namespace mamba {\n",
          "#include <cstdlib>\nnamespace mamba {\nextern int planted_fault;\n"),
    Patch("cpu/threads.h", "    if (parallel_for && tasks > 1",
          f'    const char* planted = getenv("{VARIABLE}");\n'
          "    planted_fault = planted ? atoi(planted) : 0;\n"
          "    if (parallel_for && tasks > 1"),
]  # fmt: skip


def scan(name: str, old: str, new: str) -> Fault:
    return Fault(f"scan: {name}", "SelectiveScan alone", Patch("cpu/scan.h", old, new))


def exact(name: str, file: str, old: str, new: str) -> Fault:
    patch = Patch(file, old, new)
    return Fault(f"exact zero-order hold: {name}", f"{EXACT} alone", patch, mixer=EXACT)


def conv(name: str, old: str, new: str) -> Fault:
    return Fault(f"conv: {name}", "CausalConv1d alone", Patch("cpu/conv.h", old, new))


def dual(name: str, old: str, new: str) -> Fault:
    return Fault(
        f"dual: {name}",
        "StateSpaceDualGatedWithDecay alone",
        Patch("state_space_dual/cpu/*.h", old, new),
    )


def norm(name: str, old: str, new: str) -> Fault:
    return Fault(f"norm: {name}", "GatedRmsNorm alone", Patch("cpu/norm.h", old, new))


def layer(name: str, old: str, new: str) -> Fault:
    return Fault(f"layer: {name}", "MambaLayer alone", Patch("layer/cpu/*.h", old, new))


def conversion(name: str, dtype: str, old: str, new: str) -> Fault:
    return Fault(name, "CausalConv1d alone", Patch("cpu/simd.h", old, new), dtype)


ONE = {"SelectiveScan alone", "CausalConv1d alone"}
TWO = {"StateSpaceDualGatedWithDecay alone", "GatedRmsNorm alone"}

FAULTS = [
    scan("second vector of a task",
         "entering[t] = kExactZoh ? u[t] : dt[t] * u[t];",
         "if (FAULT && c > 0) u[t] *= 1.5f;\n        entering[t] = kExactZoh ? u[t] : dt[t] * u[t];"),
    scan("tail that fills no vector",
         "  y += u * load<Fp32>(p.D + channel, count);",
         "  if (!(FAULT && count < kLanes)) y += u * load<Fp32>(p.D + channel, count);"),
    scan("second task",
         "  for (int64_t start = 0; start < p.length; start += kTile) {",
         "  if (FAULT && block.first > 0) memset(h, 0, kVectorsATask * vector_size * sizeof(float));\n"
         "  for (int64_t start = 0; start < p.length; start += kTile) {"),
    scan("second block of time",
         "widen_row<T>(p, p.B, block, walked(p, start + t), B + t * N);",
         "widen_row<T>(p, p.B, block, walked(p, FAULT && start > 0 ? start : start + t), B + t * N);"),
    scan("states that are no multiple of four",
         "    for (int k = 0; k < K; ++k) {\n      const Vec b =",
         "    for (int k = FAULT && K == 1 ? 1 : 0; k < K; ++k) {\n      const Vec b ="),
    scan("last_state",
         "  from_lanes(h, p.last_state",
         "  if (FAULT) h[0] *= 1.5f;\n  from_lanes(h, p.last_state"),
    scan("reverse",
         "step_inputs<T>(p, block, walked(p, start + t), channel,",
         "step_inputs<T>(p, block, FAULT ? start + t : walked(p, start + t), channel,"),
    scan("second group",
         "row<T>(sequence, block.batch, step) + block.group * p.d_state, to,",
         "row<T>(sequence, block.batch, step) + (FAULT ? 0 : block.group * p.d_state), to,"),
    scan("second of a few steps",
         "step == 0 && p.initial_state ? p.initial_state : p.last_state;",
         "(step == 0 || FAULT) && p.initial_state ? p.initial_state : p.last_state;"),
    scan("second vector of a few steps",
         "store<Fp32>(enterings, entering, kLanes);",
         "store<Fp32>(enterings, FAULT && c > 0 ? entering * 1.5f : entering, kLanes);"),
    exact("ignored", "cpu/scan.h", "  if (p.exact_zoh) {", "  if (p.exact_zoh && !FAULT) {"),
    conv("second vector of a task",
         "    if (p.silu) out = silu(out);",
         "    if (FAULT && channel % (kConvVectors * kLanes)) out *= 1.5f;\n"
         "    if (p.silu) out = silu(out);"),
    conv("tail that fills no vector",
         "    Vec out = bias;",
         "    Vec out = FAULT && count < kLanes ? Vec{} : bias;"),
    conv("second task",
         "out += weight[k] * inputs[k];",
         "out += weight[k] * inputs[FAULT && channel >= kConvVectors * kLanes ? 0 : k];"),
    conv("second step",
         "inputs[k] = inputs[k + 1];",
         "inputs[k] = inputs[FAULT && k == 0 ? k : k + 1];"),
    conv("initial_state of the second sequence",
         "load_columns<T, kStates>(static_cast<const typename T::Bits*>(p.initial_state) + at,",
         "load_columns<T, kStates>(static_cast<const typename T::Bits*>(p.initial_state) +\n"
         "                      (FAULT ? channel * (taps - 1) : at),"),
    conv("last_state",
         "  store_columns<T, kStates>(inputs,",
         "  if (FAULT) inputs[0] = inputs[taps - 1];\n  store_columns<T, kStates>(inputs,"),
    conv("one step",
         "y[c] = out + weight",
         "y[c] = (FAULT ? bias[c] : out) + weight"),
    conv("last_state of one step",
         "after[c * kStates + k] = before[c * kStates + k + 1];",
         "after[c * kStates + k] = before[c * kStates + k + (FAULT ? 0 : 1)];"),
    conv("reverse",
         "const int64_t t = walked(p, step);",
         "const int64_t t = FAULT ? step : walked(p, step);"),
    dual("second chunk",
         "tile[r][v] = decay * load",
         "tile[r][v] = (FAULT ? decay * 0.5f : decay) * load"),
    dual("step that a tile begins with",
         "add_product<kChunk>(tile, m.L[first], 1, m.dt_x[0] + c, kColumns, first);",
         "add_product<kChunk>(tile, m.L[first], 1, m.dt_x[0] + c, kColumns, FAULT ? 0 : first);"),
    dual("step on the diagonal",
         "for (int r = j; r < kTileRows; ++r) {",
         "for (int r = FAULT ? j + 1 : j; r < kTileRows; ++r) {"),
    dual("second panel of states",
         "m.C + n * kChunk + first * kPanel;",
         "m.C + (FAULT ? 0 : n) * kChunk + first * kPanel;"),
    dual("last chunk, which is shorter",
         "add_product<1>(tile, m.B + first, m.stride, m.kept[0] + c, kColumns, steps);",
         "add_product<1>(tile, m.B + first, m.stride, m.kept[0] + c, kColumns,\n"
         "                 FAULT && steps < kChunk ? steps - 1 : steps);"),
    dual("scores of a second task",
         "const int64_t begin = index % blocks * kChunksATask;",
         "const int64_t begin = FAULT ? 0 : index % blocks * kChunksATask;"),
    dual("skip of a channel beyond the first task",
         "const int64_t column = block.column + (c",
         "const int64_t column = (FAULT ? 0 : block.column) + (c"),
    dual("second group",
         "block.group = block.head / (p.heads / p.n_groups);",
         "block.group = FAULT ? 0 : block.head / (p.heads / p.n_groups);"),
    dual("decay of its own",
         "exponent[t] = p.log_decay[",
         "exponent[t] = (FAULT ? 0.5f : 1.0f) * p.log_decay["),
    dual("lower limit of dt",
         "limited(dt, p.dt_min, p.dt_max)",
         "limited(dt, FAULT ? 0.0f : p.dt_min, p.dt_max)"),
    dual("upper limit of dt",
         "return select((VecI)(x > most), broadcast(most), x);",
         "return FAULT ? x : select((VecI)(x > most), broadcast(most), x);"),
    dual("last_state",
         "store_states<S>(m.h,",
         "if (FAULT) m.h[0] *= 1.5f;\n  store_states<S>(m.h,"),
    dual("second of a few steps",
         "is_first ? initial : last, last,",
         "is_first || FAULT ? initial : last, last,"),
    dual("tail of a few steps' states",
         "if (n < d_state) advance(",
         "if (n < d_state && !FAULT) advance("),
    dual("channel of a few steps that fills no four",
         "dt_x[k] = numbers.dt[t] * numbers.x[t][c + k];",
         "dt_x[k] = numbers.dt[t] * numbers.x[t][c + k] * (FAULT && K == 1 ? 1.5f : 1.0f);"),
    norm("second task",
         "norm_row<T>(p, index);",
         "norm_row<T>(p, FAULT ? index - first : index);"),
    norm("tail that fills no vector",
         "squares[part] += value * value;",
         "if (!(FAULT && count < kLanes)) squares[part] += value * value;"),
    norm("second group's weight",
         "const float* weight = p.weight + group * width;",
         "const float* weight = p.weight + (FAULT ? 0 : group * width);"),
    norm("gate behind the norm",
         "if (p.norm_before_gate) value *= silu(",
         "if (p.norm_before_gate && !FAULT) value *= silu("),
    layer("first part of a few rows' sum",
          "for (int64_t part = 0; part < parts; ++part) {",
          "for (int64_t part = FAULT ? 1 : 0; part < parts; ++part) {"),
    layer("second panel of many rows",
          "k += kPanelDepth, a += kProductRows * kPanelDepth) {",
          "k += kPanelDepth, a += FAULT ? 0 : kProductRows * kPanelDepth) {"),
    layer("residual", "if (p.residual) {", "if (p.residual && !FAULT) {"),
    layer("norm", "__builtin_sqrtf(mean + p.epsilon);", "__builtin_sqrtf(mean + (FAULT ? 1.0f : p.epsilon));"),
    # Four bits of the fraction lost: about four times what storing costs.
    conversion("bf16 read", "bf16",
               "return (Vec)(__builtin_convertvector(x, VecU) << 16);",
               "return (Vec)((__builtin_convertvector(x, VecU) & (FAULT ? 0xfff0u : ~0u)) << 16);"),
    conversion("bf16 written", "bf16",
               "(VecU)select(is_nan, (Vec)quiet, (Vec)rounded), VecH);",
               "(VecU)select(is_nan, (Vec)quiet, (Vec)(rounded & (FAULT ? ~15u : ~0u))), VecH);"),
    conversion("fp16 read", "fp16",
               "  return T::widen(packed);",
               "  if constexpr (sizeof(*from) == 2) {\n    if (FAULT) packed &= uint16_t{0xfff0};\n  }\n"
               "  return T::widen(packed);"),
    conversion("fp16 written", "fp16",
               "  const typename T::Packed packed = T::narrow(x);",
               "  typename T::Packed packed = T::narrow(x);\n"
               "  if constexpr (sizeof(*to) == 2) {\n    if (FAULT) packed &= uint16_t{0xfff0};\n  }"),
]  # fmt: skip


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder of the patched sources, for the instruction set that this CPU runs best."""
    best = kernel_library.library().instruction_set if kernel_library.available() else "avx2"
    return build(
        tmp_path_factory.mktemp("variant"),
        FAULTS,
        SUPPORT,
        ["mamba_export_ort", "mamba_export_kernels"],
        [
            "-DMAMBA_CUDA=OFF",
            f"-DMAMBA_INSTRUCTION_SETS={best if best != 'baseline' else ''}",
            "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",  # half of -O3's compile time
        ],
    )


@pytest.fixture
def _installed(variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variant in place of both libraries: PyTorch has the fault too, and must not hide it."""
    for library in (libraries.CUSTOM_OPS, libraries.KERNELS):
        monkeypatch.setenv(library.variable, str(built_file(variant, library.file)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each dtype of a model of 130 channels: several vectors, two tasks, an odd tail."""
    return exports(
        tmp_path_factory.mktemp("exported"), MambaConfig(d_model=65, n_layer=2, vocab_size=64)
    )


@pytest.fixture(scope="module")
def exported_dual(tmp_path_factory: pytest.TempPathFactory) -> tuple[DualMixer, Path]:
    return export_dual(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def exported_exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose scans discretise B by exact zero-order hold."""
    config = MambaConfig(d_model=65, n_layer=1, vocab_size=64, exact_zoh=True)
    return exports(tmp_path_factory.mktemp("exported"), config, ["fp32"])["fp32"]


uses_variant = pytest.mark.usefixtures("_installed")


@uses_variant
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_without_a_fault_the_variant_passes(exported: dict[str, Path], dtype: str) -> None:
    assert failing(verify(exported[dtype], backends=["native"], quick=True)) == []


@uses_variant
def test_without_a_fault_the_variant_passes_with_mamba_2(
    exported_dual: tuple[DualMixer, Path],
) -> None:
    module, file = exported_dual
    assert failing(verify(file, model=module, backends=["native"], quick=True)) == []


@uses_variant
def test_without_a_fault_the_variant_passes_with_exact_zero_order_hold(
    exported_exact: Path,
) -> None:
    assert failing(verify(exported_exact, backends=["native"], quick=True)) == []


@uses_variant
@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[fault.name for fault in FAULTS])
def test_a_planted_fault_is_found_and_named(
    exported: dict[str, Path],
    exported_dual: tuple[DualMixer, Path],
    exported_exact: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault = FAULTS[number - 1]
    monkeypatch.setenv(VARIABLE, str(number))
    module, file, operators = None, exported[fault.dtype], ONE
    if fault.check in TWO:
        (module, file), operators = exported_dual, TWO
    elif fault.mixer == EXACT:
        file = exported_exact
    report = verify(file, model=module, backends=["native"], quick=True)
    assert fault.check in failing(report)
    others = operators - {fault.check}
    if fault.dtype == "fp32":  # a conversion is both operators'
        assert not others & set(failing(report)), "the other operator is not accused"


@uses_variant
def test_the_command_line_says_so(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    command = [sys.executable, "-m", "mamba_export", "verify", exported["fp32"]]
    done = subprocess.run(
        [*command, "--backend", "native", "--quick"], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    printed = " ".join(done.stdout.split())
    assert "checks failed; first: onnxruntime CPU, native, SelectiveScan alone" in printed


def test_the_patches_of_the_cuda_kernels_fit_the_sources(tmp_path: Path) -> None:
    patched(tmp_path, cuda_faults.FAULTS, cuda_faults.SUPPORT)
