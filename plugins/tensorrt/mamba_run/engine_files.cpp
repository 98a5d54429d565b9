#include "engine_files.h"

#include <filesystem>
#include <limits>
#include <set>

#include "error.h"
#include "files.h"
#include "json.h"
#include "metadata.h"
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

// Token ids, steps and sizes are 32 bits to the GPU's code.
constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

Range read_range(const Json& value, const char* what) {
  const auto& three = value.list();
  if (three.size() != 3) throw Error("a range has not three numbers");
  const auto number = [&](size_t i) { return three[i].integer(what, 1, kMost); };
  const Range range{number(0), number(1), number(2)};
  if (range.minimum > range.optimum || range.optimum > range.maximum) {
    throw Error(std::string(what) + " is not minimum, optimum, maximum");
  }
  return range;
}

// A name in the engine, which TensorRT reads up to a zero byte.
const std::string& read_name(const Json& value) {
  const std::string& name = value.text();
  if (name.empty() || name.find('\0') != std::string::npos) throw Error("a name is no name");
  return name;
}

// Names of an engine's inputs or outputs, in its order.
std::vector<std::string> read_tensors(const Json& value) {
  std::vector<std::string> names;
  for (const Json& tensor : value.list()) {
    names.push_back(read_name(tensor.at("name")));
    const Json* shape = tensor.find("shape");
    if (!shape) continue;
    for (const Json& size : shape->list()) size.integer("a size", -1, kMost);
  }
  return names;
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
  found.vocab_size = json.at("vocab_size").integer("vocab_size", 1, kMost);
  found.needs_plugins = !text_or_empty(json, "plugin_library").empty();
  for (const Json& profile : json.at("profiles").list()) {
    found.profiles.push_back({profile.at("name").text(), read_range(profile.at("batch"), "batch"),
                              read_range(profile.at("length"), "length")});
  }
  for (const Json& pair : json.at("states").list()) {
    if (pair.list().size() != 2) throw Error("a state has not two names");
    found.states.emplace_back(read_name(pair.list()[0]), read_name(pair.list()[1]));
  }
  const std::vector<std::string> inputs = read_tensors(json.at("inputs"));
  const std::vector<std::string> outputs = read_tensors(json.at("outputs"));
  if (inputs.size() != found.states.size() + 1 || outputs.size() != inputs.size() ||
      found.profiles.empty()) {
    throw Error("inputs, outputs, states and profiles do not match");
  }
  std::set<std::string> names(inputs.begin(), inputs.end());
  names.insert(outputs.begin(), outputs.end());
  // Two states in one tensor would be two sizes of one memory.
  if (names.size() != inputs.size() + outputs.size()) throw Error("a name stands twice");
  for (size_t i = 0; i < found.states.size(); ++i) {
    if (found.states[i] != std::pair(inputs[i + 1], outputs[i + 1])) {
      throw Error("states are not the inputs and outputs after the first");
    }
  }
  found.input = inputs[0];
  found.output = outputs[0];
  return found;
}

// mamba_run drives language models whose states keep their size, and lets no engine bring code for
// the host. Throws Error for others.
void check_program(const std::string& path, const Json& json) {
  const std::string program = path + " is of a program ";
  const std::string instead = ", which mamba_run does not drive: use TrtSession of mamba_export";
  if (json.at("vocab_size").integer() == 0) throw Error(program + "without tokens" + instead);
  const Json* carries_library = json.find("version_compatible");
  if (carries_library && carries_library->boolean()) {
    throw Error(path +
                " is of an engine of --version-compatible, which carries a library for the host" +
                instead + ", or build it again without");
  }
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

void check_version(const std::string& path, const Json& json, const char* key, int64_t known) {
  const int64_t found = json.at(key).integer();
  if (found != known) {
    throw Error(path + " has " + key + " " + std::to_string(found) + ", this mamba_run reads " +
                std::to_string(known) +
                ": build the engine again, or take the mamba_run of the version that built it");
  }
}

void check_engine(const EngineFiles& files, const Json& json, bool check_content) {
  const std::string head = read_head(files.engine, kHeadBytes);
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

EngineFiles read_engine_files(const std::string& path, bool check_content) {
  fs::path engine(path);
  std::error_code unknown;  // then it is opened as a file, and the error says why it cannot be
  if (fs::is_directory(engine, unknown)) engine /= kEngineFile;
  if (!is_there(engine.string())) throw Error(engine.string() + ": no such engine file");
  File{engine.string()};  // whether it can be read at all
  const fs::path folder = engine.parent_path();
  const std::string description = folder / kDescriptionFile;
  if (!is_there(description)) {
    throw Error(engine.string() + " has no " + kDescriptionFile +
                " beside it: copy the whole folder that `mamba-export build` wrote");
  }
  const Json json = read_json(description, "build the engine again");
  EngineFiles files;
  try {
    check_version(description, json, "format", kFormat);
    check_version(description, json, "contract_version", mamba_contract::kContractVersion);
    check_program(description, json);
    files = parse(json);
  } catch (const Error& error) {
    const bool is_named = std::string(error.what()).find(description) == 0;
    if (is_named) throw;
    throw Error(description + " is damaged (" + error.what() + "): build the engine again");
  }
  files.engine = engine.string();
  files.end_tokens = read_end_tokens(folder / kMetadataFile);
  check_engine(files, json, check_content);
  return files;
}

}  // namespace mamba_run
