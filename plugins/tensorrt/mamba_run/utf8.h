// Unicode's encoding of text in bytes (RFC 3629).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mamba_run {

// What stands at one place of a text.
struct Character {
  enum class Kind {
    kValid,
    kInvalid,    // bytes that begin no character
    kUnfinished  // the text ends before the character does
  };

  Kind kind;
  uint32_t code;  // of a valid one
  size_t bytes;   // that it takes, at least 1; of an invalid one those that one U+FFFD stands for
};

constexpr uint32_t kReplacement = 0xfffd;

// at is less than the text's size. Overlong forms and surrogates are invalid; invalid bytes are
// grouped as Python and browsers do ("maximal subparts": The Unicode Standard, section 3.9).
Character character_at(const std::string& text, size_t at);

void append_utf8(std::string& text, uint32_t code);

}  // namespace mamba_run
