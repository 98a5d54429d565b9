// The part of ONNX Runtime's binary interface that a custom-op library needs. By hand: no wheel of
// ONNX Runtime ships its C headers.
//
// The interface is stable: OrtApi is a table of function pointers that is only ever appended to, so
// a member is known by its index whatever the runtime's version. Tried on ONNX Runtime 1.17, 1.20
// and 1.31. 64-bit platforms only.
#pragma once

#include <cstddef>
#include <cstdint>

// Opaque to us: only pointers to them cross the boundary.
struct OrtApi;
struct OrtStatus;  // null is success
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtMemoryInfo;
struct OrtAllocator;

// The version we ask for, and the one whose OrtCustomOp we fill: the oldest that has every member
// used here.
constexpr uint32_t kOrtApiVersion = 17;

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null where the runtime is older than the version
  const char* (*GetVersionString)();
};

enum OrtErrorCode : int { kOrtFail = 1, kOrtInvalidArgument = 2, kOrtRuntimeException = 6 };
enum OrtElementType : int {
  kOrtFloat = 1,
  kOrtUint8 = 2,
  kOrtInt8 = 3,
  kOrtFloat16 = 10,
  kOrtBFloat16 = 16,
  kOrtUint4 = 21,
  kOrtInt4 = 22
};
enum OrtCharacteristic : int { kOrtRequired = 0, kOrtOptional = 1 };
enum OrtMemType : int { kOrtMemTypeDefault = 0 };
enum OrtAllocatorType : int { kOrtDeviceAllocator = 0 };

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  OrtElementType (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  OrtElementType (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp*, size_t index);  // called unasked: never null
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  // The V2 forms return errors; where they are set, CreateKernel and KernelCompute are not called.
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                               void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

// The runtime reads this struct by offset: a slip here would call the wrong function.
static_assert(sizeof(void*) == 8);
static_assert(offsetof(OrtCustomOp, CreateKernel) == 8);
static_assert(offsetof(OrtCustomOp, KernelDestroy) == 72);
static_assert(offsetof(OrtCustomOp, GetInputCharacteristic) == 80);
static_assert(offsetof(OrtCustomOp, GetInputMemoryType) == 96);
static_assert(offsetof(OrtCustomOp, GetVariadicInputMinArity) == 104);
static_assert(offsetof(OrtCustomOp, CreateKernelV2) == 136);
static_assert(offsetof(OrtCustomOp, KernelComputeV2) == 144);
static_assert(offsetof(OrtCustomOp, InferOutputShapeFn) == 152);
static_assert(offsetof(OrtCustomOp, GetStartVersion) == 160);
static_assert(offsetof(OrtCustomOp, GetMayInplace) == 176);
static_assert(sizeof(OrtCustomOp) == 208);

// OrtApi's members that we call, by their own names. Each number is the member's index in the
// table.
class OrtFunctions {
 public:
  explicit OrtFunctions(const OrtApi* table) : table_(table) {}

  OrtStatus* CreateStatus(OrtErrorCode code, const char* message) const {
    return member<OrtStatus*(OrtErrorCode, const char*)>(0)(code, message);
  }
  OrtStatus* CreateCustomOpDomain(const char* name, OrtCustomOpDomain** domain) const {
    return member<OrtStatus*(const char*, OrtCustomOpDomain**)>(26)(name, domain);
  }
  OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
    return member<OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>(27)(domain, op);
  }
  OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return member<OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>(28)(options, domain);
  }
  OrtStatus* GetTensorMutableData(OrtValue* value, void** data) const {
    return member<OrtStatus*(OrtValue*, void**)>(51)(value, data);
  }
  OrtStatus* GetDimensionsCount(const OrtTensorTypeAndShapeInfo* info, size_t* count) const {
    return member<OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>(61)(info, count);
  }
  OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* sizes,
                           size_t count) const {
    return member<OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>(62)(info, sizes,
                                                                                      count);
  }
  OrtStatus* GetSymbolicDimensions(const OrtTensorTypeAndShapeInfo* info, const char** names,
                                   size_t count) const {
    return member<OrtStatus*(const OrtTensorTypeAndShapeInfo*, const char**, size_t)>(63)(
        info, names, count);
  }
  OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** info) const {
    return member<OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>(65)(value, info);
  }
  OrtStatus* CreateMemoryInfo(const char* name, OrtAllocatorType type, int device,
                              OrtMemType memory, OrtMemoryInfo** info) const {
    return member<OrtStatus*(const char*, OrtAllocatorType, int, OrtMemType, OrtMemoryInfo**)>(68)(
        name, type, device, memory, info);
  }
  OrtStatus* AllocatorFree(OrtAllocator* allocator, void* memory) const {
    return member<OrtStatus*(OrtAllocator*, void*)>(76)(allocator, memory);
  }
  OrtStatus* KernelInfoGetAttribute_float(const OrtKernelInfo* info, const char* name,
                                          float* value) const {
    return member<OrtStatus*(const OrtKernelInfo*, const char*, float*)>(85)(info, name, value);
  }
  OrtStatus* KernelInfoGetAttribute_int64(const OrtKernelInfo* info, const char* name,
                                          int64_t* value) const {
    return member<OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>(86)(info, name, value);
  }
  OrtStatus* KernelInfoGetAttribute_string(const OrtKernelInfo* info, const char* name, char* text,
                                           size_t* size) const {
    return member<OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*)>(87)(info, name,
                                                                                     text, size);
  }
  OrtStatus* KernelContext_GetInput(const OrtKernelContext* context, size_t index,
                                    const OrtValue** value) const {
    return member<OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>(90)(context, index,
                                                                                     value);
  }
  OrtStatus* KernelContext_GetOutput(OrtKernelContext* context, size_t index, const int64_t* sizes,
                                     size_t count, OrtValue** value) const {
    return member<OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>(91)(
        context, index, sizes, count, value);
  }
  void ReleaseStatus(OrtStatus* status) const { member<void(OrtStatus*)>(93)(status); }
  void ReleaseMemoryInfo(OrtMemoryInfo* info) const { member<void(OrtMemoryInfo*)>(94)(info); }
  void ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo* info) const {
    member<void(OrtTensorTypeAndShapeInfo*)>(99)(info);
  }
  OrtStatus* AddSessionConfigEntry(OrtSessionOptions* options, const char* key,
                                   const char* value) const {
    return member<OrtStatus*(OrtSessionOptions*, const char*, const char*)>(130)(options, key,
                                                                                 value);
  }
  void ReleaseAllocator(OrtAllocator* allocator) const {
    member<void(OrtAllocator*)>(132)(allocator);
  }
  OrtStatus* KernelContext_GetGPUComputeStream(const OrtKernelContext* context,
                                               void** stream) const {
    return member<OrtStatus*(const OrtKernelContext*, void**)>(193)(context, stream);
  }
  OrtStatus* HasSessionConfigEntry(const OrtSessionOptions* options, const char* key,
                                   int* has) const {
    return member<OrtStatus*(const OrtSessionOptions*, const char*, int*)>(237)(options, key, has);
  }
  OrtStatus* GetSessionConfigEntry(const OrtSessionOptions* options, const char* key, char* value,
                                   size_t* size) const {
    return member<OrtStatus*(const OrtSessionOptions*, const char*, char*, size_t*)>(238)(
        options, key, value, size);
  }
  // To be released with ReleaseAllocator.
  OrtStatus* KernelContext_GetAllocator(const OrtKernelContext* context, const OrtMemoryInfo* info,
                                        OrtAllocator** allocator) const {
    return member<OrtStatus*(const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator**)>(253)(
        context, info, allocator);
  }
  OrtStatus* KernelInfoGetConstantInput_tensor(const OrtKernelInfo* info, size_t index,
                                               int* is_constant, const OrtValue** value) const {
    return member<OrtStatus*(const OrtKernelInfo*, size_t, int*, const OrtValue**)>(249)(
        info, index, is_constant, value);
  }
  OrtStatus* KernelContext_GetResource(const OrtKernelContext* context, int version, int id,
                                       void** resource) const {
    return member<OrtStatus*(const OrtKernelContext*, int, int, void**)>(265)(context, version, id,
                                                                              resource);
  }
  // The info belongs to the context: not to be released.
  OrtStatus* ShapeInferContext_GetInputTypeShape(const OrtShapeInferContext* context, size_t index,
                                                 OrtTensorTypeAndShapeInfo** info) const {
    return member<OrtStatus*(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**)>(
        268)(context, index, info);
  }
  OrtStatus* ShapeInferContext_SetOutputTypeShape(const OrtShapeInferContext* context, size_t index,
                                                  const OrtTensorTypeAndShapeInfo* info) const {
    return member<OrtStatus*(const OrtShapeInferContext*, size_t,
                             const OrtTensorTypeAndShapeInfo*)>(270)(context, index, info);
  }
  // batches 0: the runtime's threads take one task after another.
  OrtStatus* KernelContext_ParallelFor(const OrtKernelContext* context,
                                       void (*body)(void* data, size_t task), size_t tasks,
                                       size_t batches, void* data) const {
    return member<OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t,
                             void*)>(274)(context, body, tasks, batches, data);
  }
  // Memory of the run's stream: nobody else gets it before the work that was queued until it is
  // freed is done. To be freed with the allocator of KernelContext_GetAllocator. Throws where there
  // is none left.
  OrtStatus* KernelContext_GetScratchBuffer(const OrtKernelContext* context,
                                            const OrtMemoryInfo* info, size_t bytes,
                                            void** memory) const {
    return member<OrtStatus*(const OrtKernelContext*, const OrtMemoryInfo*, size_t, void**)>(277)(
        context, info, bytes, memory);
  }

 private:
  template <typename Signature>
  Signature* member(size_t index) const {
    // Every member is a function pointer, so the table is an array of them.
    return reinterpret_cast<Signature* const*>(table_)[index];
  }

  const OrtApi* table_;
};
