#include "products.h"

#include <array>
#include <map>
#include <mutex>

#include "cublas_lt.h"
#include "cuda_device.h"

namespace mamba_ort {
namespace {

using namespace cublas_lt;

constexpr uint64_t kWorkspaceBytes = uint64_t{32} << 20;  // cuBLAS's own advice for Hopper

// The runtime's own numbers: CudaResource's cublas_handle_t, and the first version that has it.
constexpr int kCublasHandle = 10002, kResourceVersion = 1;

uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | kMostAlignment;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// All that an algorithm is chosen by.
using Case = std::array<int64_t, 11>;

// A product as cuBLASLt sees it. It counts by columns, so that is the transpose of each matrix:
// c' = b' a'.
class Described {
 public:
  explicit Described(const mamba_product& p) : p_(p) {}

  Status make() {
    const Functions& lt = functions();
    const int compute = p_.dtype == MAMBA_FP32 ? kComputePedantic32 : kCompute32;
    const auto rows = static_cast<uint64_t>(p_.rows), columns = static_cast<uint64_t>(p_.columns),
               depth = static_cast<uint64_t>(p_.depth);
    Status bad = lt.create_product(product_.place(), compute, kSums);
    if (!bad) bad = lt.create_matrix(b_.place(), kTypes[p_.dtype], columns, depth, p_.columns);
    if (!bad) bad = lt.create_matrix(a_.place(), kTypes[p_.dtype], depth, rows, p_.a_stride);
    if (!bad) bad = lt.create_matrix(c_.place(), kTypes[p_.c_dtype], columns, rows, p_.c_stride);
    return bad;
  }

  // The first that cuBLASLt advises: the same for the same case, of one GPU and library.
  //
  // What lost (us a layer of Mamba, fp16, one prompt, H100, CUDA 13): no shares of the depth, 114
  // instead of 87 at 1.4B and 157 instead of 122 at 2.8B, 512 tokens; at most one wave of blocks,
  // 107 instead of 96 at 130M and 198 instead of 123 at 370M, 2048 tokens. The fastest of the first
  // six by measuring each product alone would add up in another order from session to session; it
  // takes 37.5 instead of 38.7 at 130M of 512 tokens, and within 0.3 % of the first at 370M, 1.4B
  // and 2.8B of 512 and at 130M and 370M of 2048. Measured in whole layers, 1.4B of 512 took 84.1
  // instead of 86.9. Open: 1.4B and 2.8B of 2048 tokens, where the time of one and the same choice
  // moved by 4 % in a run.
  Status choose(void* handle, Algorithm* algorithm) const {
    const Functions& lt = functions();
    Owned preference(lt.destroy_preference);
    Status bad = lt.create_preference(preference.place());
    if (!bad) {
      bad = lt.set_preference(preference, kMostWorkspaceBytes, &kWorkspaceBytes,
                              sizeof kWorkspaceBytes);
    }
    if (!bad) bad = lt.set_preference(preference, kReductions, &kReduceIn32, sizeof kReduceIn32);
    const void* matrices[] = {p_.b, p_.a, addend(), p_.c};
    for (int i = 0; i < 4 && !bad; ++i) {
      const uint32_t alignment = alignment_of(matrices[i]);
      bad = lt.set_preference(preference, kAlignments[i], &alignment, sizeof alignment);
    }
    if (bad) return bad;
    Candidate best = {};
    int found = 0;
    bad = lt.choose(handle, product_, b_, a_, c_, c_, preference, 1, &best, &found);
    if (bad) return bad;
    if (found == 0) return kNotSupported;
    *algorithm = best.algorithm;
    return best.state;
  }

  Status run(const Products& products, const Algorithm& algorithm, void* stream) const {
    const float one = 1.f, beta = p_.addend ? 1.f : 0.f;
    return functions().run(products.handle, product_, &one, p_.b, b_, p_.a, a_, &beta, addend(), c_,
                           p_.c, c_, &algorithm, products.workspace, kWorkspaceBytes, stream);
  }

  Case key() const {
    const int64_t alignments = alignment_of(p_.a) | alignment_of(p_.b) << 10 |
                               static_cast<int64_t>(alignment_of(addend())) << 20 |
                               static_cast<int64_t>(alignment_of(p_.c)) << 30;
    return {current_device(), p_.rows,     p_.columns,  p_.depth,   p_.dtype,
            p_.c_dtype,       p_.a_stride, p_.c_stride, alignments, p_.addend != nullptr,
            p_.addend == p_.c};
  }

 private:
  const void* addend() const { return p_.addend ? p_.addend : p_.c; }

  const mamba_product& p_;
  Owned product_{functions().destroy_product};
  Owned a_{functions().destroy_matrix}, b_{functions().destroy_matrix},
      c_{functions().destroy_matrix};
};

// The algorithms of the cases that were met, for a choice takes tens of microseconds.
class Algorithms {
 public:
  Status find(const Described& described, void* handle, Algorithm* algorithm) {
    const Case key = described.key();
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = chosen_.find(key);
    if (found != chosen_.end()) {
      *algorithm = found->second;
      return 0;
    }
    if (const Status bad = described.choose(handle, algorithm)) return bad;
    if (chosen_.size() >= kMost) chosen_.clear();
    chosen_.emplace(key, *algorithm);
    return 0;
  }

 private:
  static constexpr size_t kMost = 4096;
  std::mutex mutex_;
  std::map<Case, Algorithm> chosen_;
};

}  // namespace

Products::Products(const OrtFunctions& api, const OrtKernelContext* context, Scratch& scratch)
    : handle(nullptr) {
  if (!functions().is_loaded) {
    throw Failure(MAMBA_NO_CUDA,
                  "cuBLAS is not loaded: ONNX Runtime's CUDA provider should have done so");
  }
  check(api.KernelContext_GetResource(context, kResourceVersion, kCublasHandle, &handle));
  if (!handle) {
    throw Failure(MAMBA_CUDA_ERROR, "ONNX Runtime has no cuBLAS handle for this stream");
  }
  workspace = scratch.take(kWorkspaceBytes, "the workspace of products");
}

int multiply(void* context, const mamba_product* product, void* stream) {
  static Algorithms algorithms;
  const auto& products = *static_cast<const Products*>(context);
  Described described(*product);
  if (const Status bad = described.make()) return bad;
  Algorithm algorithm = {};
  try {
    if (const Status bad = algorithms.find(described, products.handle, &algorithm)) return bad;
  } catch (const std::exception&) {  // no memory to remember it by
    if (const Status bad = described.choose(products.handle, &algorithm)) return bad;
  }
  return described.run(products, algorithm, stream);
}

}  // namespace mamba_ort
