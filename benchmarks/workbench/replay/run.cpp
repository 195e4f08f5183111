#include "run.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <span>
#include <stdexcept>
#include <tuple>

#include "evictions.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "progress.hpp"

namespace replay {
namespace {

using kvc_bench::Request;
using kvc_bench::Trace;

template <class F>
double seconds_of(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The same hashes in every run, so that policies that use them (tiny-lfu) give the same counts.
struct RepeatableHash : kvc::ChainHash {
  RepeatableHash() : ChainHash(1) {}
};

/// Computes the blocks of a prompt from `cached` on, in passes. A later prompt may go on behind its `whole` first
/// blocks: the last one may be partly filled. False if a pass finds no room.
template <class Policy>
bool compute(Policy& policy, kvc::SeqId seq, std::span<const kvc::Token> prompt, std::size_t cached, std::size_t count,
             std::size_t whole, const HeldModel& model) {
  for (std::size_t at = cached; at < count;) {
    const std::size_t size = std::min(model.pass_blocks(), count - at);
    std::vector<Pos> states;
    if (model.has_states() && at < whole && whole <= at + size && whole < count) {
      states.push_back(static_cast<Pos>(whole));
    }
    if (!policy.try_extend(seq, static_cast<Pos>(size), prompt.subspan(at, size), states)) {
      return false;
    }
    policy.commit(seq);
    at += size;
  }
  return true;
}

/// A block number stands for a whole prefix, so the library sees it as a token, and its blocks hold one token. The
/// policy works as with real tokens, except that a block has only one to hash and compare.
template <class Eviction>
Result replay(const Configured<Eviction>& configured, const Trace& trace, Index capacity, const HeldModel* model,
              kvc_bench::Progress& progress) {
  Result result;
  result.pool_blocks = model == nullptr ? capacity : model->pool_blocks(capacity);
  kvc::PrefixShared<Eviction, RepeatableHash> policy(
      {.blocks = result.pool_blocks, .block_tokens = 1, .eviction = configured.config},
      model == nullptr ? kvc::GroupRules{} : model->rules());
  std::vector<kvc::Token> prompt;
  const auto replay_one = [&](const Request& request) {
    const std::size_t count = request.blocks.size();
    prompt.assign(request.blocks.begin(), request.blocks.end());
    prompt.push_back(-1);  // the token that a match must leave; it is not computed
    const kvc::Opened opened = policy.try_open(prompt).value();
    const auto cached = static_cast<std::size_t>(opened.cached);
    if (!policy.group_rules().is_plain()) {
      const auto whole = static_cast<std::size_t>(request.input_tokens / trace.block_tokens);
      result.refused += compute(policy, opened.seq, prompt, cached, count, whole, *model) ? 0 : 1;
      policy.close(opened.seq);
      result.hits.blocks += opened.cached;
      result.hits.tokens += request.tokens_in_first(cached, trace.block_tokens);
      return;
    }
    std::span<const kvc::Token> rest = std::span<const kvc::Token>(prompt).subspan(cached, count - cached);
    if (!policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest)) {
      ++result.refused;
      rest = rest.first(static_cast<std::size_t>(capacity) - cached);  // no other request references a block
      policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest).value();
    }
    policy.commit(opened.seq);
    policy.close(opened.seq);
    result.hits.blocks += opened.cached;
    result.hits.tokens += request.tokens_in_first(cached, trace.block_tokens);
  };

  result.seconds = seconds_of([&] {
    for (std::size_t i = 0; i < trace.requests.size(); ++i) {
      replay_one(trace.requests[i]);
      if (i % 64 == 0) {
        progress.show(static_cast<double>(i) / static_cast<double>(trace.requests.size()));
      }
    }
  });
  result.eviction = configured.name;
  result.capacity = capacity;
  result.hits.evictions = policy.stats().evictions;
  return result;
}

/// Through the policy of this name.
Result replay(std::string_view name, const Trace& trace, Index capacity, const HeldModel* model,
              kvc_bench::Progress& progress) {
  Result result;
  std::apply(
      [&](const auto&... each) {
        (void)((each.name == name && (result = replay(each, trace, capacity, model, progress), true)) || ...);
      },
      replayed);
  return result;
}

template <class F>
Result reference(std::string_view name, Index capacity, F&& count) {
  Result result;
  result.eviction = name;
  result.accounting = Accounting::flat;
  result.capacity = capacity;
  result.pool_blocks = capacity;
  result.seconds = seconds_of([&] { result.hits = count(); });
  return result;
}

/// Fills in the shares of the gap of the results of one capacity. Unbounded has another capacity.
void compare(std::span<Result> results) {
  const auto hits = [&](std::string_view name) {
    return std::ranges::find(results, name, &Result::eviction)->hits.blocks;
  };
  const Index lru = hits("lru");
  const auto share_of = [&](const Result& result, std::string_view best) -> std::optional<double> {
    const Index gap = hits(best) - lru;
    if (gap == 0 || result.eviction == "unbounded") {
      return std::nullopt;
    }
    return static_cast<double>(result.hits.blocks - lru) / static_cast<double>(gap);
  };
  for (Result& result : results) {
    result.gap_recovered = share_of(result, "belady");
    result.held_gap_recovered = share_of(result, "belady-held");
  }
}

}  // namespace

Replay replay_all(const Trace& trace, const std::vector<Index>& capacities, const std::vector<std::string>& evictions,
                  const std::optional<HeldModel>& model) {
  kvc_bench::Progress progress(capacities.size() * (evictions.size() + (model ? 1 : bound_names.size())));
  const Accesses accesses = accesses_of(trace);
  Replay all;
  all.blocks = static_cast<Index>(accesses.size());
  all.unique_blocks = accesses.unique;
  all.model = model ? model->name() : "";
  for (const Index capacity : capacities) {
    const auto step = [&](std::string_view name) {
      progress.step(std::string(name).append(" at ").append(std::to_string(capacity)).append(" blocks"));
    };
    const std::size_t begin = all.results.size();
    if (model && model->pool_blocks(capacity) == 0) {
      throw std::runtime_error("--capacity " + std::to_string(capacity) + " has no room for one block of " +
                               model->name());
    }
    if (!model) {
      step("fifo");
      all.results.push_back(reference("fifo", capacity, [&] { return fifo(accesses, capacity); }));
    }
    for (const std::string& eviction : evictions) {
      step(eviction);
      all.results.push_back(replay(eviction, trace, capacity, model ? &*model : nullptr, progress));
    }
    if (!model) {
      step("belady");
      all.results.push_back(reference("belady", capacity, [&] { return belady(accesses, capacity); }));
      step("belady-held");
      Result held = reference("belady-held", capacity, [&] { return belady_held(accesses, capacity); });
      held.accounting = Accounting::chain;
      held.refused = std::ranges::count_if(
          trace.requests, [&](const Request& request) { return std::ssize(request.blocks) > capacity; });
      all.results.push_back(held);
    }
    step("unbounded");
    all.results.push_back(reference("unbounded", capacity, [&] { return unbounded(accesses); }));
    if (!model) {
      compare(std::span(all.results).subspan(begin));
    }
  }
  return all;
}

}  // namespace replay
