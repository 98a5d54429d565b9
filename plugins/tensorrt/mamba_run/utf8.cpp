#include "utf8.h"

namespace mamba_run {

Character character_at(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) -> uint32_t { return static_cast<unsigned char>(text[at + i]); };
  const uint32_t first = byte(0);
  if (first < 0x80) return {Character::Kind::kValid, first, 1};
  if (first < 0xc2 || first > 0xf4) return {Character::Kind::kInvalid, 0, 1};
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  uint32_t code = first & (0xff >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (at + i == text.size()) return {Character::Kind::kUnfinished, 0, i};
    // The second byte tells overlong forms, surrogates and what lies beyond U+10FFFF.
    uint32_t least = 0x80, most = 0xbf;
    if (i == 1) {
      if (first == 0xe0) least = 0xa0;
      if (first == 0xed) most = 0x9f;
      if (first == 0xf0) least = 0x90;
      if (first == 0xf4) most = 0x8f;
    }
    if (byte(i) < least || byte(i) > most) return {Character::Kind::kInvalid, 0, i};
    code = code << 6 | (byte(i) & 0x3f);
  }
  return {Character::Kind::kValid, code, length};
}

void append_utf8(std::string& text, uint32_t code) {
  const auto tail = [&](int shift) { text += static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xc0 | (code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    text += static_cast<char>(0xe0 | (code >> 12));
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xf0 | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace mamba_run
