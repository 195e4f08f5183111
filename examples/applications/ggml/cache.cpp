#include "cache.hpp"

#include "kvc/core/error.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"

namespace ggml_engine {

/// In cache_of.hpp, which takes long to compile: each element type has a file of its own.
template <class T>
std::unique_ptr<Cache> make_cache_of(const Model& model, const CacheOptions& options);

namespace {

/// Calls the maker of the first of the types whose name is that of the option.
template <class... T>
std::unique_ptr<Cache> make_cache_of_any(const Model& model, const CacheOptions& options) {
  std::unique_ptr<Cache> cache;
  const bool known =
      ((kvc::Element<T>::name == options.element && (cache = make_cache_of<T>(model, options), true)) || ...);
  kvc::require(known, "element", options.element, "one of f32, f16, bf16, int8, fp8, int4");
  return cache;
}

}  // namespace

std::unique_ptr<Cache> make_cache(const Model& model, const CacheOptions& options) {
  kvc::require(options.max_tokens >= 1, "max_tokens", options.max_tokens, "at least 1");
  kvc::require(options.sequences >= 1, "sequences", options.sequences, "at least 1");
  return make_cache_of_any<float, Eigen::half, Eigen::bfloat16, kvc::Int8, kvc::Fp8E4M3, kvc::Int4>(model, options);
}

}  // namespace ggml_engine
