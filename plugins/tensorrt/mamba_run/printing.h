// Text that others wrote, for a terminal, which obeys escape sequences: names in files, messages of
// libraries, and what a model writes. The rules are those of mamba_export/printing.py.
#pragma once

#include <string>

namespace mamba_run {

// One line: control characters, line breaks, tabs, and marks of the writing direction become
// escapes such as \x1b and \n, and bytes that are not UTF-8 such as \udcff.
std::string printable(const std::string& text);

// A model's text, byte by byte: line breaks and tabs stay, other control characters become escapes,
// and bytes that are not UTF-8 U+FFFD.
class TerminalText {
 public:
  // What can be written now; empty while a character is unfinished.
  std::string push(char byte);

  // What is left at the end.
  std::string finish();

 private:
  std::string take(bool is_end);

  std::string pending_;
};

}  // namespace mamba_run
