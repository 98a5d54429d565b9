// JSON as the files beside an engine hold it (RFC 8259), read whole and strictly: UTF-8 with or
// without a byte order mark, no key twice, no lone surrogate, numbers within float64, at most 64
// containers in each other. By hand, so that mamba_run is built with nothing but CUDA and
// TensorRT's headers, on machines with no network.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mamba_run {

class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kText, kList, kObject };

  // Throws Error, which names the byte where the text stops making sense.
  static Json parse(const std::string& text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }

  // Each throws Error where the value is of another kind, or the member is absent.
  bool boolean() const;
  double number() const;
  int64_t integer() const;  // within 2^53 of 0, where every integer is a number of its own
  int64_t integer(const char* what, int64_t least, int64_t most) const;
  const std::string& text() const;
  const std::vector<Json>& list() const;
  const std::map<std::string, Json>& object() const;
  const Json& at(const std::string& key) const;

  // Null where the member is absent.
  const Json* find(const std::string& key) const;

 private:
  friend class JsonReader;
  void expect(Kind kind) const;

  Kind kind_ = Kind::kNull;
  bool bool_ = false;
  double number_ = 0;
  std::string text_;
  std::vector<Json> list_;
  std::map<std::string, Json> object_;
};

// The content of a file. Throws Error where it cannot be read, or is damaged: then the line says
// the remedy.
Json read_json(const std::string& path, const char* remedy);

// Text as a JSON string, quotes included; control characters are escaped, and bytes that are not
// UTF-8 become U+FFFD.
std::string quoted(const std::string& text);

}  // namespace mamba_run
