#include "printing.h"

#include <cstdint>
#include <cstdio>

#include "utf8.h"

namespace mamba_run {
namespace {

// C0, DEL and C1: C1's CSI (0x9b) begins an escape sequence as ESC [ does.
bool is_control(uint32_t code) { return code < 0x20 || (code >= 0x7f && code < 0xa0); }

// Unicode's Bidi_Control, and its line and paragraph separators.
bool is_mark_of_layout(uint32_t code) {
  return code == 0x061c || code == 0x200e || code == 0x200f || (code >= 0x2028 && code <= 0x202e) ||
         (code >= 0x2066 && code <= 0x2069);
}

void append_escape(std::string& text, uint32_t code) {
  if (code == '\n') {
    text += "\\n";
  } else if (code == '\r') {
    text += "\\r";
  } else if (code == '\t') {
    text += "\\t";
  } else {
    char escape[16];
    snprintf(escape, sizeof escape, code < 0x100 ? "\\x%02x" : "\\u%04x", code);
    text += escape;
  }
}

}  // namespace

std::string printable(const std::string& text) {
  std::string found;
  for (size_t at = 0; at < text.size();) {
    const Character one = character_at(text, at);
    if (one.kind != Character::Kind::kValid) {
      // As Python has such bytes of a file's name, in lone surrogates.
      for (size_t i = 0; i < one.bytes; ++i) {
        append_escape(found, 0xdc00 + static_cast<unsigned char>(text[at + i]));
      }
    } else if (is_control(one.code) || is_mark_of_layout(one.code)) {
      append_escape(found, one.code);
    } else {
      found.append(text, at, one.bytes);
    }
    at += one.bytes;
  }
  return found;
}

std::string TerminalText::push(char byte) {
  pending_ += byte;
  return take(false);
}

std::string TerminalText::finish() { return take(true); }

std::string TerminalText::take(bool is_end) {
  std::string found;
  size_t at = 0;
  while (at < pending_.size()) {
    const Character one = character_at(pending_, at);
    if (one.kind == Character::Kind::kUnfinished && !is_end) break;
    if (one.kind != Character::Kind::kValid) {
      append_utf8(found, kReplacement);
    } else if (is_control(one.code) && one.code != '\n' && one.code != '\t') {
      append_escape(found, one.code);
    } else {
      found.append(pending_, at, one.bytes);
    }
    at += one.bytes;
  }
  pending_.erase(0, at);
  return found;
}

}  // namespace mamba_run
