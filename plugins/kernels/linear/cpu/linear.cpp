// A product with a matrix that has a row an output, on a CPU.
#include "common/checks.h"
#include "layer/cpu/parts.h"

extern "C" mamba_status mamba_linear_cpu(const mamba_linear_params* params,
                                         mamba_parallel_for parallel_for, void* scheduler) {
  using namespace mamba;
  if (mamba_status bad = check(params)) return bad;
  const mamba_linear_params& p = *params;
  LayerOnCpu on_cpu("linear", p.batch * p.length, p.in_features, p.dtype, p.dtype);
  const int64_t needed = on_cpu.product_bytes(p.in_features, p.out_features, true);
  Parts parts(nullptr);
  parts.take(needed > 0 ? needed : 1);
  const Workspace workspace(parts.used());
  if (!workspace.data()) return no_workspace("linear", parts.used());
  on_cpu.multiply({p.x, p.in_features, p.in_features, p.weight, p.out_features, true}, p.y,
                  workspace.data());
  return on_cpu.run({parallel_for, scheduler});
}
