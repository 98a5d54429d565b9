#include "metadata.h"

#include "error.h"
#include "files.h"
#include "json.h"
#include "names.h"

namespace mamba_run {
namespace {

std::vector<int64_t> end_tokens_of(const Json& json) {
  const int64_t format = json.at("format").integer("format", 1, mamba_contract::kMetadataFormat);
  const bool is_old = format == 1;  // it had the tokens at the top level
  if (!is_old && json.at("tokens").is_null()) return {};
  for (const Json& state : json.at("states").list()) {
    if (!is_old && state.at("start").number() != 0) {
      throw Error("state " + state.at("name").text() +
                  " starts with other than zeros: use TrtSession of mamba_export");
    }
  }
  const Json& token = (is_old ? json : json.at("tokens")).at("eos_token_id");
  if (token.is_null()) return {};
  if (token.kind() != Json::Kind::kList) return {token.integer()};
  std::vector<int64_t> found;
  for (const Json& one : token.list()) found.push_back(one.integer());
  return found;
}

}  // namespace

std::vector<int64_t> read_end_tokens(const std::string& path) {
  if (!is_there(path)) return {};
  const Json json = read_json(path, "export the model again");
  try {
    return end_tokens_of(json);
  } catch (const Error& error) {
    throw Error(path + " cannot be used (" + error.what() + ")");
  }
}

}  // namespace mamba_run
