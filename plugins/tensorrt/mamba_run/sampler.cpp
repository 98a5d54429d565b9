#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "error.h"

namespace mamba_run {

int64_t Sampler::choose(const std::vector<float>& logits) {
  size_t best = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) best = i;
    if (std::isnan(logits[best])) break;
    if (logits[i] > logits[best]) best = i;
  }
  if (!std::isfinite(logits[best])) {
    throw Error(
        "the model returned logits that are not finite: build the engine from an fp32 or bf16 "
        "export");
  }
  if (temperature_ == 0) return static_cast<int64_t>(best);

  float least = -INFINITY;  // tokens that tie with the last one kept are kept too
  if (top_k_ > 0 && static_cast<size_t>(top_k_) < logits.size()) {
    sorted_ = logits;
    std::nth_element(sorted_.begin(), sorted_.begin() + (top_k_ - 1), sorted_.end(),
                     std::greater<>());
    least = sorted_[static_cast<size_t>(top_k_ - 1)];
  }
  weights_.resize(logits.size());
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    // The maximum is taken off first: a tiny temperature must not overflow.
    if (logits[i] >= least) total += std::exp((double(logits[i]) - logits[best]) / temperature_);
    weights_[i] = total;
  }
  // 53 bits, in [0, 1). The first token whose cumulative weight exceeds the draw: a dropped one's
  // never does.
  const double draw = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  const auto place = std::upper_bound(weights_.begin(), weights_.end(), draw);
  return place == weights_.end() ? static_cast<int64_t>(best) : place - weights_.begin();
}

}  // namespace mamba_run
