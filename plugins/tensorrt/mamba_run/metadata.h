// mamba_export.json, as far as mamba_run needs it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mamba_run {

// The tokens each of which ends a text; none where there is no such file. Throws Error where the
// file is damaged, of a later version, or of a program that mamba_run does not drive.
std::vector<int64_t> read_end_tokens(const std::string& path);

}  // namespace mamba_run
