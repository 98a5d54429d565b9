// By hand, for the reason of json.h: OpenSSL would be there for this one function.
#pragma once

#include <string>

namespace mamba_run {

// SHA-256 (FIPS 180-4) of a file, in hexadecimal digits. Throws Error where it cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace mamba_run
