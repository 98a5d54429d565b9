// What mamba_run makes of hostile input, without CUDA or TensorRT: JSON, the files beside an
// engine, options, and text for a terminal. tests/test_mamba_run_inputs.py compiles and runs it
// with sanitizers; what a case must hold is said where it is judged.
//
//   mamba_run_inputs [COUNT [FIRST]]   seeded cases (seeded.h)
//   mamba_run_inputs --json FILE       texts of a file, each after its length and a line break: a
//   line
//                                      with the JSON as mamba_run reads it, an empty one if refused
//   mamba_run_inputs --text FILE       the bytes of a file as a model's text to standard output
//   mamba_run_inputs --line FILE       the same as one line of a message
//
// Compiled with -DMAMBA_LIBFUZZER -fsanitize=fuzzer (clang++) it is a target of libFuzzer.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine_files.h"
#include "error.h"
#include "files.h"
#include "json.h"
#include "options.h"
#include "printing.h"
#include "seeded.h"
#include "utf8.h"
#include "writer.h"

namespace {

using mamba_run::Error;
using mamba_run::Json;
using seeded::expect;
using seeded::Random;

// engine.json and mamba_export.json as they are written.
constexpr char kEngineJson[] = R"({"format": 1, "runtime": "tensorrt", "runtime_version": "10.14.1",
 "compute_capability": "8.7", "contract_version": 1, "plugins": {"SelectiveScan": 1},
 "plugin_library": "libmamba_export_trt.so", "engine_sha256": null, "precision": "fp16",
 "byte_tokenizer": true, "inputs": [{"name": "input_ids", "dtype": "int64", "shape": [-1, -1]},
 {"name": "past.0", "dtype": "fp16", "shape": [-1, 8, 3]}, {"name": "past.1", "dtype": "fp32",
 "shape": [-1, 8, 16]}], "outputs": [{"name": "logits", "dtype": "fp16", "shape": [-1, -1, 256]},
 {"name": "present.0", "dtype": "fp16", "shape": [-1, 8, 3]}, {"name": "present.1", "dtype": "fp32",
 "shape": [-1, 8, 16]}], "profiles": [{"name": "prefill", "batch": [1, 1, 4], "length":
 [1, 128, 512]}, {"name": "decode", "batch": [1, 1, 4], "length": [1, 1, 1]}], "states":
 [["past.0", "present.0"], ["past.1", "present.1"]], "vocab_size": 256, "build": {"seconds": 1.5e-1},
 "version_compatible": false, "model": {"graph_sha256": "\u00e9\ud83d\ude00\n"}})";
constexpr char kMetadataJson[] = R"({"format": 2, "contract_version": 1, "dtype": "fp16",
 "states": [{"name": "layers.0", "start": 0.0, "grows": null}], "tokens": {"vocab_size": 256,
 "eos_token_id": [0, 3], "last_logits_only": false}, "model": null})";
constexpr char kEngine[] = "ftrt";

constexpr std::string_view kSnippets[] = {
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u",
    "\\ud800",
    "\\u0000",
    "\\udc00",
    "null",
    "true",
    "nan",
    "Infinity",
    "-",
    "0",
    "1e999",
    "1e-999",
    "0x1",
    "9223372036854775808",
    "-1",
    "2147483648",
    ".",
    "e",
    " ",
    "\n",
    "\xef\xbb\xbf",
    std::string_view("\0", 1),
    "\xc0\x80",
    "\xed\xa0\x80",
    "\xf4\x90\x80\x80",
    "\x1b[2J",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\"name\": \"past.0\"",
    "[]",
    "{}",
    "\"format\": 1,",
    "\"\"",
};

constexpr const char* kOptions[] = {
    "--engine",
    "--plugin",
    "--tensorrt",
    "--device",
    "--prompt",
    "--tokens",
    "--max-new-tokens",
    "--bench",
    "--top-k",
    "--seed",
    "--temperature",
    "--json",
    "-h",
    "--no-file-check",
    "--verbose",
    "--help",
    "--",
    "",
    "x",
    "0",
    "-1",
    "1",
    "1,2,3",
    "1,,2",
    "2147483647",
    "4294967296",
    "1e39",
    "0.5",
    "nan",
    "+1",
    " 1",
    "\x1b]0;\x07",
    "\xff",
    "1e",
    ".",
};

// --- What must hold of each
// ------------------------------------------------------------------------

bool is_text_of_unicode(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const mamba_run::Character one = mamba_run::character_at(text, at);
    if (one.kind != mamba_run::Character::Kind::kValid) return false;
    at += one.bytes;
  }
  return true;
}

// Whether a terminal shows it and obeys nothing in it; `kept` are control characters that may
// stand.
bool is_harmless(const std::string& text, std::string_view kept) {
  if (!is_text_of_unicode(text)) return false;
  for (size_t at = 0; at < text.size();) {
    const mamba_run::Character one = mamba_run::character_at(text, at);
    const bool is_control = one.code < 0x20 || (one.code >= 0x7f && one.code < 0xa0);
    if (is_control && kept.find(text[at]) == std::string_view::npos) return false;
    at += one.bytes;
  }
  return true;
}

std::string written(const Json& value) {
  switch (value.kind()) {
    case Json::Kind::kNull:
      return "null";
    case Json::Kind::kBool:
      return value.boolean() ? "true" : "false";
    case Json::Kind::kNumber: {
      char digits[32];
      std::snprintf(digits, sizeof digits, "%.17g", value.number());
      return digits;
    }
    case Json::Kind::kText:
      return mamba_run::quoted(value.text());
    case Json::Kind::kList: {
      std::string found;
      for (const Json& one : value.list()) found += (found.empty() ? "" : ",") + written(one);
      return "[" + found + "]";
    }
    case Json::Kind::kObject: {
      std::string found;
      for (const auto& [key, one] : value.object()) {
        found += (found.empty() ? "" : ",") + mamba_run::quoted(key) + ":" + written(one);
      }
      return "{" + found + "}";
    }
  }
  return "";
}

std::string written_or_refused(const std::string& text) {
  try {
    return written(Json::parse(text));
  } catch (const Error&) {
    return "";
  }
}

void judge_json(const std::string& text) {
  const std::string once = written_or_refused(text);
  if (once.empty()) return;
  expect(is_text_of_unicode(text) && text.find('\0') == std::string::npos,
         "JSON was read that is not UTF-8, or holds a zero byte");
  expect(written_or_refused(once) == once, "JSON that was written again reads otherwise");
}

void judge_text(const std::string& bytes) {
  mamba_run::TerminalText stream;
  std::string found;
  for (const char byte : bytes) found += stream.push(byte);
  found += stream.finish();
  expect(is_harmless(found, "\n\t"), "a model's text reaches the terminal with control characters");
  const std::string line = mamba_run::printable(bytes);
  expect(is_harmless(line, ""), "a line has control characters in it");
  expect(mamba_run::printable(line) == line, "a line that is harmless is changed");
}

void judge_options(const std::vector<std::string>& words) {
  std::vector<const char*> arguments{"mamba_run"};
  for (const std::string& word : words) arguments.push_back(word.c_str());
  try {
    const mamba_run::Options found =
        mamba_run::parse_options(static_cast<int>(arguments.size()), arguments.data());
    if (found.help) return;
    expect(!found.engine.empty(), "no engine");
    expect(found.device >= 0 && found.max_new_tokens >= 1, "a number below its least");
    expect(found.sampling.top_k >= 0 && found.sampling.top_k <= INT32_MAX, "top-k");
    expect(std::isfinite(static_cast<float>(found.sampling.temperature)), "temperature");
    expect(found.has_prompt != !found.tokens.empty(), "a prompt and tokens, or neither");
    for (const int64_t token : found.tokens) expect(token >= 0 && token <= INT32_MAX, "a token");
  } catch (const Error& error) {
    expect(std::string_view(error.what()).size() < 400, "a long message");
  }
}

// The folder that cases write their files into.
std::string folder_of_cases() {
  static const std::string folder = [] {
    std::string name = std::filesystem::temp_directory_path() / "mamba_run_inputs.XXXXXX";
    expect(mkdtemp(name.data()) != nullptr, "no folder for the cases");
    static const std::string made = name;
    std::atexit([] { std::filesystem::remove_all(made); });
    return made;
  }();
  return folder;
}

void judge_files(const std::string& description, const std::string& metadata,
                 const std::string& engine) {
  const std::string folder = folder_of_cases();
  const auto write = [&](const char* name, const std::string& content) {
    std::ofstream(folder + "/" + name, std::ios::binary) << content;
  };
  write("engine.json", description);
  write("mamba_export.json", metadata);
  write("model.engine", engine);
  try {
    const mamba_run::EngineFiles found = mamba_run::read_engine_files(folder, true);
    expect(found.vocab_size >= 1 && found.vocab_size <= INT32_MAX, "vocab_size");
    std::set<std::string> names{found.input, found.output};
    for (const auto& [past, present] : found.states) names.insert({past, present});
    expect(names.size() == 2 + 2 * found.states.size(), "two tensors of one name");
    for (const std::string& name : names) {
      expect(!name.empty() && name.find('\0') == std::string::npos, "a name");
    }
    expect(!found.profiles.empty(), "no profile");
    for (const auto& profile : found.profiles) {
      for (const auto& range : {profile.batch, profile.length}) {
        expect(1 <= range.minimum && range.minimum <= range.optimum &&
                   range.optimum <= range.maximum && range.maximum <= INT32_MAX,
               "a range");
      }
    }
    for (const int64_t length : {int64_t{-1}, int64_t{1}, INT64_MAX}) {
      try {
        const size_t index = found.profile_for(length);
        expect(found.profiles.at(index).length.holds(length), "a profile that takes it not");
      } catch (const Error&) {
      }
    }
  } catch (const Error& error) {
    expect(is_harmless(mamba_run::printable(error.what()), ""), "a message in control characters");
  }
}

std::string whole_engine() {
  std::string engine = kEngine;
  engine.resize(24);
  return engine + "\x0a\x0e\x01\x30" + std::string(40, 'U');
}

// --- Where cases come from
// -------------------------------------------------------------------------

[[maybe_unused]] void run_case(Random& random, int64_t number) {
  const std::string description = random.damaged(kEngineJson, kSnippets);
  const std::string metadata = random.damaged(kMetadataJson, kSnippets);
  switch (number % 4) {
    case 0:
      return judge_json(random.once_in(2) ? description : metadata);
    case 1: {
      std::string bytes(static_cast<size_t>(random.between(0, 60)), '\0');
      random.fill(bytes.data(), bytes.size());
      return judge_text(random.once_in(2) ? bytes : random.damaged(bytes, kSnippets));
    }
    case 2: {
      std::vector<std::string> words(static_cast<size_t>(random.between(0, 8)));
      for (std::string& word : words) {
        word = random.once_in(8) ? std::to_string(random.hostile_size()) : random.pick(kOptions);
      }
      // Ones that would do, so that what follows is judged too.
      if (random.once_in(2)) words.insert(words.begin(), {"--engine", "x", "--prompt", "a"});
      return judge_options(words);
    }
    default: {
      // One file is damaged at a time, so that the checks behind are reached.
      const int64_t which = random.between(0, 2);
      std::string engine = whole_engine();
      return judge_files(which == 0 ? description : kEngineJson,
                         which == 1 ? metadata : kMetadataJson,
                         which == 2 ? random.damaged(engine, kSnippets) : engine);
    }
  }
}

[[maybe_unused]] int show(const std::string& what, const char* path) {
  try {
    const std::string content = mamba_run::read_whole(path, size_t{1} << 24);
    if (what == "--json") {
      for (size_t at = 0; at < content.size();) {
        const size_t length = std::stoul(content.substr(at, 20));
        at = content.find('\n', at) + 1;
        std::puts(written_or_refused(content.substr(at, length)).c_str());
        at += length;
      }
    } else if (what == "--line") {
      std::puts(mamba_run::printable(content).c_str());
    } else {
      mamba_run::Writer writer(mamba_run::Writer::Form::kText);
      for (const char byte : content) writer.write(static_cast<unsigned char>(byte));
      writer.write(300);  // of a vocabulary that is padded beyond the bytes
      writer.finish();
    }
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}

}  // namespace

#ifdef MAMBA_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 6) {
    case 0:
      judge_json(bytes);
      break;
    case 1:
      judge_text(bytes);
      break;
    case 2: {
      std::vector<std::string> words(1);  // a zero byte ends a word, as in a process's arguments
      for (const char byte : bytes) {
        if (byte) {
          words.back() += byte;
        } else {
          words.emplace_back();
        }
      }
      judge_options(words);
      break;
    }
    case 3:
      judge_files(bytes, kMetadataJson, whole_engine());
      break;
    case 4:
      judge_files(kEngineJson, bytes, whole_engine());
      break;
    default:
      judge_files(kEngineJson, kMetadataJson, bytes);
  }
  return 0;
}

#else

int main(int count, char** arguments) {
  const std::string first = count > 1 ? arguments[1] : "";
  if (count == 3 && first.rfind("--", 0) == 0) return show(first, arguments[2]);
  return seeded::run(count, arguments, 10000, run_case);
}

#endif
