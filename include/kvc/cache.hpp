// KvCache<T, Policy, Layout, Space>: the keys and values of many sequences, in one pool.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/attention/compressed.hpp"
#include "kvc/cache/append.hpp"
#include "kvc/cache/arguments.hpp"
#include "kvc/cache/calls.hpp"
#include "kvc/cache/pool_layout.hpp"
#include "kvc/cache/view.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/token_span.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/fwd.hpp"
#include "kvc/layout/copy_rows.hpp"
#include "kvc/layout/group_layout.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/memory/space.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/forwarded.hpp"
#include "kvc/policy/detail/stored_runs.hpp"

namespace kvc {
inline namespace v0 {

/// The KV cache: keys and values of many sequences in one pool, which is allocated once and never moves. Binds four
/// choices that do not know one another:
///
///   T   ElementType   how a row is stored              float, Eigen::half, Eigen::bfloat16, Int8, Fp8E4M3, Int4,
///                                                      Mixed, None
///   P   Policy        which slots a sequence holds     Contiguous, Paged, PrefixShared<>
///   L   Layout        where the row of a slot lies     HeadMajor, TokenMajor, LayerMajor<>, ScalePlanes<>
///   S   Space         the memory of the pool           HostSpace, BorrowedSpace, cuda::DeviceSpace
///
/// The life of a sequence:
///
///   open -> extend -> write, once per layer -> commit -> extend ... -> close
///
/// `extend` reserves positions, all or nothing. Until `commit` only views of the own sequence see them; an Append that
/// is destroyed uncommitted takes them back. Attention reads through `view(layer, seq)`. The abilities of the policy
/// beyond its contract, such as match_length, admission or try_pin of PrefixShared, are members too: see
/// policy/capabilities.hpp.
///
/// Errors: a bad argument throws std::invalid_argument that names it. Without room the try_ form returns an empty
/// optional and the plain form throws CapacityError. An operation that fails has changed nothing.
///
/// Lifetimes: the cache does not move. Appends and views must not outlive it. A SeqId that outlived its sequence is
/// detected. The runs of a view are valid until its sequence is extended, committed, rolled back, truncated or closed.
///
/// Threads: members that are not const need one thread at a time, with one exception: `write`s of distinct Appends may
/// run at the same time. Const members and attention on views may run in any number of threads, beside each other and
/// beside `write`s, as long as nobody reads rows that are being written.
template <ElementType T, Policy P, Layout L, Space S>
class KvCache<T, P, L, S> : public detail::Forwarded<KvCache<T, P, L, S>, P> {
 public:
  using Element = T;
  using Storage = StorageOf<T>;
  using PolicyType = P;
  using LayoutType = L;
  using View = CacheView<T, P, L>;
  using Append = kvc::Append<P>;

  /// Allocates the pool: policy.blocks() x policy.block_tokens() slots of 2 x layers x kv_heads rows.
  /// Throws std::invalid_argument for a bad shape or configuration, std::bad_alloc if the space has not so much memory,
  /// InvariantError if rows of the layout overlap or lie outside of the pool.
  explicit KvCache(const Shape& shape, const typename P::Config& config, S space = S{})
      : KvCache(LayerGroups(shape), config, std::move(space)) {}

  /// The same for a model whose layers differ. A policy that holds several groups in one pool (HoldsGroups) gives all
  /// blocks the same number of bytes: at least `config.block_tokens` positions of the group with the largest rows, and
  /// about as many bytes of positions of each other one; policy().block_tokens(group) is the number. Throws
  /// std::invalid_argument, too, if the policy holds only one group of full attention and the layers are not one.
  explicit KvCache(const LayerGroups& layers, const typename P::Config& config, S space = S{})
      : layers_(layers),
        policy_(detail::make_policy<T, P>(layers_, config)),
        layouts_(layers_, policy_),
        pool_(std::move(space), static_cast<std::size_t>(layouts_.size()) * sizeof(Storage)) {}
  KvCache(const KvCache&) = delete;  // views and appends point into it
  KvCache& operator=(const KvCache&) = delete;

  /// The layers of the model, and their groups.
  [[nodiscard]] const LayerGroups& layers() const noexcept { return layers_; }
  /// The shape of a group, with its defaults filled in; without an argument that of the first, which is the only one
  /// of a cache that was made from a Shape. There must be one: a model of recurrent layers alone has none.
  [[nodiscard]] const Shape& shape(Index group = 0) const noexcept {
    return layers_.groups()[static_cast<std::size_t>(group)].shape;
  }
  /// The policy, for its const members. Changes go through the cache, which carries out the copies that they need.
  [[nodiscard]] const P& policy() const noexcept { return policy_; }
  /// The layout of the pool, of a cache with one group. With several, that within a block of the first group.
  [[nodiscard]] const L& layout() const noexcept { return layouts_[0].layout(); }
  /// Where the rows of a group lie in the pool.
  [[nodiscard]] const GroupLayout<L>& group_layout(Index group) const noexcept { return layouts_[group]; }
  /// The pool, layout().size() storage units where there is one group: for kernels of your own.
  [[nodiscard]] const Storage* data() const noexcept { return reinterpret_cast<const Storage*>(pool_.data()); }
  /// The same, to be written by kernels of your own.
  [[nodiscard]] Storage* data() noexcept { return reinterpret_cast<Storage*>(pool_.data()); }
  /// The space that the pool lies in.
  [[nodiscard]] S& space() noexcept { return pool_.space(); }
  /// Bytes of keys and values that one token takes, in all layers that store tokens, until groups drop it.
  [[nodiscard]] Index bytes_per_token() const noexcept {
    Index bytes = 0;
    for (const LayerGroup& group : layers_.groups()) {
      bytes += group.cross_rows == 0 ? row_bytes<T>(group) : 0;
    }
    return bytes;
  }
  /// Bytes of the pool.
  [[nodiscard]] Index pool_bytes() const noexcept { return layouts_.size() * static_cast<Index>(sizeof(Storage)); }
  /// Bytes that the pool of a cache has which is constructed with the same arguments: what to lend a BorrowedSpace.
  /// Throws as the constructor does. Makes a policy for it, and no pool.
  [[nodiscard]] static Index pool_bytes(const LayerGroups& layers, const typename P::Config& config) {
    return PoolLayout<T, L>(layers, detail::make_policy<T, P>(layers, config)).size() *
           static_cast<Index>(sizeof(Storage));
  }
  /// The same for layers that are all alike.
  [[nodiscard]] static Index pool_bytes(const Shape& shape, const typename P::Config& config) {
    return pool_bytes(LayerGroups(shape), config);
  }

  /// A new sequence, or an empty optional if there is no room. The first `cached` tokens of `prompt` are in place:
  /// extend by the rest. The plain form throws CapacityError if there is no room, and both throw std::invalid_argument
  /// for bad options.
  ///
  ///   open()   open(prompt)   open({1, 2, 3})   open(prompt, options)   open({.max_tokens = 100})
  ///
  /// An Opened converts to the SeqId of its sequence:  const SeqId seq = cache.open();
  [[nodiscard]] std::optional<Opened> try_open(TokenSpan prompt, const OpenOptions& options = {}) {
    return policy_.try_open(prompt, options);
  }
  /// The same for tokens in braces.
  [[nodiscard]] std::optional<Opened> try_open(std::initializer_list<Token> prompt, const OpenOptions& options = {}) {
    return try_open(TokenSpan(prompt), options);
  }
  /// The same without a prompt.
  [[nodiscard]] std::optional<Opened> try_open(const OpenOptions& options) { return try_open(TokenSpan(), options); }
  /// The same without a prompt, with the default options.
  [[nodiscard]] std::optional<Opened> try_open() { return try_open(OpenOptions{}); }
  /// As try_open: a new sequence whose first `cached` tokens of `prompt` are in place. Throws CapacityError if there is
  /// no room, std::invalid_argument for bad options.
  [[nodiscard]] Opened open(TokenSpan prompt, const OpenOptions& options = {}) {
    const std::optional<Opened> opened = try_open(prompt, options);
    if (!opened) {
      detail::throw_no_room(policy_, "open", options.max_tokens,
                            [&](const auto& p) { return p.why_not_open(options); });
    }
    return *opened;
  }
  /// The same for tokens in braces.
  [[nodiscard]] Opened open(std::initializer_list<Token> prompt, const OpenOptions& options = {}) {
    return open(TokenSpan(prompt), options);
  }
  /// The same without a prompt.
  [[nodiscard]] Opened open(const OpenOptions& options) { return open(TokenSpan(), options); }
  /// The same without a prompt, with the default options.
  [[nodiscard]] Opened open() { return open(OpenOptions{}); }

  /// Reserves the next positions of a sequence: one for each of `tokens`, or `count` of them. All or nothing: without
  /// room try_extend gives an empty optional and extend throws CapacityError. A sequence has at most one uncommitted
  /// extension; another throws std::invalid_argument.
  ///
  ///   extend(seq, 7)   extend(seq, tokens)   extend(seq, {1, 2, 3})
  ///
  /// A policy that matches prefixes finds rows again by their tokens: there, the form with `count` does not compile.
  /// Where the tokens are not known, or nothing is to be found, `extend_without_tokens(seq, count)` says so.
  template <std::integral I>
  [[nodiscard]] std::optional<Append> try_extend(SeqId seq, I count) {
    detail::require_count_is_enough<P, I>();
    return try_extend_without_tokens(seq, count);
  }
  /// The same, a position for each of `tokens`.
  [[nodiscard]] std::optional<Append> try_extend(SeqId seq, TokenSpan tokens) {
    return try_extend(seq, checked_count(tokens.size(), "tokens.size()"), tokens);
  }
  /// As try_extend: reserves `count` positions, all or nothing. Throws CapacityError if there is no room,
  /// std::invalid_argument if the sequence has an uncommitted extension. Not for policies that match prefixes.
  template <std::integral I>
  [[nodiscard]] Append extend(SeqId seq, I count) {
    detail::require_count_is_enough<P, I>();
    return extend_without_tokens(seq, count);
  }
  /// As try_extend: reserves a position for each of `tokens`, all or nothing. Throws CapacityError if there is no room,
  /// std::invalid_argument if the sequence has an uncommitted extension.
  [[nodiscard]] Append extend(SeqId seq, TokenSpan tokens) {
    return extend(seq, checked_count(tokens.size(), "tokens.size()"), tokens);
  }

  /// The same for `count` positions whose tokens the policy does not learn, under any policy. No prompt finds these
  /// rows, or any behind them, before `publish_tokens` names their tokens; `stats().tokens_unknown` counts them.
  template <std::integral I>
  [[nodiscard]] std::optional<Append> try_extend_without_tokens(SeqId seq, I count) {
    return try_extend(seq, detail::checked_extension(count), std::span<const Token>{});
  }
  /// As try_extend_without_tokens. Throws CapacityError if there is no room.
  template <std::integral I>
  [[nodiscard]] Append extend_without_tokens(SeqId seq, I count) {
    return extend(seq, detail::checked_extension(count), std::span<const Token>{});
  }

  /// As try_extend, of a model with recurrent layers: also reserves their states after each of `states_at` tokens of
  /// the sequence, for the caller to write. They must ascend, above the present length; the new length is always one. A
  /// later prompt finds its prefix as far as there are states (see docs/layer-groups.md), and `truncate` and `fork` go
  /// to these lengths.
  [[nodiscard]] std::optional<Append> try_extend(SeqId seq, TokenSpan tokens, std::span<const Pos> states_at)
    requires HoldsStates<P>
  {
    return try_extend(seq, checked_count(tokens.size(), "tokens.size()"), tokens, states_at);
  }
  /// As try_extend. Throws CapacityError if there is no room.
  [[nodiscard]] Append extend(SeqId seq, TokenSpan tokens, std::span<const Pos> states_at)
    requires HoldsStates<P>
  {
    return extend(seq, checked_count(tokens.size(), "tokens.size()"), tokens, states_at);
  }
  /// The same for lengths in braces.
  [[nodiscard]] Append extend(SeqId seq, TokenSpan tokens, std::initializer_list<Pos> states_at)
    requires HoldsStates<P>
  {
    return extend(seq, tokens, std::span(states_at.begin(), states_at.size()));
  }

  /// The lengths, ascending, of which an append wants the states of recurrent layers: those that `extend` was asked
  /// for, those that a policy wants to find prefixes, and that of its end. Empty if there are no such layers. Valid
  /// until the commit. O(states).
  [[nodiscard]] std::span<const Pos> states_to_write(const Append& append) const
    requires HoldsStates<P>
  {
    require_own(append);
    const std::span<const Pos> all = policy_.state_lengths(append.seq_);
    return all.subspan(static_cast<std::size_t>(std::ranges::upper_bound(all, append.range_.first) - all.begin()));
  }
  /// The bytes of a recurrent layer's state after `length` tokens, one of states_to_write(append), to be written before
  /// the commit. They begin on a line of 64 bytes. Nobody else reads them before. Where the CPU cannot access the pool
  /// they are addresses of its memory, for kernels: see cuda::state_to_write. Throws std::invalid_argument for another
  /// layer, length or append.
  [[nodiscard]] std::span<std::byte> state_to_write(Index layer, const Append& append, Pos length)
    requires HoldsStates<P>
  {
    require_own(append);
    require(length > append.range_.first, "length", length, "one of states_to_write");
    const Index offset = state_offset(layer, append.seq_, length);
    return {reinterpret_cast<std::byte*>(data() + offset), state_bytes(layer)};
  }
  /// The state of a recurrent layer after `length` tokens of the sequence; without it, after the committed ones. Empty
  /// for length 0: the state is the model's initial one then. Throws std::invalid_argument for another layer, and for a
  /// length of which there is no state (policy().state_lengths has all of them).
  [[nodiscard]] std::span<const std::byte> state(Index layer, SeqId seq, Pos length) const
    requires HoldsStates<P>
  {
    if (length == 0) {
      (void)layers_.state_place(layer);
      require(contains(seq), "seq", seq, "an open sequence");
      return {};
    }
    const Index offset = state_offset(layer, seq, length);
    return {reinterpret_cast<const std::byte*>(data() + offset), state_bytes(layer)};
  }
  /// The state of a recurrent layer in these blocks, which are those of its kind: see HoldsStates and CachedPrefix.
  /// Throws std::invalid_argument for another layer, and for fewer blocks. O(1).
  [[nodiscard]] std::span<const std::byte> state(Index layer, std::span<const BlockId> blocks) const
    requires(HoldsStates<P> && S::host_accessible)
  {
    const Index offset = layouts_.state(layers_.state_place(layer), blocks);
    return {reinterpret_cast<const std::byte*>(data() + offset), state_bytes(layer)};
  }
  /// The same after the committed tokens: what the next pass begins from.
  [[nodiscard]] std::span<const std::byte> state(Index layer, SeqId seq) const
    requires HoldsStates<P>
  {
    return state(layer, seq, length(seq));
  }

  /// Reserves the rows of an empty sequence that was computed elsewhere, without room for what its groups have dropped;
  /// empty if there is no room. RestoresSequences says which rows are to be written, through `data()` or by `write`,
  /// which takes those of all positions and drops the others. Throws std::invalid_argument if the sequence is not
  /// empty, or for impossible options.
  [[nodiscard]] std::optional<Append> try_restore(SeqId seq, const RestoreOptions& options)
    requires RestoresSequences<P>
  {
    const std::optional<Extension> extension = policy_.try_restore(seq, options);
    return extension ? std::optional<Append>(Append(&policy_, seq, extension->range, true)) : std::nullopt;
  }

  /// Stores the rows of one layer for the positions of an append.
  ///   k  [append.size(), kv_heads * key_dim]     v  [append.size(), kv_heads * value_dim]
  /// A cross-attention layer takes the rows of the other input, all of them with the first append of a sequence
  /// (`rows_to_write` counts them), and none later. Throws std::invalid_argument for other extents, for a layer that is
  /// not there or reads the rows of another one, and for an append that is not an uncommitted one of this cache.
  void write(Index layer, const Append& append, MatrixArg<float> k, MatrixArg<float> v)
    requires S::host_accessible
  {
    write_rows(layer, append, k.ref(), v.ref());
  }
  /// Stores the rows of a latent layer:  rows  [append.size(), kv_heads * key_dim]. Throws as above, and for a layer
  /// that is not latent.
  void write(Index layer, const Append& append, MatrixArg<float> rows)
    requires S::host_accessible
  {
    write_rows(layer, append, rows.ref(), MatrixRef<const float>());
  }
  /// The same for rows of T, which are stored as they are.
  void write(Index layer, const Append& append, MatrixArg<T> k, MatrixArg<T> v)
    requires(S::host_accessible && std::same_as<T, Storage> && !std::same_as<T, float>)
  {
    write_rows(layer, append, k.ref(), v.ref());
  }

  /// How many rows `write` takes of a layer: append.size(); of a cross-attention layer all rows of the other input if
  /// this is the first append of the sequence, else 0; of a layer with compressed rows those whose last token the
  /// append has; 0 of a layer that reads the rows of another one.
  [[nodiscard]] Pos rows_to_write(Index layer, const Append& append) const {
    require_own(append);
    const LayerPlace place = layers_.place(layer);
    return place.is_owner ? group_rows(append, place.group).size() : 0;
  }

  /// Makes the positions of an append part of their sequence: call it when all layers are written. (KVC_ASSERT checks
  /// that `write` was called for each, or for none: rows may also be written through `data()`.)
  /// Throws std::invalid_argument if the append is not an uncommitted one of this cache.
  void commit(Append&& append) {
    require_own(append);
    KVC_ASSERT(append.writes_ == 0 || append.size() == 0 || append.writes_ >= layers_to_write(append));
    policy_.commit(append.seq_);
    append.policy_ = nullptr;
    append.range_ = {};
  }
  /// Whether an append is one of this cache, and still to be committed or rolled back.
  [[nodiscard]] bool owns(const Append& append) const noexcept {
    return append.policy_ == &policy_ && contains(append.seq_);
  }

  /// A new sequence that begins with the first `at` positions of another, or with all committed ones. Without room
  /// try_fork gives an empty optional and fork throws CapacityError. Throws std::invalid_argument unless 0 <= at <=
  /// length(parent).
  template <std::integral I>
  [[nodiscard]] std::optional<SeqId> try_fork(SeqId parent, I at) {
    const std::optional<Forked> forked = policy_.try_fork(parent, detail::checked_position(at, length(parent), "at"));
    if (!forked) {
      return std::nullopt;
    }
    detail::ScopeGuard undo([&] { policy_.close(forked->seq); });
    copy_rows(forked->copies);
    undo.dismiss();
    return forked->seq;
  }
  /// As try_fork. Throws CapacityError if there is no room.
  template <std::integral I>
  [[nodiscard]] SeqId fork(SeqId parent, I at) {
    const std::optional<SeqId> seq = try_fork(parent, at);
    if (!seq) {
      detail::throw_no_room(policy_, "fork", static_cast<Index>(at),
                            [&](const auto& p) { return p.why_not_fork(parent, static_cast<Pos>(at)); });
    }
    return *seq;
  }
  /// The same, with all committed positions.
  [[nodiscard]] SeqId fork(SeqId parent) { return fork(parent, length(parent)); }

  /// Forgets the positions from `length` on, such as the rejected tokens of speculative decoding.
  /// Throws std::invalid_argument unless 0 <= length <= this->length(seq), if the sequence has an uncommitted
  /// extension, or if a layer group has dropped a row that the next one sees.
  template <std::integral I>
  void truncate(SeqId seq, I length) {
    policy_.truncate(seq, detail::checked_position(length, this->length(seq), "length"));
  }
  /// Forgets the sequence. It takes back an uncommitted append of the sequence. Throws std::invalid_argument if the
  /// sequence is not open.
  void close(SeqId seq) { policy_.close(seq); }

  /// Whether the sequence is open. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept { return policy_.contains(seq); }
  /// Committed positions. Throws std::invalid_argument if the sequence is not open. O(1).
  [[nodiscard]] Pos length(SeqId seq) const { return policy_.length(seq); }

  /// All open sequences, if the policy can name them.
  [[nodiscard]] std::vector<SeqId> sequences() const
    requires ListsSequences<P>
  {
    std::vector<SeqId> all;
    policy_.for_each_sequence([&](SeqId seq) { all.push_back(seq); });
    return all;
  }

  /// The keys and values of one sequence in one layer, for attention. Throws std::invalid_argument if there is no such
  /// layer, it has a recurrent state or compressed rows, or the sequence is not open. O(1).
  [[nodiscard]] View view(Index layer, SeqId seq) const
    requires S::host_accessible
  {
    const LayerPlace place = layers_.place(layer);
    require(contains(seq), "seq", seq, "an open sequence");
    require(tokens_per_row(place.group) == 1, "layer", layer,
            "one with a row for each token: for compressed rows call compressed_view");
    return View(policy_, layouts_[place.group], shape(place.group), data(), place.group, place.layer, seq);
  }

  /// The compressed rows of a layer that end within the first `tokens` positions: those that a query row at position
  /// tokens - 1 sees. Throws std::invalid_argument for a layer without such rows, and for positions that are not there.
  [[nodiscard]] CompressedView<View> compressed_view(Index layer, SeqId seq, Pos tokens) const
    requires S::host_accessible
  {
    const LayerPlace place = layers_.place(layer);
    require(contains(seq), "seq", seq, "an open sequence");
    require(tokens_per_row(place.group) > 1, "layer", layer, "one with compressed rows: for others call view");
    return {View(policy_, layouts_[place.group], shape(place.group), data(), place.group, place.layer, seq),
            tokens_per_row(place.group), tokens};
  }
  /// The same for each position of a range, such as append.range(): decode takes them as a batch. O(positions).
  [[nodiscard]] std::vector<CompressedView<View>> compressed_views(Index layer, SeqId seq, PosRange range) const
    requires S::host_accessible
  {
    require(0 <= range.first && range.first <= range.last, "range", range, "within the positions of the sequence");
    (void)compressed_view(layer, seq, range.last);  // throws before there is a list of views
    std::vector<CompressedView<View>> views;
    views.reserve(static_cast<std::size_t>(range.size()));
    for (Pos position = range.first; position < range.last; ++position) {
      views.push_back(compressed_view(layer, seq, position + 1));
    }
    return views;
  }

  /// The CPU cannot read what lies elsewhere: `view`, `write` and `gather` of such a cache say where its own are.
  template <class Where = S>
    requires(!Where::host_accessible)
  [[nodiscard]] View view(Index, SeqId) const {
    static_assert(
        Where::host_accessible,
        "kvc: the CPU cannot read this cache's memory. For a cache in device memory, include kvc/cuda/view.cuh "
        "and call kvc::cuda::view(cache, layer), or bring rows to the host with kvc/cuda/rows.cuh.");
  }
  /// The same.
  template <class Where = S, class... Args>
    requires(!Where::host_accessible)
  void write(Index, const Append&, const Args&...) {
    static_assert(Where::host_accessible,
                  "kvc: the CPU cannot write to this cache's memory. For a cache in device memory, include "
                  "kvc/cuda/append.cuh and call kvc::cuda::write.");
  }
  /// The same.
  template <class Where = S, class... Args>
    requires(!Where::host_accessible)
  void gather(Index, SeqId, PosRange, const Args&...) const {
    static_assert(Where::host_accessible,
                  "kvc: the CPU cannot read this cache's memory. For a cache in device memory, include "
                  "kvc/cuda/rows.cuh and call kvc::cuda::gather.");
  }

  /// Reads rows back as float, in the shapes of `write`: k [range.size(), kv_heads * key_dim], v likewise.
  /// Throws std::invalid_argument for other extents, and if the layer does not retain a position of the range; k and v
  /// may be partly written then.
  void gather(Index layer, SeqId seq, PosRange range, MatrixRef<float> k, MatrixRef<float> v) const
    requires S::host_accessible
  {
    require(0 <= range.first && range.first <= range.last, "range", range, "within the positions of the sequence");
    const View rows = view(layer, seq);
    const Shape& shape = this->shape(layers_.place(layer).group);
    require_extents(k, range.size(), shape.kv_heads * shape.key_dim, "k");
    require_extents(v, range.size(), shape.kv_heads * shape.value_dim, "v");
    for (Index head = 0; head < shape.kv_heads; ++head) {
      Pos next = range.first;
      rows.for_each_run(head, range, [&](const KvRun<T>& run) {
        next += run.first == next ? static_cast<Pos>(run.rows) : 0;
        for (Index i = 0; i < run.rows; ++i) {
          const Index row = run.first - range.first + i;
          detail::decode_key(run, i, shape.key_dim, k.row(row) + head * shape.key_dim);
          detail::decode_value(run, i, shape.key_dim, shape.value_dim, v.row(row) + head * shape.value_dim);
        }
      });
      require(next == range.last, "range", range, "retained by the layer's group: see retained_from");
    }
  }

  /// The listener of the policy's events: to set a callback, or to poll. Of a policy with a lock: `with_events(f)`.
  [[nodiscard]] auto& events() noexcept
    requires(EmitsEvents<P> && !LocksItself<P>)
  {
    return policy_.events();
  }

  /// The counters of the policy.
  [[nodiscard]] Stats stats() const { return policy_.stats(); }
  /// Checks the invariants of the bookkeeping. Slow. Throws InvariantError.
  void verify() const { policy_.verify(); }

 private:
  friend class detail::Forwarded<KvCache, P>;
  template <class F>
  decltype(auto) access(F&& f) {
    return std::forward<F>(f)(policy_);
  }
  template <class F>
  decltype(auto) access(F&& f) const {
    return std::forward<F>(f)(policy_);
  }

  [[nodiscard]] Index state_offset(Index layer, SeqId seq, Pos length) const {
    const StatePlace place = layers_.state_place(layer);
    return layouts_.state(place, policy_.state_blocks(seq, place.kind, length));
  }
  [[nodiscard]] std::size_t state_bytes(Index layer) const {
    return static_cast<std::size_t>(layers_.states()[static_cast<std::size_t>(layers_.state_place(layer).kind)].bytes);
  }

  std::optional<Append> try_extend(SeqId seq, Pos count, std::span<const Token> tokens,
                                   std::span<const Pos> states_at = {}) {
    const std::optional<Extension> extension = [&] {
      if constexpr (HoldsStates<P>) {
        return states_at.empty() ? policy_.try_extend(seq, count, tokens)
                                 : policy_.try_extend(seq, count, tokens, states_at);
      } else {
        return policy_.try_extend(seq, count, tokens);
      }
    }();
    if (!extension) {
      return std::nullopt;
    }
    Append append(&policy_, seq, extension->range);
    copy_rows(extension->copies);
    return append;
  }

  Append extend(SeqId seq, Pos count, std::span<const Token> tokens, std::span<const Pos> states_at = {}) {
    std::optional<Append> append = try_extend(seq, count, tokens, states_at);
    if (!append) {
      detail::throw_no_room(policy_, "extend", count, [&](const auto& p) { return p.why_not_extend(seq, count); });
    }
    return std::move(*append);
  }

  template <class From>
  void write_rows(Index layer, const Append& append, MatrixRef<const From> k, MatrixRef<const From> v) {
    const LayerPlace place = layers_.place(layer);
    require(place.is_owner, "layer", layer, "one that stores rows: this one reads those of another layer");
    require_own(append);
    const Shape& shape = this->shape(place.group);
    const GroupLayout<L>& layout = layouts_[place.group];
    const PosRange rows = group_rows(append, place.group);
    const Pos tokens = tokens_per_row(place.group);  // each row has the slots of so many
    const Index key_dim = shape.key_dim * tokens, value_dim = shape.value_dim * tokens;
    require_extents(k, rows.size(), shape.kv_heads * key_dim, layout.latent() ? "rows" : "k");
    if (layout.latent()) {
      require(v.rows() == 0 && v.cols() == 0, "layer", layer,
              "one that stores values, to write any: write(layer, append, rows)");
    } else {
      require_extents(v, rows.size(), shape.kv_heads * value_dim, "v");
    }
    ++append.writes_;
    const PosRange range{rows.first * tokens, rows.last * tokens};
    const auto write_run = [&](const SlotRun& run) {
      const Index first = (run.first - range.first) / tokens;
      for (Index head = 0; head < shape.kv_heads; ++head) {
        Storage* key = data() + layout.k(run.block, place.layer, head, run.offset);
        Storage* value = data() + layout.v(run.block, place.layer, head, run.offset);
        ScalePlace scales;
        if constexpr (has_scale_planes) {
          scales = {data() + layout.k_scales(run.block, place.layer, head, run.offset),
                    data() + layout.v_scales(run.block, place.layer, head, run.offset)};
        }
        for (Index row = first; row < first + run.count / tokens; ++row) {
          store(k.row(row) + head * key_dim, key_dim, key, scales.key);
          if (!layout.latent()) {
            store(v.row(row) + head * value_dim, value_dim, value, scales.value);
          }
          key += layout.k_stride() * tokens;
          value += layout.v_stride() * tokens;
          if constexpr (has_scale_planes) {
            scales.key += layout.k_scale_stride();
            scales.value += layout.v_scale_stride();
          }
        }
      }
    };
    if constexpr (HoldsGroups<P>) {
      if (append.is_restored_) {  // also rows that no query sees, and a prompt may find
        detail::for_each_stored_run(policy_, append.seq_, place.group, range, write_run);
      } else {
        policy_.for_each_run(append.seq_, place.group, range, write_run);
      }
    } else {
      policy_.for_each_run(append.seq_, range, write_run);
    }
  }

  /// The positions of a group that an append reserves.
  [[nodiscard]] PosRange group_range(const Append& append, Index group) const {
    if constexpr (HoldsGroups<P>) {
      return layers_.groups().size() == 1 ? append.range_ : policy_.extension(append.seq_, group);
    } else {
      return append.range_;
    }
  }
  /// The rows of a group that an append has to write, numbered as in `view`, or as compressed rows.
  [[nodiscard]] PosRange group_rows(const Append& append, Index group) const {
    const PosRange range = group_range(append, group);
    const Pos tokens = tokens_per_row(group);
    return {range.first / tokens, range.last / tokens};
  }
  /// Tokens that a row of a group stands for.
  [[nodiscard]] Pos tokens_per_row(Index group) const noexcept {
    return layers_.groups()[static_cast<std::size_t>(group)].tokens_per_row;
  }
  /// Layers that store rows of an append.
  [[nodiscard]] Index layers_to_write(const Append& append) const {
    Index layers = 0;
    for (std::size_t g = 0; g < layers_.groups().size(); ++g) {
      layers += group_rows(append, static_cast<Index>(g)).empty() ? 0 : layers_.groups()[g].shape.layers;
    }
    return layers;
  }

  /// Where the scales of a row lie, if in planes of their own.
  static constexpr bool has_scale_planes = ScaledElement<T> && GroupLayout<L>::has_scale_planes;
  struct ScalePlace {
    Storage* key = nullptr;
    Storage* value = nullptr;
  };
  template <class From>
  static void store(const From* from, Index dim, Storage* to, [[maybe_unused]] Storage* scales) {
    if constexpr (has_scale_planes) {
      kvc::Element<T>::encode_parts(from, dim, to, scales);
    } else if constexpr (std::same_as<From, float>) {
      kvc::Element<T>::encode(from, dim, to);
    } else {
      std::copy_n(from, dim, to);
    }
  }

  void copy_rows(std::span<const RowCopy> copies) {
    kvc::layout::copy_rows(pool_.space(), pool_.data(), layouts_.groups(), static_cast<Index>(sizeof(Storage)), copies);
  }

  void require_own(const Append& append) const {
    require(owns(append), "append", "committed, rolled back, of another cache or of a closed sequence",
            "an uncommitted one of this cache");
  }

  LayerGroups layers_;
  P policy_;
  PoolLayout<T, L> layouts_;
  Buffer<S> pool_;
};

}  // namespace v0
}  // namespace kvc
