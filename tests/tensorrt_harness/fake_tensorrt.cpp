// Plays TensorRT's part to mamba_run, with one small recurrent model for every engine: its session
// is tried on GPUs that no TensorRT at hand serves.
//
// TensorRT's classes forward to objects of interfaces with a hundred functions, which differ from
// version to version. Here such an object has a virtual table that is filled at the places of the
// few functions that mamba_run calls.
#include <NvInferRuntime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "fake_model.h"

namespace {

using namespace nvinfer1;

// An object as the Itanium C++ ABI lays it out: first the address of its virtual table.
class Implementation {
 public:
  Implementation() {
    for (void*& function : functions_) function = reinterpret_cast<void*>(&missing);
  }
  Implementation(const Implementation&) = delete;

  // Puts function, which takes the object first, in the place of a virtual member.
  template <typename Member, typename Function>
  void set(Member member, Function* function) {
    struct {
      uintptr_t place;  // offset in the table; odd on x86
      ptrdiff_t adjustment;
    } bits;
    static_assert(sizeof member == sizeof bits);
    std::memcpy(&bits, &member, sizeof bits);
    functions_[(bits.place & ~uintptr_t{1}) / sizeof(void*)] = reinterpret_cast<void*>(function);
  }

 private:
  static void missing() {
    fprintf(stderr, "the fake TensorRT has no such function\n");
    abort();
  }

  void** table_ = functions_;
  void* functions_[256];
};

Dims dims_of(int64_t batch, int64_t length, const std::string& name) {
  const bool is_state = name == "past" || name == "present";
  Dims dims{};
  dims.nbDims = name == "logits" ? 3 : 2;
  dims.d[0] = batch;
  dims.d[1] = is_state ? kStates : length;
  dims.d[2] = kVocabSize;
  return dims;
}

class Context final : public IExecutionContext {
 public:
  explicit Context(bool gives_nan) : self_(gives_nan) {
    using V = apiv::VExecutionContext;
    self_.set(&V::setOptimizationProfileAsync, &set_profile);
    self_.set(&V::setInputShape, &set_shape);
    self_.set(&V::getTensorShape, &shape);
    self_.set(&V::setTensorAddress, &set_address);
    self_.set(&V::enqueueV3, &enqueue);
    mImpl = reinterpret_cast<V*>(&self_);
  }

 private:
  struct Self : Implementation {
    explicit Self(bool gives_nan) : gives_nan(gives_nan) {}
    bool gives_nan;
    int32_t profile = -1;
    int64_t length = 0;
    std::map<std::string, void*> addresses;
  };

  static bool set_profile(Self* self, int32_t profile, cudaStream_t) {
    self->profile = profile;
    return true;
  }
  static bool set_shape(Self* self, const char* name, const Dims& dims) {
    if (dims.d[0] != 1) return false;
    if (name != std::string("input_ids")) return dims.d[1] == kStates;
    self->length = dims.d[1];
    return self->length > 0 && (self->profile == 0 || self->length == 1);
  }
  static Dims shape(Self* self, const char* name) { return dims_of(1, self->length, name); }
  static bool set_address(Self* self, const char* name, void* address) {
    self->addresses[name] = address;
    return true;
  }
  static bool enqueue(Self* self, cudaStream_t stream) {
    const auto at = [&](const char* name) { return self->addresses.at(name); };
    return launch_model(static_cast<const int64_t*>(at("input_ids")), self->length,
                        static_cast<const float*>(at("past")), static_cast<float*>(at("present")),
                        static_cast<float*>(at("logits")), self->gives_nan, stream);
  }

  Self self_;
};

class Engine final : public ICudaEngine {
 public:
  explicit Engine(bool gives_nan) : self_(gives_nan) {
    using V = apiv::VCudaEngine;
    self_.set(&V::createExecutionContext, &create_context);
    self_.set(&V::getNbOptimizationProfiles, &profiles);
    self_.set(&V::getTensorShape, &shape);
    self_.set(&V::getTensorDataType, &type);
    self_.set(&V::getTensorIOMode, &mode);
    mImpl = reinterpret_cast<V*>(&self_);
  }

 private:
  struct Self : Implementation {
    explicit Self(bool gives_nan) : gives_nan(gives_nan) {}
    bool gives_nan;
  };

  static IExecutionContext* create_context(Self* self, ExecutionContextAllocationStrategy) {
    return new Context(self->gives_nan);
  }
  static int32_t profiles(Self*) { return 2; }
  static Dims shape(Self*, const char* name) { return dims_of(-1, -1, name); }
  static DataType type(Self*, const char* name) {
    return name == std::string("input_ids") ? DataType::kINT64 : DataType::kFLOAT;
  }
  static TensorIOMode mode(Self*, const char* name) {
    const std::string text = name;
    if (text == "input_ids" || text == "past") return TensorIOMode::kINPUT;
    return text == "logits" || text == "present" ? TensorIOMode::kOUTPUT : TensorIOMode::kNONE;
  }

  Self self_;
};

class Runtime final : public IRuntime {
 public:
  Runtime() {
    using V = apiv::VRuntime;
    using Deserialize = ICudaEngine* (V::*)(const void*, size_t) noexcept;
    self_.set(static_cast<Deserialize>(&V::deserializeCudaEngine), &deserialize);
    mImpl = reinterpret_cast<V*>(&self_);
  }

 private:
  static ICudaEngine* deserialize(Implementation*, const void* bytes, size_t size) {
    return new Engine(static_cast<const char*>(bytes)[size - 1] == 'N');
  }

  Implementation self_;
};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int32_t getInferLibMajorVersion() {
  return NV_TENSORRT_MAJOR;
}
__attribute__((visibility("default"))) int32_t getInferLibMinorVersion() {
  return NV_TENSORRT_MINOR;
}
__attribute__((visibility("default"))) void* createInferRuntime_INTERNAL(void*, int32_t) {
  return static_cast<IRuntime*>(new Runtime);
}

}  // extern "C"
