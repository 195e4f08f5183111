#include "gguf_file.hpp"

#include <ggml-alloc.h>
#include <ggml-cpu.h>

// As kvc/snapshot/checksum.hpp includes it: nothing to link.
#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#if defined(__GNUC__) && !defined(__clang__) && defined(__AVX512F__) && !defined(XXH_VECTOR)
#define XXH_VECTOR XXH_AVX2  // g++ 12 warns of uninitialised values in its own header of AVX-512
#endif
#include <xxhash.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

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

/// Whether the product of a matrix without data with floats is faster, or possible, in buffers of this type.
bool multiplies_from(ggml_backend_device& device, ggml_backend_buffer_type_t type, ggml_tensor& matrix) {
  const Context ctx(ggml_init({.mem_size = 4 * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true}));
  const Buffer empty(ggml_backend_buft_alloc_buffer(type, 0));
  ggml_tensor* const rows = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, matrix.ne[0], 1);
  matrix.buffer = empty.get();
  const bool possible = ggml_backend_dev_supports_op(&device, ggml_mul_mat(ctx.get(), &matrix, rows));
  matrix.buffer = nullptr;
  return possible;
}

/// Asks for large pages, before anything is written: every pass reads all weights, and the processor then looks up
/// fewer pages. (Decode of Gemma 3 270M was faster by a fifth.)
void ask_for_large_pages([[maybe_unused]] ggml_backend_buffer& buffer) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = std::uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(ggml_backend_buffer_get_base(&buffer));
  const std::uintptr_t first = (begin + page - 1) / page * page;
  const std::uintptr_t end = (begin + ggml_backend_buffer_get_size(&buffer)) / page * page;
  if (first < end) {
    (void)::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // advice: refusal costs speed only
  }
#endif
}

/// Gives memory of the backend's own kinds to those of the matrices whose product it has for them.
void place_matrices(std::span<ggml_tensor* const> matrices, std::vector<Buffer>& buffers) {
  ggml_backend_reg* const backend = ggml_backend_cpu_reg();
  const auto own_types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(backend, "ggml_backend_dev_get_extra_bufts"));
  ggml_backend_device* const device = ggml_backend_reg_dev_get(backend, 0);
  if (own_types == nullptr) {
    return;
  }
  for (ggml_backend_buffer_type_t* type = own_types(device); type != nullptr && *type != nullptr; ++type) {
    std::vector<ggml_tensor*> placed;
    std::size_t bytes = 0;
    const std::size_t alignment = ggml_backend_buft_get_alignment(*type);
    for (ggml_tensor* const matrix : matrices) {
      if (matrix->data == nullptr && multiplies_from(*device, *type, *matrix)) {
        placed.push_back(matrix);
        bytes += (ggml_backend_buft_get_alloc_size(*type, matrix) + alignment - 1) / alignment * alignment;
      }
    }
    if (placed.empty()) {
      continue;
    }
    Buffer buffer(ggml_backend_buft_alloc_buffer(*type, bytes));
    if (buffer == nullptr) {
      continue;  // they are stored as they are
    }
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ask_for_large_pages(*buffer);
    ggml_tallocr allocator = ggml_tallocr_new(buffer.get());
    for (ggml_tensor* const matrix : placed) {
      ggml_tallocr_alloc(&allocator, matrix);
    }
    buffers.push_back(std::move(buffer));
  }
}

}  // namespace

void GgufFile::fail(const std::string& what) const { throw std::runtime_error(path_ + ": " + what); }

void show_warnings_only() noexcept {
  ggml_log_set(
      [](ggml_log_level level, const char* text, void*) {
        static bool shown = false;  // a text may come in several calls
        shown = level == GGML_LOG_LEVEL_CONT ? shown : level >= GGML_LOG_LEVEL_WARN;
        if (shown) {
          std::fputs(text, stderr);
        }
      },
      nullptr);
}

std::string file_checksum(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes(std::size_t{1} << 20);
  const std::unique_ptr<XXH3_state_t, FreeBy<XXH3_freeState>> state(XXH3_createState());
  if (state == nullptr) {
    throw std::bad_alloc();
  }
  XXH3_128bits_reset(state.get());
  do {
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    XXH3_128bits_update(state.get(), bytes.data(), static_cast<std::size_t>(file.gcount()));
  } while (file);
  if (!file.eof()) {
    throw std::runtime_error(path + ": cannot be read");
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  char digits[33];
  std::snprintf(digits, sizeof digits, "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return digits;
}

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

GgufFile::Loaded GgufFile::load_tensors(WeightType type, std::span<ggml_tensor* const> matrices) && {
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
  std::vector<Buffer> data;
  if (type == WeightType::as_stored) {
    place_matrices(matrices, data);
  }
  data.emplace_back(ggml_backend_alloc_ctx_tensors_from_buft(tensors_.get(), ggml_backend_cpu_buffer_type()));
  if (data.back() == nullptr) {
    fail("there is no memory for its tensors");
  }
  ask_for_large_pages(*data.back());
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
