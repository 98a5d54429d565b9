/* The arithmetic of mamba_export's operators, behind a plain C interface.
 *
 * Nothing here knows PyTorch, ONNX Runtime or TensorRT: a caller fills a struct of pointers and
 * sizes and gets an error code. The operators are those of mamba_export/contract;
 * mamba_export/operators defines them. Arithmetic and recurrent state are fp32 whatever the
 * dtype T of the sequences is.
 *
 * The same input gives the same bits, whatever the number of threads and however often it runs.
 */
#ifndef MAMBA_KERNELS_H
#define MAMBA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MAMBA_API __attribute__((visibility("default")))
#else
#define MAMBA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Rises when a struct or the meaning of a field changes. */
#define MAMBA_KERNELS_VERSION 2

typedef enum { MAMBA_FP32 = 0, MAMBA_FP16 = 1, MAMBA_BF16 = 2 } mamba_dtype;

typedef enum {
  MAMBA_OK = 0,
  MAMBA_INVALID = 1,    /* a size or pointer that the operator cannot take */
  MAMBA_NO_CUDA = 2,    /* built without CUDA, no driver or GPU, or a GPU that was not built for */
  MAMBA_CUDA_ERROR = 3, /* CUDA refused a launch; mamba_last_error has its text */
} mamba_status;

/* Runs body(context, i) for every i in [0, tasks), in any order, on any threads, and returns when
 * all are done. scheduler is passed through untouched. */
typedef void (*mamba_parallel_for)(void* scheduler, size_t tasks,
                                   void (*body)(void* context, size_t task), void* context);

/* Sequences (batch, length, channels): channels are contiguous; batch_stride and step_stride are in
 * elements, so that a slice of a projection's output needs no copy. */
typedef struct {
  const void* data;
  int64_t batch_stride;
  int64_t step_stride;
} mamba_sequence;

typedef struct {
  int64_t batch, length, d_inner, d_state, n_groups;
  mamba_dtype dtype; /* of u, delta, B, C, z and y */
  int delta_softplus;
  int reverse;
  mamba_sequence u, delta, z; /* z.data is NULL for the ungated form */
  mamba_sequence B, C;        /* n_groups * d_state contiguous numbers a step */
  const float* A;             /* (d_inner, d_state) */
  const float* D;             /* (d_inner,) */
  const float* delta_bias;    /* (d_inner,) */
  const float* initial_state; /* (batch, d_inner, d_state) */
  void* y;                    /* (batch, length, d_inner), contiguous */
  float* last_state;          /* (batch, d_inner, d_state); may be initial_state */
} mamba_selective_scan_params;

typedef struct {
  int64_t batch, length, channels, d_conv;
  mamba_dtype dtype; /* of x, initial_state, y and last_state */
  int silu;
  int reverse;
  mamba_sequence x;
  const float* weight;       /* (channels, d_conv) */
  const float* bias;         /* (channels,) */
  const void* initial_state; /* (batch, channels, d_conv - 1), oldest step first */
  void* y;                   /* (batch, length, channels), contiguous */
  void* last_state;          /* (batch, channels, d_conv - 1); may be initial_state */
} mamba_causal_conv1d_params;

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

/* CUDA. Pointers are those of the current device, which stream (a cudaStream_t, NULL for the
 * default one) belongs to. The calls return when the work is queued: they allocate nothing, wait
 * for nothing, and may be captured in a CUDA graph. Several threads may call at once. */

/* Architectures that the library holds machine code for, such as "75 80 90 120", and "120+ptx"
 * where newer ones can be compiled for by the driver; "" where it was built without CUDA. */
MAMBA_API const char* mamba_cuda_architectures(void);

/* MAMBA_OK where the kernels run on this device; else mamba_last_error says what is missing. */
MAMBA_API mamba_status mamba_cuda_check_device(int device);

/* Bytes of workspace that mamba_selective_scan_cuda needs for these sizes and every smaller batch
 * and length: 0 for most. Reads the sizes of params alone. */
MAMBA_API size_t mamba_selective_scan_cuda_workspace(const mamba_selective_scan_params* params);

/* workspace: device memory, aligned to 256 bytes, not shared with work on another stream; may be
 * NULL where its size is 0. */
MAMBA_API mamba_status mamba_selective_scan_cuda(const mamba_selective_scan_params* params,
                                                 void* workspace, void* stream);
MAMBA_API mamba_status mamba_causal_conv1d_cuda(const mamba_causal_conv1d_params* params,
                                                void* stream);

/* A whole layer of a Mamba language model: hidden + out_proj(scan(...)) of norm(hidden), the node
 * MambaLayer of mamba_export/contract. All tensors are contiguous; projection weights are
 * (in, out). States and hidden may be the buffers of their results. */
typedef struct {
  int64_t batch, length, d_model, d_inner, d_state, d_conv, dt_rank;
  mamba_dtype dtype;        /* T: projection weights, conv_state, what flows between them */
  mamba_dtype hidden_dtype; /* of hidden and hidden_out: MAMBA_FP32, or dtype */
  float epsilon;            /* of the norm */
  /* 1: no work that is queued on the stream writes the weights, so they are read ahead of it. */
  int constant_weights;
  const void* hidden;           /* (batch, length, d_model) */
  const float* norm_weight;     /* (d_model,) */
  const void* in_proj_weight;   /* (d_model, 2 d_inner): the convolution's columns, the gate's */
  const float* conv_weight;     /* (d_inner, d_conv) */
  const float* conv_bias;       /* (d_inner,) */
  const void* x_proj_weight;    /* (d_inner, dt_rank + 2 d_state) */
  const void* dt_proj_weight;   /* (dt_rank, d_inner) */
  const float* dt_bias;         /* (d_inner,) */
  const float* A;               /* (d_inner, d_state) */
  const float* D;               /* (d_inner,) */
  const void* out_proj_weight;  /* (d_inner, d_model) */
  const void* conv_state;       /* (batch, d_inner, d_conv - 1), oldest step first */
  const float* recurrent_state; /* (batch, d_inner, d_state) */
  void* hidden_out;             /* (batch, length, d_model) */
  void* last_conv_state;        /* (batch, d_inner, d_conv - 1) */
  float* last_recurrent_state;  /* (batch, d_inner, d_state) */
} mamba_layer_params;

/* c (rows, columns) = a (rows, depth) b (depth, columns), plus c where accumulate is 1. Row-major;
 * b is contiguous, strides are in elements. Sums are fp32 at least. */
typedef struct {
  int64_t rows, columns, depth;
  mamba_dtype dtype; /* of a and b */
  mamba_dtype c_dtype;
  int accumulate;
  const void* a;
  int64_t a_stride;
  const void* b;
  void* c;
  int64_t c_stride;
} mamba_product;

/* Queues a product on the stream; returns 0, or another number where it failed. */
typedef int (*mamba_multiply)(void* context, const mamba_product* product, void* stream);

/* 1 where mamba_layer_cuda runs the step's kernels for these sizes on the current device, because
 * they are the quickest: few rows, batch * length. Then it calls no multiply. */
MAMBA_API int mamba_layer_is_step_cuda(const mamba_layer_params* params);

/* Bytes of workspace for these sizes, of the step or of the form for many rows. */
MAMBA_API size_t mamba_layer_step_cuda_workspace(const mamba_layer_params* params);
MAMBA_API size_t mamba_layer_cuda_workspace(const mamba_layer_params* params);

/* The layer in four kernels, which read the weights once at the speed of memory: up to 8 rows. */
MAMBA_API mamba_status mamba_layer_step_cuda(const mamba_layer_params* params, void* workspace,
                                             void* stream);
/* The layer for any number of rows; multiply (cuBLAS, say) does its large products. */
MAMBA_API mamba_status mamba_layer_cuda(const mamba_layer_params* params, mamba_multiply multiply,
                                        void* context, void* workspace, void* stream);

#ifdef __cplusplus
}
#endif
#endif /* MAMBA_KERNELS_H */
