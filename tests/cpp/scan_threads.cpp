// The scan on tensor cores with a CPU thread for each of a block's, for ThreadSanitizer:
// test_scan_threads.py compiles it, with the kernel's source patched for a CPU.
//
//   scan_threads 0    clean; else the hand-over of this number is weakened
#include "cuda_threads.h"
// After it.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "selective_scan/cuda/scan_mma.cu"

namespace {

template <typename Number>
std::vector<Number> drawn(int64_t count, float mean, float spread) {
  static std::mt19937 random(1);
  std::normal_distribution<float> normal(mean, spread);
  std::vector<Number> values(count);
  for (Number& value : values) value = Number(normal(random));
  return values;
}

// A number that is not finite makes consumers take their other way through a tile.
template <typename T, typename Shape>
void run(int64_t length, int64_t d_inner, int64_t d_state, bool is_finite) {
  const auto sequence = [&](std::vector<T>& values, int64_t width) {
    values = drawn<T>(length * width, 0, 1);
    return mamba_sequence{values.data(), length * width, width};
  };
  std::vector<T> u, delta, B, C, z, y(length * d_inner);
  mamba_selective_scan_params p = {};
  p.batch = p.n_groups = p.delta_softplus = 1;
  p.length = length;
  p.d_inner = d_inner;
  p.d_state = d_state;
  p.u = sequence(u, d_inner);
  p.delta = sequence(delta, d_inner);
  p.z = sequence(z, d_inner);
  p.B = sequence(B, d_state);
  p.C = sequence(C, d_state);
  if (!is_finite) u[length / 2 * d_inner] = T(NAN);
  const auto A = drawn<float>(d_inner * d_state, -1, 0.1F), D = drawn<float>(d_inner, 0, 1);
  std::vector<float> state(d_inner * d_state);
  p.A = A.data();
  p.D = p.delta_bias = D.data();
  p.y = y.data();
  p.initial_state = p.last_state = state.data();

  std::vector<typename Shape::Tile> tiles(mamba::kStages);
  threads::shared_memory = reinterpret_cast<unsigned char*>(tiles.data());
  threads::count = Shape::kThreads;
  for (unsigned block = 0; block * Shape::kWidth < d_inner; ++block) {
    for (auto& barrier : threads::barriers) barrier.arrivals = 0;
    std::vector<std::thread> all;
    for (unsigned thread = 0; thread < Shape::kThreads; ++thread) {
      all.emplace_back([&p, thread, block] {
        threadIdx = {thread, 0, 0};
        blockIdx = {block, 0, 0};
        mamba::scan_mma_kernel<T, Shape>(p);
      });
    }
    for (std::thread& one : all) one.join();
  }
}

}  // namespace

int main(int, char** argv) {
  threads::planted = std::atoi(argv[1]);
  using Some = mamba::MmaShape<mamba::MmaSome>;
  using Many = mamba::MmaShape<mamba::MmaMany>;
  run<__half, Some>(165, 32, 16, true);
  if (threads::planted) return 0;
  run<__nv_bfloat16, Many>(165, 56, 16, true);
  run<__half, Some>(101, 24, 8, false);
  std::puts("clean");
}
