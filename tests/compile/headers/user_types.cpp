// A user's namespace may have functions of any name that take anything. Calls within kvc must not find them by their
// arguments: here such a call is ambiguous or deleted, and does not compile.
#include <array>
#include <concepts>
#include <span>
#include <utility>
#include <vector>

#include "kvc/kvc.hpp"

namespace user {

#define KVC_TAKES_ALL(name)     \
  template <class A>            \
  void name(A&&) = delete;      \
  template <class A, class B>   \
  void name(A&&, B&&) = delete; \
  template <class... A>         \
  void name(A&&...) = delete
#define KVC_TAKE_ALL(a, b, c, d) \
  KVC_TAKES_ALL(a);              \
  KVC_TAKES_ALL(b);              \
  KVC_TAKES_ALL(c);              \
  KVC_TAKES_ALL(d)
// Of the standard library.
KVC_TAKE_ALL(advance, all_of, any_of, as_const);
KVC_TAKE_ALL(clamp, copy, copy_n, count);
KVC_TAKE_ALL(count_if, distance, equal, erase);
KVC_TAKE_ALL(erase_if, exchange, fill, fill_n);
KVC_TAKE_ALL(find, find_if, for_each, forward);
KVC_TAKE_ALL(get, get_if, invoke, iota);
KVC_TAKE_ALL(lower_bound, max, min, move);
KVC_TAKE_ALL(next, prev, sort, to_string);
KVC_TAKE_ALL(transform, upper_bound, visit, unique);
// Of kvc, and such as a user would choose.
KVC_TAKE_ALL(add_blocks, admission_of, append, attend);
KVC_TAKE_ALL(attention_dims, block_tokens, block_value, bytes_of);
KVC_TAKE_ALL(can_ever_hold, ceil_div, check, close);
KVC_TAKE_ALL(commit, concat, concurrency, copy_ranges);
KVC_TAKE_ALL(copy_rows, count_references, decode, describe);
KVC_TAKE_ALL(extend, extension, find_hit, fingerprint);
KVC_TAKE_ALL(first_retained, fold, for_each_block_run, for_each_row_span);
KVC_TAKE_ALL(for_each_run, for_each_slot, for_each_split, for_each_stored_run);
KVC_TAKE_ALL(index_of, last_rows, layer_tensor, length_to_admit);
KVC_TAKE_ALL(linear, load, make_batch, make_policy);
KVC_TAKE_ALL(make_tables, make_work_items, map, merge);
KVC_TAKE_ALL(open, parallel_for, pin, place_of);
KVC_TAKE_ALL(positions, prefetch, prefill, read);
KVC_TAKE_ALL(reference, release, require, require_between);
KVC_TAKE_ALL(require_extents, require_retained, require_valid, reserve);
KVC_TAKE_ALL(reset, restore_tables, row_order, rows_at);
KVC_TAKE_ALL(rows_of, run, save, score_parts);
KVC_TAKE_ALL(send, store, take, throw_error);
KVC_TAKE_ALL(throw_no_room, to_index, to_name, total_bytes);
KVC_TAKE_ALL(truncate, try_extend, unroll, verify);
KVC_TAKE_ALL(view, wait, wait_for, with_lock);
KVC_TAKE_ALL(with_shared_lock, write, writer, zip);
#undef KVC_TAKE_ALL
#undef KVC_TAKES_ALL

struct Pages : kvc::Paged {
  using kvc::Paged::Paged;
};
struct Order : kvc::HeadMajor {
  using kvc::HeadMajor::HeadMajor;
};
struct Recent : kvc::Lru {
  using kvc::Lru::Lru;
};
struct Memory : kvc::HostSpace {};
struct InTurn : kvc::Sequential {};

template <class Policy>
int use() {
  using Cache = kvc::KvCache<float, Policy, Order, Memory>;
  Cache cache({.layers = 1, .kv_heads = 1, .key_dim = 4}, {.blocks = 4, .block_tokens = 4});
  const std::array<kvc::Token, 3> tokens{1, 2, 3};
  const std::array<float, 12> rows{};
  std::array<float, 12> out{};
  kvc::SeqId seq;
  if constexpr (kvc::MatchesPrefixes<Policy>) {
    seq = cache.open(tokens).seq;
  } else {
    seq = cache.open();
  }
  auto step = cache.extend(seq, tokens);
  cache.write(0, step, {rows.data(), 3, 4}, {rows.data(), 3, 4});
  cache.commit(std::move(step));
  if constexpr (std::same_as<Policy, Pages>) {  // the kernels know no policy
    const std::vector<typename Cache::View> views{cache.view(0, seq)};
    const InTurn executor;
    kvc::decode(views, kvc::MatrixRef<const float>{rows.data(), 1, 4}, kvc::MatrixRef<float>{out.data(), 1, 4}, {},
                executor);
    kvc::prefill(views[0], {0, 3}, kvc::MatrixRef<const float>{rows.data(), 3, 4},
                 kvc::MatrixRef<float>{out.data(), 3, 4}, {}, executor);
  }
  cache.close(cache.fork(seq, 2));
  cache.truncate(seq, 1);
  const kvc::Pos queries = 1;
  (void)kvc::make_batch(cache.policy(), std::span(&seq, 1), std::span(&queries, 1));
  cache.verify();
  cache.close(seq);
  if constexpr (kvc::ClearsCache<Policy>) {
    cache.clear();
  }
  return cache.stats().sequences == 0 ? 0 : 1;
}

}  // namespace user

int use_user_types() {
  return user::use<user::Pages>() + user::use<kvc::PrefixShared<user::Recent>>() +
         user::use<kvc::Synchronized<user::Pages>>();
}
