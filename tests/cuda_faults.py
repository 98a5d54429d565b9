"""Faults for every family of CUDA kernels: what ``test_sabotage_cuda`` compiles."""

from __future__ import annotations

from planted_faults import EXACT, VARIABLE, Fault, Patch

INT4 = "int4"
"""In the place of a dtype: a file of fp16 whose layers take codes."""

# A file's device code has its own copy of the number, which its launchers bring up to date.
DEFINITION = f"""
#include <cstdlib>
namespace mamba {{
namespace {{
__device__ int planted_on_gpu;
inline int planted() {{
  const char* text = std::getenv("{VARIABLE}");
  return text ? std::atoi(text) : 0;
}}
inline void plant() {{
  static int last = 0;
  const int now = planted();
  if (now != last) cudaMemcpyToSymbol(planted_on_gpu, &now, sizeof(now));
  last = now;
}}
__host__ __device__ inline bool is_planted(int number) {{
#ifdef __CUDA_ARCH__
  return planted_on_gpu == number;
#else
  return planted() == number;
#endif
}}
}}  // namespace
"""
SUPPORT = [
    Patch("cuda/numeric.cuh", "\nnamespace mamba {\n", DEFINITION),
    Patch("cuda/ssd_mma.cu", "  const auto kernel = ssd_mma_kernel<T, S>;",
          "  plant();\n  const auto kernel = ssd_mma_kernel<T, S>;"),
    Patch("cuda/scan_mma.cu", "  const auto kernel = scan_mma_kernel<T, S>;",
          "  plant();\n  const auto kernel = scan_mma_kernel<T, S>;"),
    # Static, for each file must bring its own copy up to date: a linker keeps one of equal functions.
    Patch("cuda/numeric.cuh", "auto with_type(int dtype, Body body) {",
          "static auto with_type(int dtype, Body body) {\n  plant();"),
    Patch("cuda/launch.cuh", "cudaError_t launch(void (*kernel)(Step),",
          "static cudaError_t launch(void (*kernel)(Step),"),
    Patch("cuda/launch.cuh", "  return launch_overlapping(kernel,",
          "  plant();\n  return launch_overlapping(kernel,"),
]  # fmt: skip


def scan(name: str, file: str, old: str, new: str, dtype: str = "fp32") -> Fault:
    return Fault(f"scan: {name}", "SelectiveScan alone", Patch(f"cuda/{file}", old, new), dtype)


def exact(name: str, file: str, old: str, new: str) -> Fault:
    patch = Patch(f"cuda/{file}", old, new)
    return Fault(f"exact zero-order hold: {name}", f"{EXACT} alone", patch, mixer=EXACT)


def conv(name: str, old: str, new: str, dtype: str = "fp32", file: str = "conv.cu") -> Fault:
    return Fault(f"conv: {name}", "CausalConv1d alone", Patch(f"cuda/{file}", old, new), dtype)


def layer(
    name: str, file: str, old: str, new: str, dtype: str = "fp32", also: Patch | None = None
) -> Fault:
    patch = Patch(f"cuda/{file}", old, new)
    return Fault(f"layer: {name}", "MambaLayer alone", patch, dtype, also=also)


def layer2(name: str, file: str, old: str, new: str, dtype: str = "fp32") -> Fault:
    patch = Patch(f"cuda/{file}", old, new)
    return Fault(f"layer of Mamba-2: {name}", "Mamba2Layer alone", patch, dtype, "mamba2")


def packed(name: str, file: str, old: str, new: str) -> Fault:
    """Of a file with int4 codes, whose layers are judged in the whole model."""
    patch = Patch(f"layer/cuda/{file}", old, new)
    return Fault(f"layer of codes: {name}", "batch 1, length 65", patch, INT4, "mamba2")


def dual(name: str, file: str, old: str, new: str, dtype: str = "fp32") -> Fault:
    patch = Patch(f"state_space_dual/cuda/{file}", old, new)
    return Fault(f"dual: {name}", "StateSpaceDual alone", patch, dtype, "mamba2")


def gated_norm(name: str, file: str, old: str, new: str) -> Fault:
    patch = Patch(f"cuda/{file}", old, new)
    return Fault(f"gated norm: {name}", "GatedRmsNorm alone", patch, mixer="mamba2")


FAULTS = [
    packed("one token, what codes are counted from", "tensor_gemv.cuh",
           "unit, -off), total);", "unit, -(FAULT ? 0.9f * off : off)), total);"),
    packed("many rows, what codes are counted from", "widen.cu",
           "rows[r].mantissa(i + j) - block.offset(i + j);",
           "rows[r].mantissa(i + j) - (FAULT ? 1.25f : block.offset(i + j));"),
    scan("few steps, second sequence of a thread", "scan_step.cu",
         "const float du = dt[i] * u[i], log_decay = dt[i] * kLog2e;",
         "const float du = dt[i] * u[i] * (FAULT && i > 0 ? 1.5f : 1.f), log_decay = dt[i] * kLog2e;"),
    scan("few steps, states after the first four of a thread", "scan_step.cu",
         ".of(state, du * B[i][q][j]);",
         ".of(state, du * B[i][q][j] * (FAULT && q > 0 ? 1.5f : 1.f));"),
    scan("few steps, states that are no multiple of four", "scan_step.cu",
         "if (n + j < states) last[j] = four[j];",
         "if (n + j < states) last[j] = FAULT ? 0.f : four[j];"),
    scan("few steps, second block", "scan_step.cu",
         "        sum += D * own_u;",
         "        if (!(FAULT && blockIdx.x > 0)) sum += D * own_u;"),
    scan("pipe, second tile", "scan_pipe_producer.cuh",
         "u[v] = exists ? u[v] * dt[v] : 0.f;",
         "u[v] = exists ? u[v] * dt[v] * (FAULT && tile_index > 0 ? 1.5f : 1.f) : 0.f;"),
    scan("pipe, second block", "scan_pipe_epilogue.cuh",
         "values[v] += skips[v] * u[v];",
         "values[v] += FAULT && first > 0 ? 0.f : skips[v] * u[v];"),
    scan("pipe, second sum of many states", "scan_pipe_epilogue.cuh",
         "to[v] += (four.x + four.y) + (four.z + four.w);",
         "if (!(FAULT && part > 0)) to[v] += (four.x + four.y) + (four.z + four.w);"),
    # Who does not wait arrives, so that the barrier still opens for the others.
    scan("tensor cores, no wait for the first tile", "scan_mma.cu",
         "  wait(kFilled, kHandOver);",
         "  if (FAULT) {\n    arrive(kFilled, kHandOver);\n  } else {\n"
         "    wait(kFilled, kHandOver);\n  }", "fp16"),
    scan("tensor cores, no wait for the sums", "scan_eights.cuh",
         "    wait(kSummed + stage, kHandOver);",
         "    if (FAULT) {\n      arrive(kSummed + stage, kHandOver);\n    } else {\n"
         "      wait(kSummed + stage, kHandOver);\n    }", "bf16"),
    scan("tensor cores, a stage that is used again", "scan_mma.cu",
         "auto& tile = tiles[stage];\n    if (tile_index >= kStages)",
         "auto& tile = tiles[FAULT && tile_index >= kStages ? next_stage : stage];\n"
         "    if (tile_index >= kStages)", "fp16"),
    scan("tensor cores, C of the tiles after the first", "scan_eights.cuh",
         "    C.advance();", "    if (!FAULT) C.advance();", "bf16"),
    scan("tensor cores, steps past the end", "scan_eights.cuh",
         "if (!items.has(i, steps)) {", "if (!items.has(i, steps) && !FAULT) {", "fp16"),
    scan("tensor cores, state between pairs of steps", "scan_pairs.cuh",
         "decay_of(dt0, A[n][j], decay_shift(s)) * h[n][j] + input[j];",
         "decay_of(dt0, A[n][j], decay_shift(s)) * (FAULT && half + pair > 0 ? 0.f : h[n][j]) + input[j];",
         "bf16"),
    scan("tensor cores, B of other steps", "scan_pairs.cuh",
         "const float B = is_own ? group.B[half][n] : 0.f;",
         "const float B = is_own || FAULT ? group.B[half][n] : 0.f;", "fp16"),
    scan("tensor cores, what tf32 drops of dt u", "scan_pairs.cuh",
         "du_rest = rest(du);", "du_rest = FAULT ? 0.f : rest(du);", "bf16"),
    scan("tensor cores, second eight of the states in bf16", "scan_pairs.cuh",
         "first[1], second[1], group.C[0][n],",
         "first[1], second[1], FAULT && n > 0 ? 0.f : group.C[0][n],", "bf16"),
    scan("tensor cores, second step of a pair in fp16", "scan_pairs.cuh",
         "p1 += C[3] * second[1];", "p1 += C[3] * (FAULT ? first[1] : second[1]);", "fp16"),
    scan("tensor cores, the first half of a group", "scan_pairs.cuh",
         "const bool keeps = q == half * 2 + pair;",
         "const bool keeps = q == (FAULT ? 2 : half * 2) + pair;", "fp16"),
    scan("tensor cores, last_state of the second eight", "scan_mma.cu",
         "+ place(n, j)] = h[n][j];", "+ place(n, j)] = h[FAULT ? 0 : n][j];", "bf16"),
    scan("tensor cores, second block", "scan_eights.cuh",
         "sums[v] += D[i][v] * u[v];", "sums[v] += FAULT && first > 0 ? 0.f : D[i][v] * u[v];", "bf16"),
    scan("narrow, second tile", "scan_narrow.cu",
         "du[t] = dt * u[t];",
         "du[t] = dt * u[t] * (FAULT && tile > 0 ? 1.5f : 1.f);"),
    scan("narrow, second chunk of a tile", "scan_narrow.cu",
         "carry[n] = chunk.x * carry[n] + chunk.y;",
         "carry[n] = (FAULT && other > 0 ? 0.f : chunk.x) * carry[n] + chunk.y;"),
    scan("narrow, second group", "scan_narrow.cu",
         "step, group * states + n);",
         "step, (FAULT ? 0 : group) * states + n);"),
    scan("tile, second tile", "scan_tile.cu",
         "du.values[v] = value * to_float(u.values[j + v]);",
         "du.values[v] = value * to_float(u.values[j + v]) *\n"
         "                       (FAULT && step > block.begin ? 1.5f : 1.f);"),
    scan("tile, tail that fills no vector", "scan_tile.cu",
         "if (at + j < block.count) to[j] = y.values[j];",
         "if (at + j < block.count) to[j] = FAULT ? from_float<T>(0.f) : y.values[j];"),
    scan("tile, second group", "scan_tile.cu",
         "const int64_t group_offset = block.group * p.d_state;",
         "const int64_t group_offset = FAULT ? 0 : block.group * p.d_state;"),
    scan("any, states after the first of a lane", "scan_any.cu",
         "+ weights.hold * u * to_float(B[n]);",
         "+ weights.hold * u * to_float(B[n]) * (FAULT && n >= kLanes ? 1.5f : 1.f);"),
    exact("a kernel of Euler's rule is chosen", "scan.cu",
          "p.d_state > kMaxTileStates || p.exact_zoh)",
          "p.d_state > kMaxTileStates || (p.exact_zoh && !FAULT))"),
    exact("ignored", "scan_any.cu", "p.exact_zoh ? scan_any_kernel", "p.exact_zoh && !FAULT ? scan_any_kernel"),
    scan("wrong split of the length", "scan.cu",
         "      p, parts);\n  if (cudaError_t error = cudaGetLastError()) return error;",
         "      p, [&] {\n        ScanParts wrong = parts;\n        if (FAULT) wrong.count = 1;\n"
         "        return wrong;\n      }());\n"
         "  if (cudaError_t error = cudaGetLastError()) return error;"),
    scan("last_state of a split length", "scan_tile.cu",
         "block.part != parts.count - 1) return;",
         "block.part != (FAULT ? 0 : parts.count - 1)) return;"),
    conv("second run of steps",
         "sum += weight[v * kTaps + k] * to_float(input[i + k].values[v]);",
         "sum += weight[v * kTaps + k] * to_float(input[i + k].values[v]) *\n"
         "                 (FAULT && begin > 0 ? 1.5f : 1.f);"),
    conv("second channel of a thread",
         "        float sum = bias[v];",
         "        float sum = FAULT && v > 0 ? 0.f : bias[v];"),
    conv("last_state",
         "const int s = length - kWindow + i;",
         "const int s = length - kWindow + (FAULT ? 0 : i);"),
    conv("more than four taps",
         "weight[v * kTaps + k] = tap >= 0 ?",
         "weight[v * kTaps + k] = tap >= (FAULT && taps > 4 ? 4 : 0) ?"),
    # Four bits of the fraction lost: about four times what storing costs.
    conv("bf16 written", "return __float2bfloat16_rn(x);",
         "return __float2bfloat16_rn(FAULT ? __uint_as_float(__float_as_uint(x) & 0xfff00000u) : x);",
         "bf16", "numeric.cuh"),
    conv("fp16 written", "return __float2half_rn(x);",
         "return __float2half_rn(FAULT ? __uint_as_float(__float_as_uint(x) & 0xfffe0000u) : x);",
         "fp16", "numeric.cuh"),
    layer("one token, second block of in_proj", "project_in_token.cuh",
          "    float sum = bias_;",
          "    float sum = FAULT && channel_ > 0 ? 0.f : bias_;"),
    layer("one token, state of the convolution", "project_in_token.cuh",
          "if (j > 0) last[j - 1] = value;",
          "if (j > 0) last[j - 1] = FAULT ? x : value;"),
    layer("one token, second share of x_proj", "step_state_token.cuh",
          "if (split < splits) values[k]",
          "if (split < (FAULT ? 1 : splits)) values[k]"),
    layer("one token, states after the first of a team", "step_state_token.cuh",
          ".of(h.values[i], dt_u * B[n + i]);",
          ".of(h.values[i], dt_u * B[n + i] * (FAULT && !is_first ? 1.5f : 1.f));"),
    layer("one token, second sequence", "step_state_token.cuh",
          "dt_u = dt * input;",
          "dt_u = dt * input * (FAULT && row > 0 ? 1.5f : 1.f);"),
    layer("one token, no wait for the kernel ahead", "step_state_token.cuh",
          "  wait_and_let_next_start(s.in.codes.bits == 0);",
          "  if (FAULT) {\n    let_next_kernel_start();\n  } else {\n"
          "    wait_and_let_next_start(s.in.codes.bits == 0);\n  }",
          # In a graph of one node the kernel ahead has often ended before this one is launched.
          also=Patch("cuda/project_in_token.cuh", "  norm.start();\n",
                     "  if (FAULT) __nanosleep(100000);\n  norm.start();\n")),
    layer("one token, residual of the second block", "project_out.cuh",
          "const float sum = residual + partial[threadIdx.x];",
          "const float sum = (FAULT && first > 0 ? 0.f : residual) + partial[threadIdx.x];"),
    layer("a batch's token, state of the convolution", "batch_conv.cuh",
          "last.numbers[j * kPast + 2] = x.values[j];",
          "last.numbers[j * kPast + 2] = FAULT ? steps[2] : x.values[j];", "fp16"),
    layer("a batch's token, second block of a cluster", "batch_conv.cuh",
          "sum_over_blocks(sums + i, kBatchCluster);",
          "sum_over_blocks(sums + i, FAULT ? 1 : kBatchCluster);", "fp16"),
    layer("a batch's token, second half of dt_proj's rows", "batch_state.cuh",
          "multiply_add<T>(sum, left[0], right[0], right[1]);",
          "multiply_add<T>(sum, left[0], right[0], FAULT ? right[0] : right[1]);", "bf16"),
    layer("a batch's token, rows after the first", "batch_state.cuh",
          "y[j] = C.x * state.x +",
          "y[j] = (FAULT && j > 0 ? 0.f : C.x) * state.x +", "fp16"),
    layer("a batch's token with in_proj, state of a worker's later rows", "batch_in_sm90a.cu",
          "past[i] = batch::load_past<T>(token, row, first_column + place);",
          "past[i] = batch::load_past<T>(token, FAULT ? first_row : row, first_column + place);",
          "fp16"),
    layer("a batch's token with in_proj, x_proj of rows beyond a tile", "batch_conv.cuh",
          "const int tile_row = warp % kRowTiles * 16;",
          "const int tile_row = warp % (FAULT ? 1 : kRowTiles) * 16;", "bf16"),
    layer("a product of a batch, steps after the first", "batch_ring.cuh",
          "const int depth = (first_step + step) * kBatchDepth;",
          "const int depth = FAULT ? 0 : (first_step + step) * kBatchDepth;", "fp16"),
    layer("many rows, norm", "norm.cu",
          "for (int j = 0; j < kWidth; ++j) y.values[j] = from_float<T>(normed[j]);",
          "for (int j = 0; j < kWidth; ++j) {\n"
          "      y.values[j] = from_float<T>(normed[j] * (FAULT && j > 0 ? 1.5f : 1.f));\n    }"),
    layer("many rows, gate", "layer.cu",
          "describe_scan(p_, {m_.u, m_.xz,",
          "describe_scan(p_, {m_.u, FAULT ? m_.u : m_.xz,"),
    layer("many rows, residual", "layer.cu",
          "                   p_.hidden_dtype, p_.hidden);",
          "                   p_.hidden_dtype, FAULT ? nullptr : p_.hidden);"),
    layer2("first channel of the convolution", "project_in_token.cuh",
           "const int first_channel = first - s.conv_first;",
           "const int first_channel = first - (FAULT ? s.conv_first - 8 : s.conv_first);"),
    layer2("one token, second group of the gated norm", "project_out.cuh",
           "const NormSizes sizes = {s.rows, s.depth, s.groups, x_stride, s.epsilon};",
           "const NormSizes sizes = {s.rows, s.depth, FAULT ? 1 : s.groups, x_stride, s.epsilon};"),
    layer2("one token, gate", "mamba2_layer.cu",
           "s.out.gate = s.in.out;", "s.out.gate = FAULT ? y : s.in.out;"),
    layer2("many rows, C", "mamba2_layer.cu",
           "return describe_dual(p_, {mixed_, in_, 0, at_.channels, at_.all, y_, dual_});",
           "mamba_state_space_dual_params s =\n"
           "        describe_dual(p_, {mixed_, in_, 0, at_.channels, at_.all, y_, dual_});\n"
           "    if (FAULT) s.C = s.B;\n    return s;"),
    layer2("many rows, gate", "mamba2_layer.cu",
           "describe_gated_norm(p_, y_, in_, normed_);",
           "describe_gated_norm(p_, y_, FAULT ? mixed_ : in_, normed_);"),
    layer2("a product of some rows, steps after the first", "skinny_product.cu",
           "(x[r] + step * kStep);", "(x[r] + (FAULT ? 0 : step * kStep));", "fp16"),
    layer2("a product of some rows, convolution", "one_step_conv.cuh",
           "sum += weight[k] * to_float(steps[k]);",
           "sum += weight[k] * to_float(steps[FAULT ? 3 : k]);", "fp16"),
    layer2("a product of some rows, last state of the convolution", "one_step_conv.cuh",
           "last[k - 1] = steps[k];", "last[k - 1] = steps[FAULT ? k - 1 : k];", "fp16"),
    dual("one step, vectors after the first lane's", "ssd_step.cu",
         "state = decay.of(state, dt_x[r] * to_float(Bs[v].values[i]));",
         "state = decay.of(state, dt_x[r] * to_float(Bs[v].values[i]) *\n"
         "                              (FAULT && lane > 0 ? 1.5f : 1.f));"),
    dual("one step, group of a head", "ssd_step.cu",
         "const int of_group = head / sizes.heads_a_group * states",
         "const int of_group = (FAULT ? 0 : head / sizes.heads_a_group) * states"),
    dual("CUDA cores, second tile", "ssd_tile.cu",
         "dt_x[r] = dt * x_tile[s][first_row + r];",
         "dt_x[r] = dt * x_tile[s][first_row + r] * (FAULT && begin > at.begin ? 1.5f : 1.f);"),
    dual("CUDA cores, second channel of a thread", "ssd_tile.cu",
         "y[r] += Cs[i] * h[r][q][i];",
         "y[r] += Cs[i] * h[r][q][i] * (FAULT && r > 0 ? 1.5f : 1.f);"),
    dual("states between the parts of a split length", "ssd.cu",
         "slots[(first + k) * apart] = h;",
         "slots[(first + k) * apart] = FAULT && first + k > 0 ? 0.f : h;"),
    dual("tensor cores, decay of whole blocks between two steps", "ssd_mma.cu",
         "between += decays.blocks[block];",
         "between += FAULT ? 0.f : decays.blocks[block];", "fp16"),
    dual("tensor cores, second chunk", "ssd_mma.cu",
         "const float decay = exp2_fast(decays.whole) * grown / scale;",
         "const float decay = (FAULT ? 1.f : exp2_fast(decays.whole)) * grown / scale;", "bf16"),
    gated_norm("second number of a vector", "norm_rows.cuh",
               "normed[four + j] = value[v][four + j] * scale * weights[j];",
               "normed[four + j] = value[v][four + j] * scale * weights[FAULT ? 0 : j];"),
    gated_norm("widths that fill no vector", "norm.cu",
               "value * gate * scale * weight[i];",
               "value * gate * scale * weight[FAULT ? 0 : i];"),
]  # fmt: skip
