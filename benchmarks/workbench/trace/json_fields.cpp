#include "json_fields.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace kvc_bench {
namespace {

std::string plain(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::string listed(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) {
    all.append(all.empty() ? "" : ", ").append(name);
  }
  return all;
}

/// A key as a part of a JSON pointer (RFC 6901).
std::string escaped(std::string_view key) {
  std::string text;
  for (const char c : key) {
    text.append(c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c));
  }
  return text;
}

}  // namespace

FieldError::FieldError(const std::string& where, const std::string& problem)
    : std::runtime_error((where.empty() ? "" : "\"" + where + "\": ") + problem), where_(where), problem_(problem) {}

std::string shown(std::string_view text) { return shown(Json(std::string(text.substr(0, 64)))); }

std::string shown(const Json& value) {
  if (value.is_structured()) {
    return value.is_array() ? "an array of " + std::to_string(value.size()) : "an object";
  }
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  constexpr std::size_t most = 40;
  return text.size() <= most ? text : text.substr(0, most) + "...";
}

Json parse_json(std::string_view text) {
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    throw FieldError("", "is not JSON: byte " + std::to_string(nul) + " is NUL");
  }
  try {
    return Json::parse(text, nullptr, true, true);
  } catch (const Json::parse_error& error) {
    // The library counts from 1, the character that it did not expect included.
    throw FieldError("", "is not JSON: error at byte " + std::to_string(error.byte - (error.byte > 0 ? 1 : 0)));
  } catch (const Json::out_of_range&) {
    throw FieldError("", "is not JSON: a number is too large");
  }
}

void Fields::fail(const std::string& problem) const { throw FieldError(where_, problem); }
void Fields::reject(const std::string& allowed) const { fail("is " + shown(*value_) + ", must be " + allowed); }

void Fields::only(std::initializer_list<std::string_view> keys) const {
  if (!value_->is_object()) {
    reject("an object");
  }
  for (const auto& [key, value] : value_->items()) {
    if (std::ranges::find(keys, std::string_view(key)) == keys.end()) {
      std::vector<std::string> names(keys.begin(), keys.end());
      Fields(value, where_ + "/" + escaped(key)).fail("is not known here, must be one of " + listed(names));
    }
  }
}

bool Fields::has(const char* key) const { return value_->is_object() && value_->contains(key); }

Fields Fields::at(const char* key) const {
  if (!value_->is_object()) {
    reject("an object");
  }
  const auto found = value_->find(key);
  if (found == value_->end()) {
    throw FieldError(where_ + "/" + escaped(key), "is missing");
  }
  return Fields(*found, where_ + "/" + escaped(key));
}

const Json::array_t& Fields::array() const {
  if (!value_->is_array()) {
    reject("an array");
  }
  return value_->get_ref<const Json::array_t&>();
}

Fields Fields::item(std::size_t i) const { return Fields(array()[i], where_ + "/" + std::to_string(i)); }

std::vector<Fields> Fields::items() const {
  std::vector<Fields> all;
  for (std::size_t i = 0; i < array().size(); ++i) {
    all.push_back(item(i));
  }
  return all;
}

namespace {
/// Floating point holds every whole number up to here.
constexpr double exact = 9007199254740992.0;  // 2^53
bool is_whole(double value) { return std::fabs(value) <= exact && value == std::floor(value); }
}  // namespace

std::int64_t Fields::whole(std::int64_t low, std::int64_t high) const {
  std::optional<std::int64_t> value;
  if (value_->is_number_unsigned()) {
    if (value_->get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      value = value_->get<std::int64_t>();
    }
  } else if (value_->is_number_integer()) {
    value = value_->get<std::int64_t>();
  } else if (value_->is_number_float() && is_whole(value_->get<double>())) {
    value = static_cast<std::int64_t>(value_->get<double>());
  }
  if (!value || *value < low || *value > high) {
    reject("a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return *value;
}

std::uint64_t Fields::whole_unsigned(std::uint64_t low, std::uint64_t high) const {
  std::optional<std::uint64_t> value;
  if (value_->is_number_unsigned()) {
    value = value_->get<std::uint64_t>();
  } else if (value_->is_number_float() && value_->get<double>() >= 0 && is_whole(value_->get<double>())) {
    value = static_cast<std::uint64_t>(value_->get<double>());
  }
  if (!value || *value < low || *value > high) {
    reject("a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return *value;
}

double Fields::number(double low, double high) const {
  if (!value_->is_number() || !(value_->get<double>() >= low) || !(value_->get<double>() <= high)) {
    reject("a number from " + plain(low) + " to " + plain(high));
  }
  return value_->get<double>();
}

std::string Fields::text() const {
  if (!value_->is_string()) {
    reject("a text");
  }
  return value_->get<std::string>();
}

bool Fields::flag() const {
  if (!value_->is_boolean()) {
    reject("true or false");
  }
  return value_->get<bool>();
}

std::size_t Fields::choice(const std::vector<std::string>& names) const {
  const auto found = value_->is_string() ? std::ranges::find(names, value_->get<std::string>()) : names.end();
  if (found == names.end()) {
    reject("one of " + listed(names));
  }
  return static_cast<std::size_t>(found - names.begin());
}

}  // namespace kvc_bench
