// How tokens are chosen.
#pragma once

#include <cstdint>

namespace mamba_run {

struct Sampling {
  double temperature = 0;  // 0 takes the most likely token
  int64_t top_k = 0;       // 0 keeps all
  uint64_t seed = 0;
};

}  // namespace mamba_run
