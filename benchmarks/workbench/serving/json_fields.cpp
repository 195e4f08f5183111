#include "json_fields.hpp"

#include <algorithm>
#include <cstdio>

namespace serving {
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
    : std::runtime_error("\"" + (where.empty() ? "/" : where) + "\": " + problem), where_(where), problem_(problem) {}

std::string shown(const Json& value) {
  if (value.is_structured()) {
    return value.is_array() ? "an array of " + std::to_string(value.size()) : "an object";
  }
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  constexpr std::size_t most = 40;
  return text.size() <= most ? text : text.substr(0, most) + "...";
}

Json parse_json(std::string_view text) {
  try {
    return Json::parse(text, nullptr, true, true);
  } catch (const Json::parse_error& error) {
    throw FieldError("", "is not JSON: error at byte " + std::to_string(error.byte));
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

std::vector<Fields> Fields::items() const {
  if (!value_->is_array()) {
    reject("an array");
  }
  std::vector<Fields> all;
  for (const Json& item : *value_) {
    all.emplace_back(item, where_ + "/" + std::to_string(all.size()));
  }
  return all;
}

std::int64_t Fields::whole(std::int64_t low, std::int64_t high) const {
  const bool fits = value_->is_number_unsigned() ? value_->get<std::uint64_t>() <= static_cast<std::uint64_t>(high)
                                                 : value_->is_number_integer() && value_->get<std::int64_t>() <= high;
  if (!fits || value_->get<std::int64_t>() < low) {
    reject("a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return value_->get<std::int64_t>();
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

}  // namespace serving
