// GgufFile: the metadata and the tensors of a GGUF file, read through ggml.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>
#include <gguf.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ggml_engine {

/// A deleter for a handle of ggml.
template <auto Free>
struct FreeBy {
  template <class T>
  void operator()(T* handle) const noexcept {
    Free(handle);
  }
};
using Context = std::unique_ptr<ggml_context, FreeBy<ggml_free>>;
using Buffer = std::unique_ptr<ggml_backend_buffer, FreeBy<ggml_backend_buffer_free>>;
using Backend = std::unique_ptr<ggml_backend, FreeBy<ggml_backend_free>>;

/// Lets ggml print warnings and errors, and not what it does with each tensor.
void show_warnings_only() noexcept;

/// The type that weights have in memory: that of the file, or float.
enum class WeightType { as_stored, f32 };

/// XXH3 of 128 bits over all bytes of a file, as hexadecimal digits. Throws std::runtime_error that names the file if
/// it cannot be read.
[[nodiscard]] std::string file_checksum(const std::string& path);

/// An open GGUF file. Every member throws std::runtime_error that names the file and the key or tensor: if it is not
/// there and there is no fallback, or has another type.
class GgufFile {
 public:
  explicit GgufFile(std::string path);

  [[nodiscard]] bool has(const std::string& key) const { return gguf_find_key(gguf_.get(), key.c_str()) >= 0; }
  [[nodiscard]] std::int64_t integer(const std::string& key, std::optional<std::int64_t> fallback = {}) const;
  [[nodiscard]] float real(const std::string& key, std::optional<float> fallback = {}) const;
  [[nodiscard]] bool flag(const std::string& key, bool fallback) const;
  [[nodiscard]] std::string text(const std::string& key, std::optional<std::string> fallback = {}) const;
  [[nodiscard]] std::vector<std::string_view> texts(const std::string& key) const;
  [[nodiscard]] std::vector<float> reals(const std::string& key) const;
  [[nodiscard]] std::vector<std::int32_t> integers(const std::string& key) const;

  /// The tensor of this name, or null. It has data once they are loaded.
  [[nodiscard]] ggml_tensor* tensor(const std::string& name) const noexcept {
    return ggml_get_tensor(tensors_.get(), name.c_str());
  }
  [[nodiscard]] std::vector<std::string> tensor_names() const;
  /// Tensors and their data, in memory of the CPU backend. The tensors live as long as both.
  struct Loaded {
    Context tensors;
    std::vector<Buffer> data;
  };
  /// Reads the data of all tensors, as they are stored or all as floats.
  ///
  ///   matrices  tensors that are only multiplied by: the backend may store them in an order of its own, that of
  ///             its fastest product (ggml calls such memory an extra buffer type)
  [[nodiscard]] Loaded load_tensors(WeightType type, std::span<ggml_tensor* const> matrices) &&;

  [[noreturn]] void fail(const std::string& what) const;

 private:
  [[nodiscard]] std::int64_t find(const std::string& key) const;
  [[nodiscard]] std::int64_t find_array(const std::string& key, gguf_type type) const;

  std::string path_;
  std::unique_ptr<gguf_context, FreeBy<gguf_free>> gguf_;
  Context tensors_;
};

}  // namespace ggml_engine
