// Decode as one writes it with Eigen in an afternoon: keys and values of a head as one matrix [positions, dim].
//
//   peer_eigen/decode/f32/per-head/...    scores = K q, softmax, V^T p for each query head: what the formula says
//   peer_eigen/decode/f32/per-group/...   the same with the query heads of a group as one matrix: K and V are read once
#include <Eigen/Core>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "attention/filled.hpp"
#include "peers/rows.hpp"

namespace {
using namespace kvc_bench;
using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// `together` query heads at a time, 1 or all of a group.  q, out [query heads, dim]
void decode(const float* keys, const float* values, Index length, const Heads& heads, Index together,
            const std::vector<float>& q, std::vector<float>& out, [[maybe_unused]] int threads) {
  const Index group = heads.query / heads.kv;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads)
#endif
  for (Index first = 0; first < heads.query; first += together) {
    const Index head = first / group;
    const Eigen::Map<const Rows> k(keys + head * length * heads.key_dim, length, heads.key_dim);
    const Eigen::Map<const Rows> v(values + head * length * heads.value_dim, length, heads.value_dim);
    const float scale = 1.0F / std::sqrt(static_cast<float>(heads.key_dim));
    if (together == 1) {
      const Eigen::Map<const Eigen::VectorXf> query(q.data() + first * heads.key_dim, heads.key_dim);
      Eigen::Map<Eigen::VectorXf> result(out.data() + first * heads.value_dim, heads.value_dim);
      Eigen::VectorXf p = k * query * scale;
      p = (p.array() - p.maxCoeff()).exp();
      p /= p.sum();
      result.noalias() = v.transpose() * p;
    } else {
      const Eigen::Map<const Rows> query(q.data() + first * heads.key_dim, together, heads.key_dim);
      Eigen::Map<Rows> result(out.data() + first * heads.value_dim, together, heads.value_dim);
      Rows p = query * k.transpose() * scale;
      for (Index i = 0; i < together; ++i) {
        p.row(i) = (p.row(i).array() - p.row(i).maxCoeff()).exp();
        p.row(i) /= p.row(i).sum();
      }
      result.noalias() = p * v;
    }
  }
}

void add_decode(Index length, Index together, const std::string& variant) {
  const std::string name = "peer_eigen/decode/f32/" + variant + "/kv:" + std::to_string(length);
  for (const int threads : thread_counts()) {
    add(name + "/threads:" + std::to_string(threads), [=](benchmark::State& state) {
      const Heads heads;
      const std::vector<float> row = random_numbers(1024 * heads.key_dim, 1);
      std::vector<std::byte> bytes(row.size() * sizeof(float));
      std::memcpy(bytes.data(), row.data(), bytes.size());
      const auto rows =
          kept<PeerRows>("peer_eigen" + std::to_string(length),
                         static_cast<std::size_t>(length * heads.kv * heads.key_dim) * sizeof(float), bytes);
      const std::vector<float> q = random_numbers(heads.query * heads.key_dim, 4);
      std::vector<float> out(q.size());
      const Work work{rows->bytes_per_layer(), heads.operations(static_cast<double>(length)), Unit::fp32};
      measure(state, threads, work, [&](std::size_t i) {
        decode(reinterpret_cast<const float*>(rows->keys(i)), reinterpret_cast<const float*>(rows->values(i)), length,
               heads, together, q, out, threads);
      });
    });
  }
}

const Cases cases(10, [] {
  const Heads heads;
  for (const Index length : {4096, 16384, 65536}) {
    add_decode(length, 1, "per-head");
    add_decode(length, heads.query / heads.kv, "per-group");
  }
});
}  // namespace
