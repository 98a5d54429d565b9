/* The arithmetic of mamba_export's operators, behind a plain C interface.
 *
 * Nothing here knows PyTorch, ONNX Runtime or TensorRT: a caller fills a struct of pointers and
 * sizes (mamba_params.h) and gets an error code. The operators are those of mamba_export/contract;
 * mamba_export/operators defines them. Arithmetic and recurrent state are fp32 whatever the dtype T
 * of the sequences is; the state of a convolution holds the oldest step first.
 *
 * The same input gives the same bits, whatever the number of threads and however often it runs.
 */
#ifndef MAMBA_KERNELS_H
#define MAMBA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "mamba_params.h"

#if defined(__GNUC__)
#define MAMBA_API __attribute__((visibility("default")))
#else
#define MAMBA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  MAMBA_OK = 0,
  MAMBA_INVALID = 1,    /* a size, attribute or pointer that the operator cannot take */
  MAMBA_NO_CUDA = 2,    /* built without CUDA, no driver or GPU, or a GPU that was not built for */
  MAMBA_CUDA_ERROR = 3, /* CUDA refused a call; mamba_last_error has its text */
  MAMBA_OUT_OF_MEMORY = 4, /* failed to allocate memory; mamba_last_error says how much */
  MAMBA_INTERNAL = 5       /* anything else: a fault of ours */
} mamba_status;

/* Runs body(context, i) for every i in [0, tasks), in any order, on any threads, and returns when
 * all are done. scheduler is passed through untouched. */
typedef void (*mamba_parallel_for)(void* scheduler, size_t tasks,
                                   void (*body)(void* context, size_t task), void* context);

/* MAMBA_KERNELS_VERSION of the library that was loaded. */
MAMBA_API int mamba_kernels_version(void);

/* Instruction set that the CPU kernels use on this machine: "avx512", "avx2" or "baseline". */
MAMBA_API const char* mamba_cpu_instruction_set(void);

/* One line about the last call on this thread that did not return MAMBA_OK; "" where there was
 * none. */
MAMBA_API const char* mamba_last_error(void);

/* parallel_for may be NULL: then the calling thread does all the work. */
MAMBA_API mamba_status mamba_selective_scan_cpu(const mamba_selective_scan_params* params,
                                                mamba_parallel_for parallel_for, void* scheduler);
MAMBA_API mamba_status mamba_causal_conv1d_cpu(const mamba_causal_conv1d_params* params,
                                               mamba_parallel_for parallel_for, void* scheduler);
MAMBA_API mamba_status mamba_state_space_dual_cpu(const mamba_state_space_dual_params* params,
                                                  mamba_parallel_for parallel_for, void* scheduler);
MAMBA_API mamba_status mamba_gated_rms_norm_cpu(const mamba_gated_rms_norm_params* params,
                                                mamba_parallel_for parallel_for, void* scheduler);

/* A whole layer of a Mamba language model: hidden + out_proj(scan(...)) of norm(hidden), the nodes
 * MambaLayer and Mamba2Layer of mamba_export/contract. All tensors are contiguous; projection
 * weights are (in, out). States and hidden may be the buffers of their results. */
MAMBA_API mamba_status mamba_layer_cpu(const mamba_layer_params* params,
                                       mamba_parallel_for parallel_for, void* scheduler);
MAMBA_API mamba_status mamba2_layer_cpu(const mamba2_layer_params* params,
                                        mamba_parallel_for parallel_for, void* scheduler);

/* The product with a language model's head, the node Linear: all tensors are contiguous. */
MAMBA_API mamba_status mamba_linear_cpu(const mamba_linear_params* params,
                                        mamba_parallel_for parallel_for, void* scheduler);

/* CUDA. Pointers are those of the current device, which stream (a cudaStream_t, NULL for the
 * default one) belongs to. The calls return when the work is queued: they allocate nothing, wait
 * for nothing, and may be captured in a CUDA graph. Several threads may call at once. */

/* Architectures that the library holds machine code for, such as "75 80 90 120", and "120+ptx"
 * where newer ones can be compiled for by the driver; "" where it was built without CUDA. */
MAMBA_API const char* mamba_cuda_architectures(void);

/* MAMBA_OK where the kernels run on this device; else mamba_last_error says what is missing. */
MAMBA_API mamba_status mamba_cuda_check_device(int device);

/* Bytes of workspace that mamba_selective_scan_cuda needs for these sizes and every smaller batch
 * and length: 0 for most, and for sizes that the call refuses. Reads the sizes of params alone. */
MAMBA_API size_t mamba_selective_scan_cuda_workspace(const mamba_selective_scan_params* params);

/* workspace: device memory, aligned to 256 bytes, not shared with work on another stream; may be
 * NULL where its size is 0. */
MAMBA_API mamba_status mamba_selective_scan_cuda(const mamba_selective_scan_params* params,
                                                 void* workspace, void* stream);
MAMBA_API mamba_status mamba_causal_conv1d_cuda(const mamba_causal_conv1d_params* params,
                                                void* stream);

/* The same of state space duality. */
MAMBA_API size_t mamba_state_space_dual_cuda_workspace(const mamba_state_space_dual_params* params);
MAMBA_API mamba_status mamba_state_space_dual_cuda(const mamba_state_space_dual_params* params,
                                                   void* workspace, void* stream);
/* The name of the kernel that mamba_state_space_dual_cuda runs for these parameters on a GPU of an
 * architecture, such as 90, which need not be there; 0: on the current device. "step" for a few
 * steps of length, "hopper" and "mma" on tensor cores, "tile" for other sizes, "any" for a d_state
 * beyond those; "" for sizes that the call refuses, and where the library was built without CUDA. A
 * tensor that is null counts as aligned. */
MAMBA_API const char* mamba_state_space_dual_cuda_form(const mamba_state_space_dual_params* params,
                                                       int architecture);
MAMBA_API mamba_status mamba_gated_rms_norm_cuda(const mamba_gated_rms_norm_params* params,
                                                 void* stream);

/* A layer of Mamba: in_proj_weight has the convolution's columns, then the gate's; epsilon is the
 * norm's. */

/* c (rows, columns) = a (rows, depth) b (depth, columns), plus addend where that is not null: laid
 * out as c, and c itself or apart from it. Row-major; b is contiguous, strides are in elements.
 * Sums are fp32 at least. */
typedef struct {
  int64_t rows, columns, depth;
  mamba_dtype dtype;   /* of a and b */
  mamba_dtype c_dtype; /* of addend and c */
  const void* a;
  int64_t a_stride;
  const void* b;
  const void* addend;
  void* c;
  int64_t c_stride;
} mamba_product;

/* Queues a product on the stream; returns 0, or another number where it failed. */
typedef int (*mamba_multiply)(void* context, const mamba_product* product, void* stream);

/* 1 where mamba_layer_cuda runs the step's kernels for these sizes on the current device, because
 * they are the quickest: few rows, batch * length. Then it calls no multiply. */
MAMBA_API int mamba_layer_is_step_cuda(const mamba_layer_params* params);

/* Bytes of workspace for these sizes, of the step or of the form for many rows; 0 for sizes that
 * the call refuses. */
MAMBA_API size_t mamba_layer_step_cuda_workspace(const mamba_layer_params* params);
MAMBA_API size_t mamba_layer_cuda_workspace(const mamba_layer_params* params);

/* The layer in four kernels, which read the weights once at the speed of memory: up to 8 rows. */
MAMBA_API mamba_status mamba_layer_step_cuda(const mamba_layer_params* params, void* workspace,
                                             void* stream);
/* The layer for any number of rows; multiply (cuBLAS, say) does its products, but for those of few
 * rows that our own kernels are quicker at. */
MAMBA_API mamba_status mamba_layer_cuda(const mamba_layer_params* params, mamba_multiply multiply,
                                        void* context, void* workspace, void* stream);

/* The same of a layer of Mamba-2, the node Mamba2Layer: in_proj_weight has the columns of the gate
 * z, of x, B and C, which the convolution is over, and of dt. A step is three kernels; sizes that
 * the first and the last of them have no memory for are refused there. */
MAMBA_API int mamba2_layer_is_step_cuda(const mamba2_layer_params* params);
/* What mamba_state_space_dual_cuda_form says of the operator inside a layer of Mamba-2. */
MAMBA_API const char* mamba2_layer_cuda_form(const mamba2_layer_params* params, int architecture);
MAMBA_API size_t mamba2_layer_step_cuda_workspace(const mamba2_layer_params* params);
MAMBA_API size_t mamba2_layer_cuda_workspace(const mamba2_layer_params* params);
MAMBA_API mamba_status mamba2_layer_step_cuda(const mamba2_layer_params* params, void* workspace,
                                              void* stream);
MAMBA_API mamba_status mamba2_layer_cuda(const mamba2_layer_params* params, mamba_multiply multiply,
                                         void* context, void* workspace, void* stream);

/* The layers again, with codes for in_proj_weight and out_proj_weight. A step reads the codes as
 * they are: up to 8 rows in fp16 on sm_80 and later, else up to 4; for more the weights are widened
 * into the workspace at every call. multiply may be NULL where is_step. */
MAMBA_API int mamba_layer_packed_is_step_cuda(const mamba_layer_packed_params* params);
MAMBA_API size_t mamba_layer_packed_cuda_workspace(const mamba_layer_packed_params* params);
MAMBA_API mamba_status mamba_layer_packed_cuda(const mamba_layer_packed_params* params,
                                               mamba_multiply multiply, void* context,
                                               void* workspace, void* stream);
MAMBA_API int mamba2_layer_packed_is_step_cuda(const mamba2_layer_packed_params* params);
MAMBA_API size_t mamba2_layer_packed_cuda_workspace(const mamba2_layer_packed_params* params);
MAMBA_API mamba_status mamba2_layer_packed_cuda(const mamba2_layer_packed_params* params,
                                                mamba_multiply multiply, void* context,
                                                void* workspace, void* stream);

/* A head with codes for its weight, which are (in_features, out_features): as the layers'. */
MAMBA_API int mamba_linear_packed_is_step_cuda(const mamba_linear_packed_params* params);
MAMBA_API size_t mamba_linear_packed_cuda_workspace(const mamba_linear_packed_params* params);
MAMBA_API mamba_status mamba_linear_packed_cuda(const mamba_linear_packed_params* params,
                                                mamba_multiply multiply, void* context,
                                                void* workspace, void* stream);

#ifdef __cplusplus
}
#endif
#endif /* MAMBA_KERNELS_H */
