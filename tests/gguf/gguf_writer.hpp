// GgufWriter: small GGUF files for tests.
#pragma once

#include <ggml.h>
#include <gguf.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "catch.hpp"
#include "ggml/gguf_file.hpp"
#include "kvc/core/types.hpp"

namespace kvc_test {

/// Collects tensors and keys of a GGUF file.
class GgufWriter {
 public:
  GgufWriter()
      : ctx_(ggml_init({.mem_size = 32 << 20, .mem_buffer = nullptr, .no_alloc = false})), gguf_(gguf_init_empty()) {}

  /// A matrix of `out` rows of `in` elements, stored as `type`; with one row a vector.
  void add(const std::string& name, const float* data, kvc::Index in, kvc::Index out, ggml_type type = GGML_TYPE_F32) {
    ggml_tensor* tensor =
        out == 1 ? ggml_new_tensor_1d(ctx_.get(), type, in) : ggml_new_tensor_2d(ctx_.get(), type, in, out);
    ggml_quantize_chunk(type, data, tensor->data, 0, out, in, nullptr);
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(gguf_.get(), tensor);
  }
  template <class M>
  void add(const std::string& name, const M& weights) {
    add(name, weights.data(), weights.cols(), weights.rows());
  }
  void set(const char* key, kvc::Index value) { gguf_set_val_u32(gguf_.get(), key, static_cast<std::uint32_t>(value)); }
  void set(const char* key, float value) { gguf_set_val_f32(gguf_.get(), key, value); }
  void set(const char* key, const char* value) { gguf_set_val_str(gguf_.get(), key, value); }
  void set(const char* key, const std::vector<float>& values) {
    gguf_set_arr_data(gguf_.get(), key, GGUF_TYPE_FLOAT32, values.data(), values.size());
  }
  void set(const char* key, const std::vector<std::int32_t>& values) {
    gguf_set_arr_data(gguf_.get(), key, GGUF_TYPE_INT32, values.data(), values.size());
  }
  void set(const char* key, const std::vector<std::string>& texts) {
    std::vector<const char*> starts;
    for (const std::string& text : texts) {
      starts.push_back(text.c_str());
    }
    gguf_set_arr_str(gguf_.get(), key, starts.data(), starts.size());
  }
  void write(const std::string& path) const { REQUIRE(gguf_write_to_file(gguf_.get(), path.c_str(), false)); }

 private:
  ggml_engine::Context ctx_;
  std::unique_ptr<gguf_context, ggml_engine::FreeBy<gguf_free>> gguf_;
};

}  // namespace kvc_test
