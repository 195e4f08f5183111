#include "gguf_file.hpp"

#include <ggml-alloc.h>
#include <ggml-cpu.h>

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <utility>

namespace ggml_engine {
namespace {

/// Makes a tensor without data one of adjacent floats.
void set_float(ggml_tensor& t) {
  t.type = GGML_TYPE_F32;
  t.nb[0] = sizeof(float);
  for (int i = 1; i < GGML_MAX_DIMS; ++i) {
    t.nb[i] = t.nb[i - 1] * static_cast<std::size_t>(t.ne[i - 1]);
  }
}

}  // namespace

void GgufFile::fail(const std::string& what) const { throw std::runtime_error(path_ + ": " + what); }

GgufFile::GgufFile(std::string path) : path_(std::move(path)) {
  if (!std::ifstream(path_, std::ios::binary)) {
    fail("cannot be read");
  }
  ggml_context* tensors = nullptr;
  gguf_.reset(gguf_init_from_file(path_.c_str(), {.no_alloc = true, .ctx = &tensors}));
  tensors_.reset(tensors);
  if (gguf_ == nullptr) {
    fail("is not a complete GGUF file");
  }
}

std::int64_t GgufFile::find(const std::string& key) const {
  const std::int64_t id = gguf_find_key(gguf_.get(), key.c_str());
  if (id < 0) {
    fail("lacks the key " + key);
  }
  return id;
}

std::int64_t GgufFile::integer(const std::string& key, std::optional<std::int64_t> fallback) const {
  if (fallback && !has(key)) {
    return *fallback;
  }
  const std::int64_t id = find(key);
  switch (gguf_get_kv_type(gguf_.get(), id)) {
    case GGUF_TYPE_UINT32:
      return gguf_get_val_u32(gguf_.get(), id);
    case GGUF_TYPE_INT32:
      return gguf_get_val_i32(gguf_.get(), id);
    case GGUF_TYPE_UINT64:
      return static_cast<std::int64_t>(gguf_get_val_u64(gguf_.get(), id));
    default:
      fail("the key " + key + " is no whole number");
  }
}

float GgufFile::real(const std::string& key, std::optional<float> fallback) const {
  if (fallback && !has(key)) {
    return *fallback;
  }
  const std::int64_t id = find(key);
  if (gguf_get_kv_type(gguf_.get(), id) != GGUF_TYPE_FLOAT32) {
    fail("the key " + key + " is no float");
  }
  return gguf_get_val_f32(gguf_.get(), id);
}

bool GgufFile::flag(const std::string& key, bool fallback) const {
  if (!has(key)) {
    return fallback;
  }
  const std::int64_t id = find(key);
  if (gguf_get_kv_type(gguf_.get(), id) != GGUF_TYPE_BOOL) {
    fail("the key " + key + " is no bool");
  }
  return gguf_get_val_bool(gguf_.get(), id);
}

std::string GgufFile::text(const std::string& key, std::optional<std::string> fallback) const {
  if (fallback && !has(key)) {
    return *fallback;
  }
  const std::int64_t id = find(key);
  if (gguf_get_kv_type(gguf_.get(), id) != GGUF_TYPE_STRING) {
    fail("the key " + key + " is no text");
  }
  return gguf_get_val_str(gguf_.get(), id);
}

std::int64_t GgufFile::find_array(const std::string& key, gguf_type type) const {
  const std::int64_t id = find(key);
  if (gguf_get_kv_type(gguf_.get(), id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(gguf_.get(), id) != type) {
    fail("the key " + key + " is no array of " + gguf_type_name(type));
  }
  return id;
}

std::vector<std::string_view> GgufFile::texts(const std::string& key) const {
  const std::int64_t id = find_array(key, GGUF_TYPE_STRING);
  std::vector<std::string_view> all(gguf_get_arr_n(gguf_.get(), id));
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i] = gguf_get_arr_str(gguf_.get(), id, i);
  }
  return all;
}

std::vector<float> GgufFile::reals(const std::string& key) const {
  const std::int64_t id = find_array(key, GGUF_TYPE_FLOAT32);
  const auto* data = static_cast<const float*>(gguf_get_arr_data(gguf_.get(), id));
  return {data, data + gguf_get_arr_n(gguf_.get(), id)};
}

std::vector<std::int32_t> GgufFile::integers(const std::string& key) const {
  const std::int64_t id = find_array(key, GGUF_TYPE_INT32);
  const auto* data = static_cast<const std::int32_t*>(gguf_get_arr_data(gguf_.get(), id));
  return {data, data + gguf_get_arr_n(gguf_.get(), id)};
}

std::vector<std::string> GgufFile::tensor_names() const {
  std::vector<std::string> names;
  for (std::int64_t i = 0; i < gguf_get_n_tensors(gguf_.get()); ++i) {
    names.emplace_back(gguf_get_tensor_name(gguf_.get(), i));
  }
  return names;
}

GgufFile::Loaded GgufFile::load_tensors(WeightType type) && {
  const std::vector<std::string> names = tensor_names();
  std::vector<const ggml_type_traits*> stored;  // null: the bytes are taken as they are
  for (const std::string& name : names) {
    ggml_tensor* t = tensor(name);
    const bool converts = type == WeightType::f32 && t->type != GGML_TYPE_F32;
    stored.push_back(converts ? ggml_get_type_traits(t->type) : nullptr);
    if (converts) {
      set_float(*t);
    }
  }
  Buffer data(ggml_backend_alloc_ctx_tensors_from_buft(tensors_.get(), ggml_backend_cpu_buffer_type()));
  if (data == nullptr) {
    fail("there is no memory for its tensors");
  }
  std::ifstream file(path_, std::ios::binary);
  std::vector<char> bytes;
  std::vector<float> floats;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::int64_t id = gguf_find_tensor(gguf_.get(), names[i].c_str());
    bytes.resize(gguf_get_tensor_size(gguf_.get(), id));
    file.seekg(
        static_cast<std::streamoff>(gguf_get_data_offset(gguf_.get()) + gguf_get_tensor_offset(gguf_.get(), id)));
    if (!file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
      fail("ends within the tensor " + names[i]);
    }
    ggml_tensor* t = tensor(names[i]);
    if (stored[i] != nullptr) {
      floats.resize(static_cast<std::size_t>(ggml_nelements(t)));
      stored[i]->to_float(bytes.data(), floats.data(), ggml_nelements(t));
      ggml_backend_tensor_set(t, floats.data(), 0, floats.size() * sizeof(float));
    } else {
      ggml_backend_tensor_set(t, bytes.data(), 0, bytes.size());
    }
  }
  return {std::move(tensors_), std::move(data)};
}

}  // namespace ggml_engine
