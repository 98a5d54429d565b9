#include "engine_files.h"

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "error.h"
#include "json.h"
#include "names.h"
#include "sha256.h"

namespace mamba_run {
namespace {

namespace fs = std::filesystem;

constexpr char kEngineFile[] = "model.engine";
constexpr char kDescriptionFile[] = "engine.json";
constexpr char kMetadataFile[] = "mamba_export.json";
constexpr int64_t kFormat = 1;

// The first bytes of an engine file, and where its runtime's version stands: major, minor, patch.
constexpr char kTensorRtTag[] = "ftrt", kRtxTag[] = "vtrt";
constexpr size_t kTagBytes = 4, kVersionAt = 24, kHeadBytes = 28;

std::string read_file(const fs::path& path, size_t most) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path.string() + ": cannot be read");
  std::string content(most, '\0');
  file.read(content.data(), static_cast<std::streamsize>(most));
  content.resize(static_cast<size_t>(file.gcount()));
  return content;
}

Json read_json(const fs::path& path) {
  constexpr size_t kMaxBytes = 64 << 20;
  try {
    return Json::parse(read_file(path, kMaxBytes));
  } catch (const Error& error) {
    throw Error(path.string() + " is damaged (" + error.what() + "): build the engine again");
  }
}

Range read_range(const Json& value) {
  const auto& three = value.list();
  if (three.size() != 3) throw Error("a range has not three numbers");
  return {three[0].integer(), three[1].integer(), three[2].integer()};
}

std::string text_or_empty(const Json& object, const char* key) {
  const Json& value = object.at(key);
  return value.is_null() ? "" : value.text();
}

// What engine.json says. Throws Error without the file's name.
EngineFiles parse(const Json& json) {
  EngineFiles found{};
  const std::string& runtime = json.at("runtime").text();
  if (runtime != "tensorrt" && runtime != "tensorrt_rtx") {
    throw Error("runtime \"" + runtime + "\" is unknown");
  }
  found.is_rtx = runtime == "tensorrt_rtx";
  found.runtime_version = text_or_empty(json, "runtime_version");
  found.compute_capability = text_or_empty(json, "compute_capability");
  found.has_byte_tokenizer = json.at("byte_tokenizer").boolean();
  found.vocab_size = json.at("vocab_size").integer();
  found.plugin_library = text_or_empty(json, "plugin_library");
  for (const Json& pair : json.at("states").list()) {
    if (pair.list().size() != 2) throw Error("a state has not two names");
    found.states.emplace_back(pair.list()[0].text(), pair.list()[1].text());
  }
  for (const Json& profile : json.at("profiles").list()) {
    found.profiles.push_back({profile.at("name").text(), read_range(profile.at("batch")),
                              read_range(profile.at("length"))});
  }
  const auto &inputs = json.at("inputs").list(), &outputs = json.at("outputs").list();
  if (inputs.size() != found.states.size() + 1 || outputs.size() != inputs.size() ||
      found.profiles.empty()) {
    throw Error("inputs, outputs, states and profiles do not match");
  }
  found.input = inputs[0].at("name").text();
  found.output = outputs[0].at("name").text();
  return found;
}

// mamba_run drives language models whose states keep their size. Throws Error for other programs.
void check_program(const fs::path& path, const Json& json) {
  const std::string program = path.string() + " is of a program ";
  const std::string instead = ", which mamba_run does not drive: use TrtSession of mamba_export";
  if (json.at("vocab_size").integer() == 0) throw Error(program + "without tokens" + instead);
  const auto& inputs = json.at("inputs").list();
  if (inputs.size() > json.at("states").list().size() + 1) {
    throw Error(program + "that takes more than tokens" + instead);
  }
  for (size_t i = 1; i < inputs.size(); ++i) {
    const auto& shape = inputs[i].at("shape").list();
    for (size_t axis = 1; axis < shape.size(); ++axis) {
      if (shape[axis].integer() >= 0) continue;
      throw Error(program + "whose state " + inputs[i].at("name").text() + " grows" + instead);
    }
  }
}

void check_version(const fs::path& path, const Json& json, const char* key, int64_t known) {
  const int64_t found = json.at(key).integer();
  if (found != known) {
    throw Error(path.string() + " has " + key + " " + std::to_string(found) +
                ", this mamba_run reads " + std::to_string(known) +
                ": build the engine again, or take the mamba_run of the version that built it");
  }
}

void check_engine(const EngineFiles& files, const Json& json, bool check_content) {
  const std::string head = read_file(files.engine, kHeadBytes);
  const auto starts_with = [&](const char* tag) {
    return head.size() == kHeadBytes && head.compare(0, kTagBytes, tag) == 0;
  };
  if (!starts_with(kTensorRtTag) && !starts_with(kRtxTag)) {
    throw Error(files.engine + " is no engine of TensorRT or TensorRT-RTX: build it again");
  }
  if (starts_with(kRtxTag) != files.is_rtx) {
    throw Error(files.engine + " is an engine of " + (files.is_rtx ? "TensorRT" : "TensorRT-RTX") +
                ", " + kDescriptionFile + " describes one of " +
                (files.is_rtx ? "TensorRT-RTX" : "TensorRT") + ": build it again");
  }
  std::string version;
  for (size_t i = 0; i < 3; ++i) {
    version += (i ? "." : "") + std::to_string(static_cast<unsigned char>(head[kVersionAt + i]));
  }
  if (!files.runtime_version.empty() && files.runtime_version != version) {
    throw Error(files.engine + " was built by version " + version + ", " + kDescriptionFile +
                " describes one of " + files.runtime_version + ": build it again");
  }
  const std::string expected = text_or_empty(json, "engine_sha256");
  if (check_content && !expected.empty() && sha256_of_file(files.engine) != expected) {
    throw Error(files.engine + " is truncated, or not the engine that " + kDescriptionFile +
                " describes: copy or build it again");
  }
}

std::vector<int64_t> read_end_tokens(const fs::path& path) {
  if (!fs::exists(path)) return {};
  const Json json = read_json(path);
  try {
    // Format 1 of the metadata had it at the top level.
    const bool is_old = json.at("format").integer() == 1;
    if (!is_old && json.at("tokens").is_null()) return {};
    for (const Json& state : json.at("states").list()) {
      if (!is_old && state.at("start").number() != 0) {
        throw Error("state " + state.at("name").text() +
                    " starts with other than zeros: " + "use TrtSession of mamba_export");
      }
    }
    const Json& token = (is_old ? json : json.at("tokens")).at("eos_token_id");
    if (token.is_null()) return {};
    if (token.kind() != Json::Kind::kList) return {token.integer()};
    std::vector<int64_t> found;
    for (const Json& one : token.list()) found.push_back(one.integer());
    return found;
  } catch (const Error& error) {
    throw Error(path.string() + " cannot be used (" + error.what() + ")");
  }
}

// Beside the engine, else beside this program: where an installation has it.
std::string find_plugin_library(const fs::path& folder, const std::string& name) {
  if (fs::is_regular_file(folder / name)) return (folder / name).string();
  std::error_code error;
  const fs::path own = fs::read_symlink("/proc/self/exe", error).parent_path() / name;
  if (fs::is_regular_file(own, error)) return own.string();
  throw Error(name + " lies neither beside " + kDescriptionFile +
              " nor beside this program: name it with --plugin");
}

std::string range_text(const Range& range) {
  if (range.minimum == range.maximum) return std::to_string(range.minimum);
  return std::to_string(range.minimum) + " to " + std::to_string(range.maximum);
}

}  // namespace

size_t EngineFiles::profile_for(int64_t length) const {
  size_t found = profiles.size();
  for (size_t i = 0; i < profiles.size(); ++i) {
    if (!profiles[i].batch.holds(1) || !profiles[i].length.holds(length)) continue;
    // Where two take it, the narrower one was tuned for it.
    if (found == profiles.size() || profiles[i].length.maximum < profiles[found].length.maximum)
      found = i;
  }
  if (found < profiles.size()) return found;
  std::string text = "the engine takes no batch of 1 with " + std::to_string(length) +
                     (length == 1 ? " token: " : " tokens: ");
  for (size_t i = 0; i < profiles.size(); ++i) {
    const Profile& profile = profiles[i];
    text += (i ? "; " : "") + std::string("profile ") + profile.name + " takes batch " +
            range_text(profile.batch) + ", length " + range_text(profile.length);
  }
  throw Error(text);
}

EngineFiles read_engine_files(const std::string& path, const std::string& plugin,
                              bool check_content) {
  fs::path engine(path);
  if (fs::is_directory(engine)) engine /= kEngineFile;
  if (!fs::is_regular_file(engine)) throw Error(engine.string() + ": no such engine file");
  const fs::path folder = engine.parent_path();
  const fs::path description = folder / kDescriptionFile;
  if (!fs::is_regular_file(description)) {
    throw Error(engine.string() + " has no " + kDescriptionFile +
                " beside it: copy the whole folder that `mamba-export build` wrote");
  }
  const Json json = read_json(description);
  EngineFiles files;
  try {
    check_version(description, json, "format", kFormat);
    check_version(description, json, "contract_version", mamba_contract::kContractVersion);
    check_program(description, json);
    files = parse(json);
  } catch (const Error& error) {
    const bool is_named = std::string(error.what()).find(description.string()) == 0;
    if (is_named) throw;
    throw Error(description.string() + " is damaged (" + error.what() +
                "): build the engine again");
  }
  files.engine = engine.string();
  files.end_tokens = read_end_tokens(folder / kMetadataFile);
  if (!plugin.empty()) {
    if (!fs::is_regular_file(plugin)) throw Error(plugin + ": no such plugin library");
    files.plugin_library = plugin;
  } else if (!files.plugin_library.empty()) {
    files.plugin_library = find_plugin_library(folder, files.plugin_library);
  }
  check_engine(files, json, check_content);
  return files;
}

}  // namespace mamba_run
