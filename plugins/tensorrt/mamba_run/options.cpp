#include "options.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <limits>

#include "error.h"

namespace mamba_run {

const char kHelp[] = R"(mamba_run: runs a Mamba engine of TensorRT or TensorRT-RTX, without Python.

  mamba_run --engine OUT/model.engine --prompt "In the beginning" --max-new-tokens 200
  mamba_run --engine OUT --tokens 12,7,300 --json

The engine is what `mamba-export build` wrote; engine.json lies beside it. A model of bytes takes and
writes text; any other takes token ids and writes token ids (its tokenizer is not built in).

  --engine PATH          the engine file, or its folder
  --plugin FILE          libmamba_export_trt.so; default: the one beside this program
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

constexpr int64_t kMost32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMost64 = std::numeric_limits<int64_t>::max();

std::string start_of(const std::string& text) {
  constexpr size_t kShown = 60;
  return text.size() <= kShown ? text : text.substr(0, kShown) + "...";
}

// Digits and nothing else: strtoll would take " +5".
int64_t read_integer(const std::string& option, const std::string& text, int64_t least,
                     int64_t most = kMost32) {
  errno = 0;
  const bool is_number = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  const long long value = is_number ? std::strtoll(text.c_str(), nullptr, 10) : -1;
  if (!is_number || errno || value < least || value > most) {
    throw Error(option + " is " + start_of(text) + ", expected an integer of at least " +
                std::to_string(least) + " and at most " + std::to_string(most));
  }
  return value;
}

double read_number(const std::string& option, const std::string& text) {
  // Neither hexadecimal nor words.
  const bool may_be_number =
      !text.empty() && text.find_first_not_of("0123456789.eE+-") == std::string::npos;
  char* end = nullptr;
  const double value = may_be_number ? std::strtod(text.c_str(), &end) : -1;
  constexpr double kMost = std::numeric_limits<float>::max();  // that of the GPU's code
  if (!may_be_number || *end || !(value >= 0 && value <= kMost)) {
    throw Error(option + " is " + start_of(text) + ", expected a number of at least 0");
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
    const auto file = [&] {
      const std::string path = value();
      if (path.empty()) throw Error(option + " is empty, expected a file");
      return path;
    };
    if (option == "--help" || option == "-h") {
      options.help = true;
      return options;
    } else if (option == "--engine") {
      options.engine = file();
    } else if (option == "--plugin") {
      options.plugin = file();
    } else if (option == "--tensorrt") {
      options.tensorrt = file();
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
      options.sampling.seed = static_cast<uint64_t>(read_integer(option, value(), 0, kMost64));
    } else if (option == "--bench") {
      options.bench = true;
    } else if (option == "--json") {
      options.json = true;
    } else if (option == "--no-file-check") {
      options.check_file = false;
    } else if (option == "--verbose") {
      options.verbose = true;
    } else {
      throw Error(start_of(option) + " is no option (--help lists them)");
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
