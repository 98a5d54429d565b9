// The command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sampling.h"

namespace mamba_run {

struct Options {
  std::string engine, plugin, tensorrt;
  bool has_prompt = false;
  std::string prompt;
  std::vector<int64_t> tokens;
  int64_t max_new_tokens = 64;
  Sampling sampling;
  int device = 0;
  bool bench = false, json = false, check_file = true, verbose = false, help = false;
};

extern const char kHelp[];

// Throws Error, which names the option.
Options parse_options(int count, const char* const* arguments);

}  // namespace mamba_run
