// The rows that the peers read: keys and values of many layers, in memory of the kind that kvc::HostSpace gives. It is
// the best case for them: the rows of a tensor without gaps, large pages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "attention/measure.hpp"
#include "kvc/memory/space.hpp"

namespace kvc_bench {

/// Layers of keys and of values, each `layer_bytes`; as many layers as exceed working_set() bytes. Each is filled with
/// `rows` again and again.
class PeerRows {
 public:
  PeerRows(std::size_t layer_bytes, const std::vector<std::byte>& rows)
      : layer_bytes_(layer_bytes),
        layers_((working_set() + 2 * layer_bytes - 1) / (2 * layer_bytes)),
        buffer_(kvc::HostSpace{}, 2 * layers_ * layer_bytes) {
    for (std::size_t at = 0; at < buffer_.size();) {
      const std::size_t bytes = std::min(rows.size(), layer_bytes_ - at % layer_bytes_);
      std::copy_n(rows.data(), bytes, buffer_.data() + at);
      at += bytes;
    }
  }

  [[nodiscard]] std::size_t layers() const { return layers_; }
  /// The keys, and behind them the values, of the layer that has its turn in call i.
  [[nodiscard]] std::byte* keys(std::size_t i) { return buffer_.data() + 2 * (i % layers_) * layer_bytes_; }
  [[nodiscard]] std::byte* values(std::size_t i) { return keys(i) + layer_bytes_; }
  [[nodiscard]] double bytes_per_layer() const { return 2.0 * static_cast<double>(layer_bytes_); }

 private:
  std::size_t layer_bytes_, layers_;
  kvc::Buffer<kvc::HostSpace> buffer_;
};

}  // namespace kvc_bench
