/* Decoding on an NVIDIA GPU: a step of the model captured in a CUDA graph, with the choice of the
 * next token at its end, so that a token costs the host one launch and one number to read. Prompts
 * are read in the same way, by runs over many tokens that are captured.
 *
 * In libraries that were built with CUDA. A stream is used by one thread at a time.
 * mamba_stream_create, mamba_device_alloc and mamba_graph_run set the device that they need and put
 * the caller's back; the others expect the stream's device to be the current one, as it is after a
 * run of ONNX Runtime.
 */
#ifndef MAMBA_DECODE_H
#define MAMBA_DECODE_H

#include "mamba_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  MAMBA_CHOOSE_NOTHING = 0, /* scores become the logits */
  MAMBA_CHOOSE_BEST = 1,    /* the most likely token; of several, the one with the lowest id */
  MAMBA_CHOOSE_DRAWN = 2    /* drawn by its probability */
} mamba_choice;

/* As mamba_export/generation/sampling.py defines them. */
typedef struct {
  int32_t choice;           /* mamba_choice */
  int32_t top_k;            /* 0 keeps all */
  float temperature;        /* above 0 */
  float repetition_penalty; /* 1 is off */
  double top_p;             /* 1 keeps all */
} mamba_choice_options;

/* Host memory here is memory of mamba_host_alloc, which the GPU reads and writes itself: what it
 * holds counts when the work runs, not when it is queued or captured. */
typedef struct {
  int64_t batch, vocab_size;
  mamba_dtype dtype;  /* of logits */
  const void* logits; /* (batch, vocab_size) */
  float* scores;      /* (batch, vocab_size), for MAMBA_CHOOSE_NOTHING */
  uint8_t* seen;      /* (batch, vocab_size), 1 for the tokens that a sequence holds; kept
                         up where repetition_penalty is not 1 */
  const mamba_choice_options* options; /* host, or on the device: every block reads them */
  const double* draws;                 /* host, (slots, batch) in [0, 1) */
  int64_t* next;                       /* (batch,): what the model reads in its next step */
  int64_t* chosen; /* host, (slots, batch); -1 where the largest logit is not finite */
  int64_t* turns;  /* (batch,), 0 at first: which of two slots the choice to come has; each makes it
                      the other one. A step may then be queued while the host has not read yet what
                      the one ahead chose. Null for one slot. */
} mamba_choose_params;

/* Queues the choice. Equal input gives equal tokens. */
MAMBA_API mamba_status mamba_choose_cuda(const mamba_choose_params* params, void* stream);

/* What the host writes to a slot of chosen before it queues the choice, to wait for it. */
#define MAMBA_NOT_CHOSEN (-2)

/* Waits until no number of a slot is MAMBA_NOT_CHOSEN, whatever was queued after that choice. */
MAMBA_API mamba_status mamba_wait_choice(const int64_t* chosen, int64_t batch, void* stream);

/* A stream of its own, which does not wait for the default one. It is the process's until it ends.
 */
MAMBA_API mamba_status mamba_stream_create(int device, void** stream);

/* Zeroed host memory that GPUs reach; mamba_host_free takes NULL too. A captured graph holds what
 * it copies from and to, so that memory which was freed goes with the last such graph. */
MAMBA_API mamba_status mamba_host_alloc(size_t bytes, void** memory);
MAMBA_API void mamba_host_free(void* memory);

/* Memory of a device, of just that size, as a runtime's arena may not give it; mamba_device_free
 * waits for the device's work and takes NULL too. */
MAMBA_API mamba_status mamba_device_alloc(int device, size_t bytes, void** memory);
MAMBA_API void mamba_device_free(void* memory);

/* Queues a copy between any two places. Host memory that it reads may change once it has returned,
 * but for that of mamba_host_alloc; what it writes is there after mamba_wait. */
MAMBA_API mamba_status mamba_copy(void* to, const void* from, size_t bytes, void* stream);

/* Waits for all that was queued. */
MAMBA_API mamba_status mamba_wait(void* stream);

/* Between the two, work on the stream is noted and not run. mamba_capture_end returns NULL in graph
 * and an error where something was queued that cannot be repeated, such as a copy from host memory
 * that is not of mamba_host_alloc, and where graph is NULL itself throws the work away. */
MAMBA_API mamba_status mamba_capture_begin(void* stream);
MAMBA_API mamba_status mamba_capture_end(void* stream, void** graph);

/* Queues a captured graph, which is destroyed after mamba_wait alone. */
MAMBA_API mamba_status mamba_graph_run(void* graph, void* stream);
MAMBA_API void mamba_graph_destroy(void* graph);

#ifdef __cplusplus
}
#endif
#endif /* MAMBA_DECODE_H */
