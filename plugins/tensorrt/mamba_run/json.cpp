#include "json.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace mamba_run {
namespace {

constexpr int kDeepest = 64;

const char* name_of(Json::Kind kind) {
  static constexpr const char* names[] = {"null",   "true or false", "a number",
                                          "a text", "a list",        "an object"};
  return names[static_cast<int>(kind)];
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

// Length of the UTF-8 character at `at`; 0 where there is none (overlong forms and surrogates too).
size_t utf8_length(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) -> uint32_t {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0;
  };
  const uint32_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return 0;
  uint32_t code = first & (0xff >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3f);
  }
  static constexpr uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool is_surrogate = code >= 0xd800 && code < 0xe000;
  return code < smallest[length] || is_surrogate || code > 0x10ffff ? 0 : length;
}

}  // namespace

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json whole() {
    Json value = read(0);
    skip_space();
    if (at_ != text_.size()) fail();
    return value;
  }

 private:
  [[noreturn]] void fail() const { throw Error("not JSON at byte " + std::to_string(at_)); }
  // The text ends with a 0 that no rule takes.
  char peek() const { return text_[at_]; }

  void skip_space() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", peek())) ++at_;
  }
  bool take(char wanted) {
    skip_space();
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }
  void need(char wanted) {
    if (!take(wanted)) fail();
  }
  bool take_word(const char* word) {
    if (text_.compare(at_, std::strlen(word), word) != 0) return false;
    at_ += std::strlen(word);
    return true;
  }

  Json read(int depth) {
    if (depth > kDeepest) fail();
    skip_space();
    Json value;
    if (peek() == '{') {
      read_object(value, depth);
    } else if (peek() == '[') {
      read_list(value, depth);
    } else if (peek() == '"') {
      value.kind_ = Json::Kind::kText;
      value.text_ = read_text();
    } else if (take_word("true")) {
      value.kind_ = Json::Kind::kBool;
      value.bool_ = true;
    } else if (take_word("false")) {
      value.kind_ = Json::Kind::kBool;
    } else if (!take_word("null")) {
      read_number(value);
    }
    return value;
  }

  void read_object(Json& value, int depth) {
    value.kind_ = Json::Kind::kObject;
    need('{');
    if (take('}')) return;
    do {
      skip_space();
      const std::string key = read_text();
      need(':');
      value.object_[key] = read(depth + 1);
    } while (take(','));
    need('}');
  }

  void read_list(Json& value, int depth) {
    value.kind_ = Json::Kind::kList;
    need('[');
    if (take(']')) return;
    do {
      value.list_.push_back(read(depth + 1));
    } while (take(','));
    need(']');
  }

  void read_number(Json& value) {
    const char* start = text_.c_str() + at_;
    if (*start != '-' && (*start < '0' || *start > '9')) fail();
    char* end = nullptr;
    value.kind_ = Json::Kind::kNumber;
    value.number_ = std::strtod(start, &end);
    if (end == start || !std::isfinite(value.number_)) fail();
    at_ += static_cast<size_t>(end - start);
  }

  uint32_t read_hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      static constexpr char digits[] = "0123456789abcdefABCDEF";
      const char* place = peek() ? std::strchr(digits, peek()) : nullptr;
      if (!place) fail();
      const auto digit = static_cast<uint32_t>(place - digits);
      code = code * 16 + (digit < 16 ? digit : digit - 6);
    }
    return code;
  }

  std::string read_text() {
    if (peek() != '"') fail();
    ++at_;
    std::string found;
    while (peek() != '"') {
      if (static_cast<unsigned char>(peek()) < 0x20) fail();  // also the end of the text
      if (peek() != '\\') {
        found += text_[at_++];
        continue;
      }
      ++at_;
      read_escape(found);
    }
    ++at_;
    return found;
  }

  void read_escape(std::string& found) {
    static constexpr char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    const char letter = peek();
    if (letter == '\0') fail();
    ++at_;
    if (letter == 'u') {
      uint32_t code = read_hex();
      if (code >= 0xd800 && code < 0xdc00 && take_word("\\u")) {
        code = 0x10000 + ((code - 0xd800) << 10) + (read_hex() - 0xdc00);
      }
      append_utf8(found, code);
    } else if (const char* place = std::strchr(letters, letter)) {
      found += meant[place - letters];
    } else {
      fail();
    }
  }

  const std::string& text_;
  size_t at_ = 0;
};

Json Json::parse(const std::string& text) { return JsonReader(text).whole(); }

void Json::expect(Kind kind) const {
  if (kind_ != kind) {
    throw Error(std::string("there is ") + name_of(kind_) + ", expected " + name_of(kind));
  }
}

bool Json::boolean() const {
  expect(Kind::kBool);
  return bool_;
}
double Json::number() const {
  expect(Kind::kNumber);
  return number_;
}
int64_t Json::integer() const {
  const double value = number();
  if (value != std::floor(value) || std::abs(value) > 9e15)
    throw Error("a number is not an integer");
  return static_cast<int64_t>(value);
}
const std::string& Json::text() const {
  expect(Kind::kText);
  return text_;
}
const std::vector<Json>& Json::list() const {
  expect(Kind::kList);
  return list_;
}
const std::map<std::string, Json>& Json::object() const {
  expect(Kind::kObject);
  return object_;
}
const Json* Json::find(const std::string& key) const {
  const auto place = object().find(key);
  return place == object_.end() ? nullptr : &place->second;
}
const Json& Json::at(const std::string& key) const {
  const Json* value = find(key);
  if (!value) throw Error("there is no \"" + key + "\"");
  return *value;
}

std::string quoted(const std::string& text) {
  std::string found = "\"";
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    const char first = text[i];
    if (length == 0) {
      found += "\\ufffd";
      ++i;
      continue;
    }
    if (length == 1 && (first == '"' || first == '\\')) {
      found += '\\';
    }
    if (length == 1 && static_cast<unsigned char>(first) < 0x20) {
      char escape[8];
      snprintf(escape, sizeof escape, "\\u%04x", first);
      found += escape;
    } else {
      found += text.substr(i, length);
    }
    i += length;
  }
  return found + "\"";
}

}  // namespace mamba_run
