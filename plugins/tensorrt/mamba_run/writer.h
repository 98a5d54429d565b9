// Standard output, which may be a terminal, a pipe, full or closed.
#pragma once

#include <cstdint>
#include <string>

#include "printing.h"

namespace mamba_run {

// Gives every standard descriptor that the caller has closed to /dev/null, so that no file that is
// opened later takes its place.
void fill_standard_descriptors();

// Throws Error where what was written to standard output did not arrive.
void flush_output();

// Writes tokens as they come: bytes of text, or numbers.
class Writer {
 public:
  enum class Form { kSilent, kText, kNumbers };

  explicit Writer(Form form);

  // Throws Error, as flush_output does.
  void write(int64_t token);

  // The last characters, and the end of the line.
  void finish();

 private:
  void put(const std::string& text);

  Form form_;
  bool is_terminal_;  // it obeys escape sequences; a pipe gets the model's own bytes
  bool is_first_ = true;
  TerminalText text_;
};

}  // namespace mamba_run
