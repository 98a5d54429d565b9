/* Drives a TensorRT plugin library through its public interface, with no TensorRT present: what the
 * runtime would be to a plugin (logger, shape expressions, serialisation, tensors' descriptions) is
 * played here. For ctypes and for tests/cpp/hostile_plugins.cpp. Calls return what the plugin
 * returned; -1 and null are failures. */
#ifndef MAMBA_TRT_HARNESS_H
#define MAMBA_TRT_HARNESS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HARNESS_API __attribute__((visibility("default")))

typedef struct {
  int32_t rank;     /* sizes has room for 8: of another rank the plugin sees the number alone */
  int64_t sizes[8]; /* -1: not known while building */
  int32_t type;     /* nvinfer1::DataType */
  int32_t format;   /* nvinfer1::TensorFormat */
} harness_tensor;

typedef struct {
  const char* name;
  int32_t type; /* nvinfer1::PluginFieldType */
  int32_t length;
  const void* data;
} harness_field;

/* Loads the library as TensorRT does and hands it a logger of the given major version of TensorRT:
 * 10 and 11 lay it out differently. major 0: no logger. Null where it does not load. */
HARNESS_API void* harness_open(const char* path, int32_t major);
/* What went wrong in harness_open, and the lines that plugins logged since the last call. */
HARNESS_API const char* harness_log(void);

HARNESS_API int32_t harness_creator_count(void* library);
/* part 0: name, 1: version, 2: namespace, 3: interface's kind */
HARNESS_API const char* harness_creator_text(void* library, int32_t creator, int32_t part);
/* The fields that the creator reads from a node; returns how many there are. */
HARNESS_API int32_t harness_creator_fields(void* library, int32_t creator, harness_field* fields,
                                           int32_t capacity);

/* phase 0: build, 1: runtime. field_count -1: no collection at all. Null where it is refused. */
HARNESS_API void* harness_create(void* library, int32_t creator, const char* layer,
                                 const harness_field* fields, int32_t field_count, int32_t phase);
HARNESS_API void* harness_clone(void* plugin);
HARNESS_API void* harness_attach(void* plugin);
/* Writes the plugin's fields as an engine does, and makes a plugin of them in the runtime phase. */
HARNESS_API void* harness_reload(void* library, void* plugin);
HARNESS_API void harness_destroy(void* plugin);

/* part 0: name, 1: version, 2: namespace, 3: timing cache id, 4: metadata, 5..7: kinds of the core,
 * build and runtime interfaces */
HARNESS_API const char* harness_plugin_text(void* plugin, int32_t part);
HARNESS_API int32_t harness_plugin_fields(void* plugin, harness_field* fields, int32_t capacity);

HARNESS_API int32_t harness_supports(void* plugin, int32_t position, const harness_tensor* tensors,
                                     int32_t inputs, int32_t outputs);
/* Writes the types of the outputs, two at most. */
HARNESS_API int32_t harness_output_types(void* plugin, const harness_tensor* inputs, int32_t count,
                                         int32_t* types);
/* Writes ranks and sizes of the outputs, two at most. A size -1 - k stands for the k-th dynamic
 * size among the inputs', counted in their order: it says whose size an output's is. */
HARNESS_API int32_t harness_output_shapes(void* plugin, const harness_tensor* inputs, int32_t count,
                                          harness_tensor* outputs);
HARNESS_API int32_t harness_configure(void* plugin, const harness_tensor* inputs, int32_t count,
                                      const harness_tensor* outputs);
HARNESS_API size_t harness_workspace(void* plugin, const harness_tensor* largest, int32_t count,
                                     const harness_tensor* outputs);
HARNESS_API int32_t harness_shape_change(void* plugin, const harness_tensor* inputs, int32_t count,
                                         const harness_tensor* outputs);
HARNESS_API int32_t harness_enqueue(void* plugin, const harness_tensor* inputs,
                                    const harness_tensor* outputs, int32_t count,
                                    const void* const* input_data, void* const* output_data,
                                    void* workspace, void* stream);

#ifdef __cplusplus
}
#endif
#endif
