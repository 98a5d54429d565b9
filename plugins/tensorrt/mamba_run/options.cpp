#include "options.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>

#include "error.h"

namespace mamba_run {

const char kHelp[] = R"(mamba_run: runs a Mamba engine of TensorRT or TensorRT-RTX, without Python.

  mamba_run --engine OUT/model.engine --prompt "In the beginning" --max-new-tokens 200
  mamba_run --engine OUT --tokens 12,7,300 --json

The engine is what `mamba-export build` wrote; engine.json lies beside it. A model of bytes takes and
writes text; any other takes token ids and writes token ids (its tokenizer is not built in).

  --engine PATH          the engine file, or its folder
  --plugin FILE          libmamba_export_trt.so; default: beside the engine, else beside this program
  --tensorrt FILE        libnvinfer.so.N or libtensorrt_rtx.so.N; default: where the system finds it
  --device N             GPU (default 0)

  --prompt TEXT          text to continue (models of bytes)
  --tokens 1,2,3         token ids to continue
  --max-new-tokens N     how many to write at most (default 64); the end-of-text token ends earlier
  --temperature T        0 takes the most likely token (default); more is more varied
  --top-k K              choose among the K most likely tokens; 0: all (default)
  --seed S               of the choice (default 0)

  --bench                write nothing but the speed: one run to warm up, then three, best of each
  --json                 one JSON object instead of text
  --no-file-check        do not compare the engine with its SHA-256 (seconds for gigabytes)
  --verbose              TensorRT's own messages
  --help                 this text

Exit code: 0; 2 with one line on standard error where something is missing, foreign or not supported.
)";

namespace {

int64_t read_integer(const std::string& option, const std::string& text, int64_t least) {
  errno = 0;
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end || errno || value < least) {
    throw Error(option + " is " + text + ", expected an integer of at least " +
                std::to_string(least));
  }
  return value;
}

double read_number(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !std::isfinite(value) || value < 0) {
    throw Error(option + " is " + text + ", expected a number of at least 0");
  }
  return value;
}

std::vector<int64_t> read_tokens(const std::string& text) {
  std::vector<int64_t> tokens;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    tokens.push_back(read_integer("--tokens", text.substr(start, end - start), 0));
    start = end + 1;
  }
  return tokens;
}

}  // namespace

Options parse_options(int count, const char* const* arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string option = arguments[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= count) throw Error(option + " needs a value (--help says more)");
      return arguments[++i];
    };
    if (option == "--help" || option == "-h") {
      options.help = true;
      return options;
    } else if (option == "--engine") {
      options.engine = value();
    } else if (option == "--plugin") {
      options.plugin = value();
    } else if (option == "--tensorrt") {
      options.tensorrt = value();
    } else if (option == "--device") {
      options.device = static_cast<int>(read_integer(option, value(), 0));
    } else if (option == "--prompt") {
      options.prompt = value();
      options.has_prompt = true;
    } else if (option == "--tokens") {
      options.tokens = read_tokens(value());
    } else if (option == "--max-new-tokens") {
      options.max_new_tokens = read_integer(option, value(), 1);
    } else if (option == "--temperature") {
      options.sampling.temperature = read_number(option, value());
    } else if (option == "--top-k") {
      options.sampling.top_k = read_integer(option, value(), 0);
    } else if (option == "--seed") {
      options.sampling.seed = static_cast<uint64_t>(read_integer(option, value(), 0));
    } else if (option == "--bench") {
      options.bench = true;
    } else if (option == "--json") {
      options.json = true;
    } else if (option == "--no-file-check") {
      options.check_file = false;
    } else if (option == "--verbose") {
      options.verbose = true;
    } else {
      throw Error(option + " is no option (--help lists them)");
    }
  }
  if (options.engine.empty()) throw Error("--engine is missing (--help says more)");
  if (options.has_prompt == !options.tokens.empty()) {
    throw Error("give either --prompt or --tokens");
  }
  if (options.has_prompt && options.prompt.empty()) {
    throw Error("--prompt is empty: a model continues at least one token");
  }
  return options;
}

}  // namespace mamba_run
