#include "chooser.h"

#include <algorithm>
#include <limits>

#include "error.h"

namespace mamba_run {

Chooser::Chooser(int64_t vocab_size, mamba_dtype dtype) {
  const auto count = static_cast<size_t>(vocab_size);
  scores_ = Memory(count * sizeof(float), Memory::Place::kDevice);
  seen_ = Memory(count, Memory::Place::kDevice);
  options_ = Memory(sizeof(mamba_choice_options), Memory::Place::kHost);
  draw_ = Memory(sizeof(double), Memory::Place::kHost);
  chosen_ = Memory(sizeof(int64_t), Memory::Place::kHost);
  params_.batch = 1;
  params_.vocab_size = vocab_size;
  params_.dtype = dtype;
  params_.scores = static_cast<float*>(scores_.data());
  params_.seen = static_cast<uint8_t*>(seen_.data());
  params_.options = static_cast<const mamba_choice_options*>(options_.data());
  params_.draws = static_cast<const double*>(draw_.data());
  params_.chosen = static_cast<int64_t*>(chosen_.data());
  start({});
}

void Chooser::start(const Sampling& sampling) {
  auto& options = *static_cast<mamba_choice_options*>(options_.data());
  options = {};
  options.choice = sampling.temperature == 0 ? MAMBA_CHOOSE_BEST : MAMBA_CHOOSE_DRAWN;
  options.top_k = static_cast<int32_t>(std::min(sampling.top_k, params_.vocab_size));
  // Never so small that it is 0 in fp32.
  options.temperature =
      std::max(static_cast<float>(sampling.temperature), std::numeric_limits<float>::min());
  options.repetition_penalty = 1;
  options.top_p = 1;
  random_.seed(sampling.seed);
}

void Chooser::draw() {
  // 53 bits, in [0, 1).
  *static_cast<double*>(draw_.data()) = static_cast<double>(random_() >> 11) * 0x1p-53;
}

bool Chooser::queue(const void* logits, int64_t* next, cudaStream_t stream) {
  mamba_choose_params params = params_;
  params.logits = logits;
  params.next = next;
  return mamba_choose_cuda(&params, stream) == MAMBA_OK;
}

int64_t Chooser::chosen() const {
  const int64_t token = *params_.chosen;
  if (token < 0) {
    throw Error(
        "the model returned logits that are not finite: build the engine from an fp32 or bf16 "
        "export");
  }
  return token;
}

}  // namespace mamba_run
