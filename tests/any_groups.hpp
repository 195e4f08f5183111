// AnyGroups: a cache with layer groups behind an interface, whose rows and states are functions of the tokens before
// them; and layers that differ.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/capabilities.hpp"

namespace kvc_test {

using kvc::Index;
using kvc::KvCache;
using kvc::LayerGroup;
using kvc::LayerGroups;
using kvc::LayerPlace;
using kvc::Opened;
using kvc::OpenOptions;
using kvc::Pos;
using kvc::PosRange;
using kvc::Salt;
using kvc::SeqId;
using kvc::Shape;
using kvc::SlotRun;
using kvc::Stats;
using kvc::Token;
using Tokens = std::vector<Token>;
using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Full attention, a window, a window with kept positions, chunks, and a layer that reads the rows of another one.
inline LayerGroups mixed_layers() {
  LayerGroups layers;
  layers.add({.kv_heads = 2, .key_dim = 3, .value_dim = 2});
  layers.add({.kv_heads = 1, .key_dim = 2, .window = 5}, 2);
  layers.add({.kv_heads = 1, .key_dim = 4, .window = 3, .kept = 2});
  layers.add_reader_of(1);
  layers.add({.kv_heads = 2, .key_dim = 1, .chunk = 6});
  return layers;
}
inline LayerGroups cross_layers() {
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 2, .window = 4});
  layers.add({.kv_heads = 2, .key_dim = 2, .cross_rows = 7});
  return layers;
}

/// Latent rows, all of them and in a window, and keys alone.
inline LayerGroups latent_layers() {
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 5, .value_dim = 3, .latent = true}, 2);
  layers.add({.kv_heads = 1, .key_dim = 4, .value_dim = 2, .window = 3, .latent = true});
  layers.add({.kv_heads = 1, .key_dim = 2, .latent = true});
  return layers;
}

/// Recurrent layers of two sizes beside full attention and a window.
inline LayerGroups recurrent_layers() {
  LayerGroups layers;
  layers.add_state(100);
  layers.add({.kv_heads = 2, .key_dim = 3, .value_dim = 2});
  layers.add_state(24, 2);
  layers.add({.kv_heads = 1, .key_dim = 2, .window = 5});
  layers.add_state(100);
  return layers;
}
/// Nothing but recurrent layers.
inline LayerGroups states_alone() {
  LayerGroups layers;
  layers.add_state(40, 3);
  return layers;
}

/// A number that depends on the tokens up to a position, the layer and the column, and that bf16 holds exactly.
inline float row_number(std::uint64_t history, Index layer, Index column) {
  const std::uint64_t h = (history * 31 + static_cast<std::uint64_t>(layer * 100 + column)) * 0x9e3779b97f4a7c15U;
  return static_cast<float>(h >> 56U) - 128.0F;
}
inline std::uint64_t history_at(const Tokens& tokens, Pos position) {
  std::uint64_t h = 7;
  for (Pos p = 0; p <= position; ++p) {
    h = (h ^ static_cast<std::uint64_t>(tokens[static_cast<std::size_t>(p)] + 1)) * 0x100000001b3U;
  }
  return h;
}

/// Changes the state of a recurrent layer by the next token.
inline void step_state(std::span<std::byte> state, Index layer, Token token) {
  for (std::size_t i = 0; i < state.size(); ++i) {
    const auto before = static_cast<unsigned>(state[i]) + static_cast<unsigned>(state[(i + 1) % state.size()]);
    state[i] = static_cast<std::byte>(
        (before * 31 + static_cast<unsigned>(token) * 7 + static_cast<unsigned>(layer) + i) & 255U);
  }
}

/// A cache with layer groups behind an interface.
struct AnyGroups {
  virtual ~AnyGroups() = default;
  virtual std::string name() const = 0;
  virtual bool finds() const = 0;
  virtual SeqId open(const Salt& salt) = 0;
  virtual bool extend(SeqId seq, const Tokens& all, Pos count) = 0;
  virtual std::optional<SeqId> fork(SeqId seq, Pos at) = 0;
  virtual void truncate(SeqId seq, Pos length) = 0;
  virtual void close(SeqId seq) = 0;
  virtual Pos length(SeqId seq) const = 0;
  virtual Pos match(const Tokens& prompt, const Salt& salt) const = 0;
  virtual Opened open_prompt(const Tokens& prompt, const Salt& salt) = 0;
  virtual Stats stats() const = 0;
  /// Checks that all retained rows and states of a sequence are those of its tokens, and that the next row finds all
  /// that it needs.
  virtual void check(SeqId seq, const Tokens& tokens) const = 0;
  virtual void verify() const = 0;
};

/// One of elements T, a policy P and a layout L. Base is AnyGroups or derived from it.
template <class T, class P, class L, class Base = AnyGroups>
struct GroupsOf : Base {
  using Cache = KvCache<T, P, L>;
  Cache cache;
  GroupsOf(const LayerGroups& layers, const typename P::Config& config) : cache(layers, config) {
    std::memset(static_cast<void*>(cache.data()), 0x55, static_cast<std::size_t>(cache.pool_bytes()));
  }
  std::string name() const override {
    return std::string(P::name) + " of " + std::to_string(cache.policy().block_tokens()) + " " + std::string(L::name);
  }
  bool finds() const override { return kvc::KnowsTokens<P>; }
  SeqId open(const Salt& salt) override {
    OpenOptions options;
    options.salt = salt;
    return cache.open(options);
  }
  RowMatrix rows(Index layer, PosRange range, const Tokens& tokens, bool keys) const {
    const LayerPlace place = cache.layers().place(layer);
    const Shape& shape = cache.shape(place.group);
    const bool cross = cache.layers().groups()[static_cast<std::size_t>(place.group)].cross_rows > 0;
    RowMatrix m(range.size(), shape.kv_heads * (keys ? shape.key_dim : shape.value_dim));
    for (Index i = 0; i < m.rows(); ++i) {
      const Pos p = range.first + static_cast<Pos>(i);
      const std::uint64_t history =
          cross ? static_cast<std::uint64_t>(tokens[0]) * 1000 + static_cast<std::uint64_t>(p) : history_at(tokens, p);
      for (Index c = 0; c < m.cols(); ++c) {
        const bool is_key = keys || cache.group_layout(place.group).latent();
        m(i, c) = row_number(history, place.group * 10 + place.layer, is_key ? c : c + 50);
      }
    }
    return m;
  }
  /// Writes the rows of a layer, unless it reads those of another one; or its states, which follow from the one before.
  void write(Index layer, const typename Cache::Append& step, const Tokens& all) {
    if (cache.layers().is_recurrent(layer)) {
      write_states(layer, step, all);
      return;
    }
    const LayerPlace place = cache.layers().place(layer);
    if (!place.is_owner) {
      return;
    }
    const LayerGroup& group = cache.layers().groups()[static_cast<std::size_t>(place.group)];
    if (group.tokens_per_row > 1) {  // these are not checked here
      const Index count = cache.rows_to_write(layer, step), columns = group.shape.kv_heads * group.tokens_per_row;
      cache.write(layer, step, RowMatrix::Zero(count, columns * group.shape.key_dim),
                  RowMatrix::Zero(count, columns * group.shape.value_dim));
      return;
    }
    const bool cross = group.cross_rows > 0;
    const PosRange range = cross ? PosRange{0, cache.rows_to_write(layer, step)} : step.range();
    if (cache.group_layout(place.group).latent()) {
      cache.write(layer, step, rows(layer, range, all, true));
    } else {
      cache.write(layer, step, rows(layer, range, all, true), rows(layer, range, all, false));
    }
  }
  void write_states(Index layer, const typename Cache::Append& step, const Tokens& all) {
    std::vector<std::byte> state = empty_state(layer);
    std::ranges::copy(cache.state(layer, step.seq()), state.begin());
    Pos length = step.range().first;
    for (const Pos wanted : cache.states_to_write(step)) {
      for (; length < wanted; ++length) {
        step_state(state, layer, all[static_cast<std::size_t>(length)]);
      }
      std::ranges::copy(state, cache.state_to_write(layer, step, wanted).begin());
    }
  }
  std::vector<std::byte> empty_state(Index layer) const {
    const auto kind = static_cast<std::size_t>(cache.layers().state_place(layer).kind);
    return std::vector<std::byte>(static_cast<std::size_t>(cache.layers().states()[kind].bytes));
  }
  bool extend(SeqId seq, const Tokens& all, Pos count) override {
    const Pos from = cache.length(seq);
    auto step =
        cache.try_extend(seq, std::span(all).subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(count)));
    if (!step) {
      return false;
    }
    for (Index layer = 0; layer < cache.layers().layers(); ++layer) {
      write(layer, *step, all);
    }
    cache.commit(std::move(*step));
    return true;
  }
  std::optional<SeqId> fork(SeqId seq, Pos at) override {
    try {
      return cache.try_fork(seq, at);
    } catch (const std::invalid_argument&) {
      return std::nullopt;
    }
  }
  void truncate(SeqId seq, Pos length) override {
    try {
      cache.truncate(seq, length);
    } catch (const std::invalid_argument&) {
    }
  }
  void close(SeqId seq) override { cache.close(seq); }
  Pos length(SeqId seq) const override { return cache.length(seq); }
  Pos match(const Tokens& prompt, const Salt& salt) const override {
    if constexpr (kvc::KnowsTokens<P>) {
      OpenOptions options;
      options.salt = salt;
      return cache.match_length(prompt, options);
    }
    return 0;
  }
  Opened open_prompt(const Tokens& prompt, const Salt& salt) override {
    OpenOptions options;
    options.salt = salt;
    return cache.open(prompt, options);
  }
  Stats stats() const override { return cache.stats(); }
  void verify() const override { cache.verify(); }
  void check(SeqId seq, const Tokens& tokens) const override {
    const Pos length = cache.length(seq);
    for (Index layer = 0; layer < cache.layers().layers(); ++layer) {
      if (cache.layers().is_recurrent(layer)) {
        check_states(layer, seq, tokens);
        continue;
      }
      const LayerPlace place = cache.layers().place(layer);
      const LayerGroup& group = cache.layers().groups()[static_cast<std::size_t>(place.group)];
      const Pos end = group.cross_rows > 0 ? (length > 0 ? group.cross_rows : 0) : length;
      REQUIRE(cache.policy().positions(seq, place.group) == end);
      std::vector<Pos> there;
      cache.policy().for_each_run(seq, place.group, {0, end}, [&](const SlotRun& run) {
        for (Pos p = run.first; p < run.first + run.count; ++p) {
          there.push_back(p);
        }
      });
      for (const Pos p : there) {
        RowMatrix k(1, group.shape.kv_heads * group.shape.key_dim);
        RowMatrix v(1, group.shape.kv_heads * group.shape.value_dim);
        cache.gather(layer, seq, {p, p + 1}, k, v);
        REQUIRE(k == rows(layer, {p, p + 1}, tokens, true));
        REQUIRE(v == rows(layer, {p, p + 1}, tokens, false));
      }
      for (Pos p = 0; p < end; ++p) {
        if (p < group.retained.kept || p >= group.retained.first_seen(end)) {
          REQUIRE(std::ranges::binary_search(there, p));
        }
      }
    }
  }
  void check_states(Index layer, SeqId seq, const Tokens& tokens) const {
    std::vector<std::byte> state = empty_state(layer);
    Pos at = 0;
    for (const Pos length : cache.policy().state_lengths(seq)) {
      for (; at < length; ++at) {
        step_state(state, layer, tokens[static_cast<std::size_t>(at)]);
      }
      REQUIRE(std::ranges::equal(cache.state(layer, seq, length), state));
    }
    REQUIRE(at == cache.length(seq));
  }
};

}  // namespace kvc_test
