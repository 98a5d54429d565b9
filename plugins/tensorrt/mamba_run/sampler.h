#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace mamba_run {

// Chooses a token from logits. The random stream is this program's own: a seed gives the same text
// in every run of it, not the text that Python's sessions give.
class Sampler {
 public:
  Sampler(double temperature, int64_t top_k, uint64_t seed)
      : temperature_(temperature), top_k_(top_k), random_(seed) {}

  // Throws Error where the largest logit is not finite.
  int64_t choose(const std::vector<float>& logits);

 private:
  double temperature_;
  int64_t top_k_;
  std::mt19937_64 random_;
  std::vector<float> sorted_;
  std::vector<double> weights_;
};

}  // namespace mamba_run
