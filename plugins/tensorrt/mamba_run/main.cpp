// mamba_run: an engine, a prompt, and text. --help (options.cpp) lists its options.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "engine_files.h"
#include "error.h"
#include "json.h"
#include "options.h"
#include "plugin_library.h"
#include "printing.h"
#include "session.h"
#include "tensorrt_library.h"
#include "writer.h"

namespace mamba_run {
namespace {

constexpr int kUserError = 2;
constexpr int kBenchRuns = 3;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<int64_t> prompt_tokens(const Options& options, const EngineFiles& files) {
  std::vector<int64_t> tokens = options.tokens;
  if (options.has_prompt) {
    if (!files.has_byte_tokenizer) {
      throw Error(
          "the model is not one of bytes, so --prompt cannot be read: give its token ids with "
          "--tokens");
    }
    for (const char byte : options.prompt) tokens.push_back(static_cast<unsigned char>(byte));
  }
  for (const int64_t token : tokens) {
    if (token >= files.vocab_size) {
      throw Error("token " + std::to_string(token) + " is not in the vocabulary of " +
                  std::to_string(files.vocab_size));
    }
  }
  return tokens;
}

struct Result {
  std::vector<int64_t> tokens;
  bool has_ended = false;  // by the model, and not by --max-new-tokens
  double prompt_seconds = 0, step_seconds = 0;
  size_t steps = 0;
};

Result generate(Session& session, const std::vector<int64_t>& prompt, const Options& options,
                const EngineFiles& files, Writer& writer) {
  Result result;
  session.reset(options.sampling);
  Clock::time_point start = Clock::now();
  int64_t token = session.read(prompt);
  result.prompt_seconds = seconds_since(start);
  start = Clock::now();
  while (true) {
    // A benchmark runs its full length.
    const auto& ends = files.end_tokens;
    result.has_ended = !options.bench && std::find(ends.begin(), ends.end(), token) != ends.end();
    if (result.has_ended) break;
    result.tokens.push_back(token);
    writer.write(token);
    if (static_cast<int64_t>(result.tokens.size()) == options.max_new_tokens) break;
    token = session.step();
    ++result.steps;
  }
  result.step_seconds = seconds_since(start);
  return result;
}

double rate(size_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

std::string json_of(const Result& result, size_t prompt_length, const EngineFiles& files,
                    const std::string& gpu, const std::string& runtime) {
  std::string text, ids;
  for (const int64_t token : result.tokens) {
    if (token < 256) text += static_cast<char>(token);
    ids += (ids.empty() ? "" : ", ") + std::to_string(token);
  }
  char rates[160];
  snprintf(rates, sizeof rates, "\"prompt_tokens_per_second\": %.1f, \"tokens_per_second\": %.1f",
           rate(prompt_length, result.prompt_seconds), rate(result.steps, result.step_seconds));
  return "{\"text\": " + (files.has_byte_tokenizer ? quoted(text) : "null") + ", \"tokens\": [" +
         ids + "], \"prompt_tokens\": " + std::to_string(prompt_length) +
         ", \"finish_reason\": " + (result.has_ended ? "\"stop\"" : "\"length\"") + ", " + rates +
         ", \"gpu\": " + quoted(gpu) + ", \"runtime\": " + quoted(runtime) + "}";
}

void run(const Options& options) {
  const EngineFiles files = read_engine_files(options.engine, options.check_file);
  const std::vector<int64_t> prompt = prompt_tokens(options, files);
  const auto length = static_cast<int64_t>(prompt.size());
  files.profile_for(length);
  files.profile_for(1);
  std::string plugin_library;
  if (files.needs_plugins || !options.plugin.empty()) {
    plugin_library = find_plugin_library(options.plugin);
  }
  const TensorRt tensorrt(options.tensorrt, files);
  const std::string gpu = choose_device(options.device, files);

  Session session(tensorrt, files, plugin_library, length, options.verbose);
  Writer::Form form = files.has_byte_tokenizer ? Writer::Form::kText : Writer::Form::kNumbers;
  if (options.bench || options.json) form = Writer::Form::kSilent;
  Writer writer(form);
  Result result = generate(session, prompt, options, files, writer);
  for (int i = 0; options.bench && i < kBenchRuns; ++i) {
    const Result again = generate(session, prompt, options, files, writer);
    const bool is_first = i == 0;  // the run before warmed up
    result.prompt_seconds =
        is_first ? again.prompt_seconds : std::min(result.prompt_seconds, again.prompt_seconds);
    result.step_seconds =
        is_first ? again.step_seconds : std::min(result.step_seconds, again.step_seconds);
  }
  if (options.json) {
    printf("%s\n", json_of(result, prompt.size(), files, gpu, tensorrt.name()).c_str());
    flush_output();
    return;
  }
  writer.finish();
  fprintf(options.bench ? stdout : stderr,
          "%zu tokens, %.1f tokens/s (prompt of %zu: %.1f tokens/s) on %s, %s\n",
          result.tokens.size(), rate(result.steps, result.step_seconds), prompt.size(),
          rate(prompt.size(), result.prompt_seconds), printable(gpu).c_str(),
          tensorrt.name().c_str());
  flush_output();
}

int refuse(const std::string& why) {
  fprintf(stderr, "mamba_run: %s\n", printable(why).c_str());
  return kUserError;
}

}  // namespace
}  // namespace mamba_run

int main(int count, char** arguments) {
  try {
    mamba_run::fill_standard_descriptors();
    const mamba_run::Options options = mamba_run::parse_options(count, arguments);
    if (options.help) {
      fputs(mamba_run::kHelp, stdout);
      mamba_run::flush_output();
      return 0;
    }
    mamba_run::run(options);
    return 0;
  } catch (const mamba_run::Error& error) {
    return mamba_run::refuse(error.what());
  } catch (const std::bad_alloc&) {
    fprintf(stderr, "mamba_run: failed to allocate memory\n");
  } catch (const std::exception& error) {
    return mamba_run::refuse(error.what());
  }
  return mamba_run::kUserError;
}
