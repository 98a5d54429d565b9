#include "context.h"

#include <cstring>
#include <new>

#include "cuda_device.h"

namespace mamba_ort {

double read_attribute(const OrtFunctions& api, const OrtKernelInfo* info,
                      const Attribute& attribute) {
  // Export always writes every attribute, and the function body has no default either.
  if (attribute.kind == AttributeKind::kFloat) {
    float number = 0.f;
    if (OrtStatus* status = api.KernelInfoGetAttribute_float(info, attribute.name, &number)) {
      api.ReleaseStatus(status);
      throw Refusal(std::string("the number attribute ") + attribute.name + " is missing");
    }
    check_float(attribute.name, number);
    return number;
  }
  int64_t flag = 0;
  if (OrtStatus* status = api.KernelInfoGetAttribute_int64(info, attribute.name, &flag)) {
    api.ReleaseStatus(status);
    throw Refusal(std::string("the integer attribute ") + attribute.name + " is missing");
  }
  if (flag != 0 && flag != 1) {
    throw Refusal(std::string("attribute ") + attribute.name + " is " + std::to_string(flag) +
                  ", expected 0 or 1");
  }
  return static_cast<double>(flag);
}

bool is_constant(const OrtFunctions& api, const OrtKernelInfo* info, size_t index) {
  int answer = 0;
  const OrtValue* value = nullptr;
  check(api.KernelInfoGetConstantInput_tensor(info, index, &answer, &value));
  return answer != 0;
}

void check_version(const OrtFunctions& api, const OrtKernelInfo* info) {
  char version[16] = "";
  size_t size = sizeof version;
  if (OrtStatus* status =
          api.KernelInfoGetAttribute_string(info, kVersionAttribute, version, &size)) {
    api.ReleaseStatus(status);
    throw Refusal(std::string("the text attribute ") + kVersionAttribute +
                  " is missing or too long");
  }
  if (std::strcmp(version, kVersion) != 0) {
    throw Refusal(std::string("the file has version ") + version +
                  " of this operator, the library has version " + kVersion +
                  ": export the model again, or install the mamba_export that wrote it");
  }
}

Input read_input(const OrtFunctions& api, const OrtKernelContext* context, size_t index,
                 const char* name) {
  const OrtValue* value = nullptr;
  check(api.KernelContext_GetInput(context, index, &value));
  if (!value) throw Refusal(std::string(name) + " is missing");
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api.GetTensorTypeAndShape(value, &info));
  const auto release = [&api](OrtTensorTypeAndShapeInfo* p) {
    api.ReleaseTensorTypeAndShapeInfo(p);
  };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> owner(info, release);
  void* data = nullptr;  // the interface has no form for constant tensors; inputs are only read
  check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return {shape_of(api, info), data};
}

void* make_output(const OrtFunctions& api, OrtKernelContext* context, size_t index,
                  const std::vector<int64_t>& shape) {
  OrtValue* value = nullptr;
  check(api.KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  if (value) check(api.GetTensorMutableData(value, &data));
  return data;
}

Scratch::~Scratch() {
  for (void* memory : device_) {
    if (OrtStatus* status = api_.AllocatorFree(device_allocator_, memory)) {
      api_.ReleaseStatus(status);
    }
  }
  if (device_allocator_) api_.ReleaseAllocator(device_allocator_);
  if (device_info_) api_.ReleaseMemoryInfo(device_info_);
}

void* Scratch::take(int64_t bytes, const char* what) {
  // So that nothing can fail between taking and noting it.
  host_.reserve(host_.size() + 1);
  device_.reserve(device_.size() + 1);
  void* memory = nullptr;
  if (provider_ == kCuda) {
    memory = take_device(static_cast<size_t>(bytes));
  } else {
    host_.emplace_back(new (std::nothrow) char[static_cast<size_t>(bytes)]);
    memory = host_.back().get();
  }
  if (memory) return memory;
  throw Failure(MAMBA_OUT_OF_MEMORY, std::string(provider_ == kCuda ? "out of GPU memory: " : "") +
                                         "failed to allocate " + std::to_string(bytes) +
                                         " bytes for " + what +
                                         ": use a smaller batch or shorter parts of the sequence");
}

void* Scratch::take_device(size_t bytes) {
  if (!device_allocator_) {
    check(api_.CreateMemoryInfo("Cuda", kOrtDeviceAllocator, current_device(), kOrtMemTypeDefault,
                                &device_info_));
    check(api_.KernelContext_GetAllocator(context_, device_info_, &device_allocator_));
  }
  void* memory = nullptr;
  OrtStatus* status = nullptr;
  try {
    status = api_.KernelContext_GetScratchBuffer(context_, device_info_, bytes, &memory);
  } catch (...) {  // the runtime's arena throws, and this member of its interface lets it through
  }
  if (status) api_.ReleaseStatus(status);
  if (memory) device_.push_back(memory);
  return memory;
}

void* stream_of(const OrtFunctions& api, const OrtKernelContext* context) {
  void* stream = nullptr;
  check(api.KernelContext_GetGPUComputeStream(context, &stream));
  return stream;
}

}  // namespace mamba_ort
