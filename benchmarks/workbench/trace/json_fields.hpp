// Fields of a JSON object that somebody else wrote, with errors that say where, what and what is allowed:
//   "/traffic/0/rate": is "fast", must be a number from 0 to 1e+06
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"

namespace kvc_bench {

using Json = nlohmann::json;

/// A field has a wrong value. `where()` is its JSON pointer; empty for the whole document, which what() does not name.
class FieldError : public std::runtime_error {
 public:
  FieldError(const std::string& where, const std::string& problem);
  [[nodiscard]] const std::string& where() const noexcept { return where_; }
  [[nodiscard]] const std::string& problem() const noexcept { return problem_; }

 private:
  std::string where_;
  std::string problem_;
};

/// A view of one value within a document, which must outlive it. Every function that reads throws FieldError for a
/// value of another type or range.
class Fields {
 public:
  explicit Fields(const Json& value, std::string where = "") : value_(&value), where_(std::move(where)) {}

  [[nodiscard]] const Json& value() const noexcept { return *value_; }
  [[nodiscard]] const std::string& where() const noexcept { return where_; }
  [[noreturn]] void fail(const std::string& problem) const;
  /// "is VALUE, must be ALLOWED"
  [[noreturn]] void reject(const std::string& allowed) const;

  /// Requires an object, all of whose keys are among these.
  void only(std::initializer_list<std::string_view> keys) const;
  [[nodiscard]] bool has(const char* key) const;
  [[nodiscard]] Fields at(const char* key) const;    ///< missing: an error
  [[nodiscard]] Fields item(std::size_t i) const;    ///< of an array, i < size
  [[nodiscard]] std::vector<Fields> items() const;   ///< of an array
  [[nodiscard]] const Json::array_t& array() const;  ///< the array itself, for long ones

  // The value itself.
  /// A number without a fraction, however it is written: 600, 600.0, 6e2. Numbers that JSON holds as floating point are
  /// whole numbers up to 2^53 only; beyond that they may already be rounded.
  [[nodiscard]] std::int64_t whole(std::int64_t low, std::int64_t high) const;
  [[nodiscard]] std::uint64_t whole_unsigned(std::uint64_t low, std::uint64_t high) const;
  [[nodiscard]] double number(double low, double high) const;
  [[nodiscard]] std::string text() const;
  [[nodiscard]] bool flag() const;
  /// The position of the text in a list of allowed ones.
  [[nodiscard]] std::size_t choice(const std::vector<std::string>& names) const;

  // A member, or `otherwise` where it is missing.
  template <class I>
  [[nodiscard]] I whole_or(const char* key, std::int64_t low, std::int64_t high, I otherwise) const {
    return has(key) ? static_cast<I>(at(key).whole(low, high)) : otherwise;
  }
  [[nodiscard]] double number_or(const char* key, double low, double high, double otherwise) const {
    return has(key) ? at(key).number(low, high) : otherwise;
  }
  [[nodiscard]] std::string text_or(const char* key, std::string otherwise) const {
    return has(key) ? at(key).text() : std::move(otherwise);
  }
  [[nodiscard]] std::size_t choice_or(const char* key, const std::vector<std::string>& names,
                                      std::size_t otherwise) const {
    return has(key) ? at(key).choice(names) : otherwise;
  }

 private:
  const Json* value_;
  std::string where_;
};

/// Parses one JSON document. `//` comments are allowed. Throws FieldError with the offset of the error, from 0, also
/// for a NUL byte, at which the parser would stop and take the text before it for the whole.
[[nodiscard]] Json parse_json(std::string_view text);

/// A value in short and printable ASCII. Nested values are not written out, which would recurse as deep as they do.
[[nodiscard]] std::string shown(const Json& value);
[[nodiscard]] std::string shown(std::string_view text);

}  // namespace kvc_bench
