// An error that the user can act on: one line, exit code 2.
#pragma once

#include <stdexcept>
#include <string>

namespace mamba_run {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace mamba_run
