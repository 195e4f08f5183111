// A recurrent layer with a gated delta rule, as of Qwen3-Next: a short convolution over its inputs, and a matrix for
// each head that forgets and learns with each token. Plain, in double; its state is kept in float.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "kvc/core/types.hpp"
#include "npy.hpp"

namespace kvc_test {

struct DeltaRule {
  kvc::Index key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0, kernel = 0, channels = 0;
  Npy<float> conv_in, conv_w, g, beta,
      out;  // [T, channels], [channels, kernel], [T, value_heads] twice, and the results
  std::vector<kvc::Pos> state_positions;
  Npy<float> conv_state, state;  // [positions, channels, kernel], [positions, value_heads, key_dim, value_dim]

  [[nodiscard]] kvc::Index matrix_floats() const { return value_heads * key_dim * value_dim; }
  [[nodiscard]] kvc::Index inputs_floats() const { return (kernel - 1) * channels; }
  /// Bytes of its state: the matrices, and the last kernel - 1 inputs of the convolution, oldest first.
  [[nodiscard]] kvc::Index bytes() const {
    return (matrix_floats() + inputs_floats()) * static_cast<kvc::Index>(sizeof(float));
  }

  /// Reads the tokens of a range one after the other, from the state before them (empty: the initial one). Results go
  /// to `results` [range.size(), value_heads * value_dim]; f(length, state) gets the state after each token.
  template <class F>
  void run(kvc::PosRange range, std::span<const std::byte> before, std::vector<float>& results, F&& f) const {
    std::vector<float> kept(static_cast<std::size_t>(matrix_floats() + inputs_floats()), 0.0F);
    if (!before.empty()) {
      std::memcpy(kept.data(), before.data(), before.size());
    }
    std::vector<double> matrix(kept.begin(), kept.begin() + matrix_floats());
    std::vector<double> inputs(kept.begin() + matrix_floats(), kept.end());
    for (kvc::Pos t = range.first; t < range.last; ++t) {
      const std::vector<double> c = convolved(inputs, conv_in.matrix().row(t));
      for (kvc::Index head = 0; head < value_heads; ++head) {
        step(c, matrix, head, t, results);
      }
      std::ranges::copy(matrix, kept.begin());
      std::ranges::copy(inputs, kept.begin() + matrix_floats());
      f(static_cast<kvc::Pos>(t + 1), std::as_bytes(std::span(kept)));
    }
  }

 private:
  /// Of the new input and the ones before it, which it joins.
  [[nodiscard]] std::vector<double> convolved(std::vector<double>& inputs, const float* x) const {
    std::vector<double> c(static_cast<std::size_t>(channels));
    for (kvc::Index i = 0; i < channels; ++i) {
      double sum = static_cast<double>(conv_w.data[static_cast<std::size_t>(i * kernel + kernel - 1)]) *
                   static_cast<double>(x[i]);
      for (kvc::Index j = 0; j + 1 < kernel; ++j) {
        sum += static_cast<double>(conv_w.data[static_cast<std::size_t>(i * kernel + j)]) *
               inputs[static_cast<std::size_t>(j * channels + i)];
      }
      c[static_cast<std::size_t>(i)] = sum / (1 + std::exp(-sum));
    }
    inputs.insert(inputs.end(), x, x + channels);  // before the oldest go: a kernel of 1 keeps none
    inputs.erase(inputs.begin(), inputs.begin() + channels);
    return c;
  }
  /// x / sqrt(|x|^2 + 1e-6)
  [[nodiscard]] static std::vector<double> normalised(const double* x, kvc::Index dim) {
    double sum = 1e-6;
    for (kvc::Index i = 0; i < dim; ++i) {
      sum += x[i] * x[i];
    }
    std::vector<double> y(x, x + dim);
    for (double& value : y) {
      value /= std::sqrt(sum);
    }
    return y;
  }
  void step(const std::vector<double>& c, std::vector<double>& matrix, kvc::Index head, kvc::Pos t,
            std::vector<float>& results) const {
    const kvc::Index key_head = head / (value_heads / key_heads);
    const std::vector<double> q = normalised(c.data() + key_head * key_dim, key_dim);
    const std::vector<double> k = normalised(c.data() + (key_heads + key_head) * key_dim, key_dim);
    const double* const v = c.data() + 2 * key_heads * key_dim + head * value_dim;
    const double decay = std::exp(static_cast<double>(g.matrix().row(t)[head]));
    const auto learned = static_cast<double>(beta.matrix().row(t)[head]);
    double* const s = matrix.data() + head * key_dim * value_dim;
    for (kvc::Index d = 0; d < value_dim; ++d) {
      double known = 0;
      for (kvc::Index i = 0; i < key_dim; ++i) {
        s[i * value_dim + d] *= decay;
        known += k[static_cast<std::size_t>(i)] * s[i * value_dim + d];
      }
      double result = 0;
      for (kvc::Index i = 0; i < key_dim; ++i) {
        s[i * value_dim + d] += k[static_cast<std::size_t>(i)] * learned * (v[d] - known);
        result += q[static_cast<std::size_t>(i)] * s[i * value_dim + d];
      }
      results.push_back(static_cast<float>(result / std::sqrt(static_cast<double>(key_dim))));
    }
  }
};

}  // namespace kvc_test
