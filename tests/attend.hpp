// Attention over any view and any executor, compiled once, in attend.cpp. The code of attention is long, and a test
// that names ten kinds of views would otherwise be compiled ten times.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/output.hpp"
#include "kvc/parallel/executor.hpp"

namespace kvc_test {

/// Any view, copied.
template <class T>
class AnyView {
 public:
  using Element = T;

  template <kvc::KvView View>
    requires(std::same_as<typename View::Element, T> && !std::same_as<View, AnyView>)
  AnyView(const View& view)  // NOLINT: converts by design
      : kv_heads_(view.kv_heads()),
        key_dim_(view.key_dim()),
        value_dim_(view.value_dim()),
        length_(view.length()),
        for_each_run_(
            [view](kvc::Index head, kvc::PosRange range, const Visitor& f) { view.for_each_run(head, range, f); }) {}

  [[nodiscard]] kvc::Index kv_heads() const { return kv_heads_; }
  [[nodiscard]] kvc::Index key_dim() const { return key_dim_; }
  [[nodiscard]] kvc::Index value_dim() const { return value_dim_; }
  [[nodiscard]] kvc::Pos length() const { return length_; }
  template <class F>
  void for_each_run(kvc::Index head, kvc::PosRange range, F&& f) const {
    for_each_run_(head, range, std::ref(f));
  }

 private:
  using Visitor = std::function<void(const kvc::KvRun<T>&)>;
  kvc::Index kv_heads_, key_dim_, value_dim_;
  kvc::Pos length_;
  std::function<void(kvc::Index, kvc::PosRange, const Visitor&)> for_each_run_;
};
static_assert(kvc::KvView<AnyView<float>>);

/// Any executor, by reference, and what it says of itself.
class AnyExecutor {
 public:
  template <kvc::Executor Ex>
    requires(!std::same_as<std::remove_cvref_t<Ex>, AnyExecutor>)
  AnyExecutor(Ex&& executor)  // NOLINT: converts by design
      : concurrency_(kvc::detail::concurrency(executor)),
        parallel_for_(
            [&executor](kvc::Index n, const std::function<void(kvc::Index)>& f) { executor.parallel_for(n, f); }) {}

  [[nodiscard]] kvc::Index concurrency() const { return concurrency_; }
  template <class F>
  void parallel_for(kvc::Index n, F&& f) const {
    parallel_for_(n, std::ref(f));
  }

 private:
  kvc::Index concurrency_;
  std::function<void(kvc::Index, const std::function<void(kvc::Index)>&)> parallel_for_;
};
static_assert(kvc::Executor<AnyExecutor>);

/// kvc::prefill and kvc::decode.
template <class T>
struct Attend {
  using Views = std::span<const AnyView<T>>;
  static void prefill(const AnyView<T>& kv, kvc::PosRange queries, kvc::MatrixRef<const float> q,
                      const kvc::AttentionOutput& out, const kvc::AttentionOptions& options = {},
                      const AnyExecutor& executor = kvc::Sequential{});
  static void prefill(Views views, std::span<const kvc::PosRange> queries, kvc::MatrixRef<const float> q,
                      const kvc::AttentionOutput& out, const kvc::AttentionOptions& options = {},
                      const AnyExecutor& executor = kvc::Sequential{});
  static void prefill(Views views, std::span<const std::int32_t> q_indptr, kvc::MatrixRef<const float> q,
                      const kvc::AttentionOutput& out, const kvc::AttentionOptions& options = {},
                      const AnyExecutor& executor = kvc::Sequential{});
  static void decode(Views views, kvc::MatrixRef<const float> q, const kvc::AttentionOutput& out,
                     const kvc::AttentionOptions& options = {}, const AnyExecutor& executor = kvc::Sequential{});
  static void decode(const AnyView<T>& kv, kvc::MatrixRef<const float> q, const kvc::AttentionOutput& out,
                     const kvc::AttentionOptions& options = {}, const AnyExecutor& executor = kvc::Sequential{}) {
    decode(Views(&kv, 1), q, out, options, executor);
  }
};

}  // namespace kvc_test
