// One run of an exported model from C++, for tests/test_cpp.py.
//
//   run_model LIBRARY MODEL TOKEN...   writes the logits, fp32, to standard output
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  const char* path = argv[1];
  Ort::Env env;
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
#include "documented_lines.h"
  Ort::Session session(env, argv[2], options);

  Ort::AllocatorWithDefaultOptions allocator;
  const auto cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<int64_t> tokens;
  for (int i = 3; i < argc; ++i) tokens.push_back(std::atoll(argv[i]));
  const std::vector<int64_t> shape = {1, static_cast<int64_t>(tokens.size())};

  std::vector<Ort::AllocatedStringPtr> names;
  std::vector<const char*> inputs;
  std::vector<Ort::Value> values;
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    names.push_back(session.GetInputNameAllocated(i, allocator));
    inputs.push_back(names.back().get());
    if (std::string(inputs.back()) == "input_ids") {
      values.push_back(Ort::Value::CreateTensor<int64_t>(cpu, tokens.data(), tokens.size(),
                                                         shape.data(), shape.size()));
      continue;
    }
    const Ort::TypeInfo type = session.GetInputTypeInfo(i);
    std::vector<int64_t> state = type.GetTensorTypeAndShapeInfo().GetShape();
    size_t count = 1;
    for (int64_t& size : state) {
      if (size < 0) size = 1;  // the batch
      count *= static_cast<size_t>(size);
    }
    values.push_back(Ort::Value::CreateTensor<float>(allocator, state.data(), state.size()));
    std::fill_n(values.back().GetTensorMutableData<float>(), count, 0.0F);
  }
  const char* output = "logits";
  const auto results =
      session.Run(Ort::RunOptions{}, inputs.data(), values.data(), values.size(), &output, 1);
  const size_t count = results[0].GetTensorTypeAndShapeInfo().GetElementCount();
  std::fwrite(results[0].GetTensorData<float>(), sizeof(float), count, stdout);
  return 0;
} catch (const Ort::Exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
