#include "json.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "error.h"
#include "files.h"
#include "utf8.h"

namespace mamba_run {
namespace {

constexpr size_t kMostBytes = size_t{4} << 20;  // a hundred times those of a large model
constexpr int kDeepest = 64;
constexpr double kMostExact = 9007199254740992;  // 2^53

const char* name_of(Json::Kind kind) {
  static constexpr const char* names[] = {"null",   "true or false", "a number",
                                          "a text", "a list",        "an object"};
  return names[static_cast<int>(kind)];
}

}  // namespace

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json whole() {
    take_word("\xef\xbb\xbf");
    Json value = read(1);
    skip_space();
    if (at_ != text_.size()) fail();
    return value;
  }

 private:
  [[noreturn]] void fail(const char* why = "") const {
    throw Error("not JSON at byte " + std::to_string(at_) + why);
  }

  // At the end a 0, which no rule takes, as it takes none inside the text.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool is_digit() const { return peek() >= '0' && peek() <= '9'; }

  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\r' || peek() == '\n') ++at_;
  }
  bool take_here(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }
  bool take(char wanted) {
    skip_space();
    return take_here(wanted);
  }
  void need(char wanted) {
    if (!take(wanted)) fail();
  }
  bool take_word(const char* word) {
    const size_t length = std::strlen(word);
    if (text_.compare(at_, length, word) != 0) return false;
    at_ += length;
    return true;
  }

  Json read(int depth) {
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

  void open(char bracket, int depth) {
    if (depth > kDeepest) fail(", which is nested too deeply");
    need(bracket);
  }

  void read_object(Json& value, int depth) {
    value.kind_ = Json::Kind::kObject;
    open('{', depth);
    if (take('}')) return;
    do {
      skip_space();
      const std::string key = read_text();
      if (value.object_.count(key)) fail(", where a key stands a second time");
      need(':');
      value.object_[key] = read(depth + 1);
    } while (take(','));
    need('}');
  }

  void read_list(Json& value, int depth) {
    value.kind_ = Json::Kind::kList;
    open('[', depth);
    if (take(']')) return;
    do {
      value.list_.push_back(read(depth + 1));
    } while (take(','));
    need(']');
  }

  void need_digits() {
    if (!is_digit()) fail();
    while (is_digit()) ++at_;
  }

  void read_number(Json& value) {
    const size_t start = at_;
    take_here('-');
    if (!take_here('0')) need_digits();
    if (take_here('.')) need_digits();
    if (take_here('e') || take_here('E')) {
      if (!take_here('+')) take_here('-');
      need_digits();
    }
    value.kind_ = Json::Kind::kNumber;
    value.number_ = std::strtod(text_.substr(start, at_ - start).c_str(), nullptr);
    if (!std::isfinite(value.number_)) fail(", after a number beyond float64");
  }

  uint32_t read_hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char digit = peek();
      const char letter = static_cast<char>(digit | 0x20);
      if (is_digit()) {
        code = code * 16 + static_cast<uint32_t>(digit - '0');
      } else if (letter >= 'a' && letter <= 'f') {
        code = code * 16 + static_cast<uint32_t>(letter - 'a' + 10);
      } else {
        fail();
      }
    }
    return code;
  }

  std::string read_text() {
    if (!take_here('"')) fail();
    std::string found;
    while (!take_here('"')) {
      if (static_cast<unsigned char>(peek()) < 0x20) fail();  // also the end of the text
      if (take_here('\\')) {
        read_escape(found);
        continue;
      }
      const Character one = character_at(text_, at_);
      if (one.kind != Character::Kind::kValid) fail(", which is not UTF-8");
      found.append(text_, at_, one.bytes);
      at_ += one.bytes;
    }
    return found;
  }

  void read_escape(std::string& found) {
    static constexpr char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    const char letter = peek();
    if (letter == 'u') {
      ++at_;
      append_utf8(found, read_code());
    } else if (const char* place = letter ? std::strchr(letters, letter) : nullptr) {
      ++at_;
      found += meant[place - letters];
    } else {
      fail();
    }
  }

  // After \u: a character, which takes two escapes beyond U+FFFF.
  uint32_t read_code() {
    constexpr const char* kLone = ", after half of a pair of surrogates";
    const uint32_t code = read_hex();
    if (code < 0xd800 || code > 0xdfff) return code;
    if (code > 0xdbff || !take_word("\\u")) fail(kLone);
    const uint32_t low = read_hex();
    if (low < 0xdc00 || low > 0xdfff) fail(kLone);
    return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
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
  if (value != std::floor(value) || std::abs(value) > kMostExact)
    throw Error("a number is not an integer");
  return static_cast<int64_t>(value);
}
int64_t Json::integer(const char* what, int64_t least, int64_t most) const {
  const int64_t value = integer();
  if (value < least || value > most) {
    throw Error(what + (" is " + std::to_string(value)) + ", expected " + std::to_string(least) +
                " to " + std::to_string(most));
  }
  return value;
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

Json read_json(const std::string& path, const char* remedy) {
  const std::string text = read_whole(path, kMostBytes);
  try {
    return Json::parse(text);
  } catch (const Error& error) {
    throw Error(path + " is damaged (" + error.what() + "): " + remedy);
  }
}

std::string quoted(const std::string& text) {
  std::string found = "\"";
  for (size_t at = 0; at < text.size();) {
    const Character one = character_at(text, at);
    if (one.kind != Character::Kind::kValid) {
      append_utf8(found, kReplacement);
    } else if (one.code == '"' || one.code == '\\') {
      found += {'\\', text[at]};
    } else if (one.code < 0x20 || (one.code >= 0x7f && one.code < 0xa0)) {
      char escape[8];
      snprintf(escape, sizeof escape, "\\u%04x", one.code);
      found += escape;
    } else {
      found.append(text, at, one.bytes);
    }
    at += one.bytes;
  }
  return found + "\"";
}

}  // namespace mamba_run
