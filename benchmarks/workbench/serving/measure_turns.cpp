#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "tier_curve.hpp"

#if defined(KVC_HAVE_SODIUM)
#include "kvc/cache.hpp"
#include "kvc/tier/tiers.hpp"
#include "real_policies.hpp"
#include "real_run.hpp"
#include "real_stores.hpp"
#endif

namespace serving {

#if defined(KVC_HAVE_SODIUM)
extern template kvc::llama::Matrix compute_rows(const RealMachine&, kvc::KvCache<float, RealPrefixShared>&,
                                                const kvc::KvCache<float, RealPrefixShared>::Append&,
                                                std::span<const Token>);

namespace {

using TurnCache = kvc::KvCache<float, RealPrefixShared>;
using TurnTiers = kvc::tier::Tiers<TurnCache>;
using TurnClock = std::chrono::steady_clock;

double seconds_since(TurnClock::time_point begin) {
  return std::chrono::duration<double>(TurnClock::now() - begin).count();
}

double median_seconds(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

/// Host memory whose reads take a latency, and their bytes by a bandwidth, one after another.
class SlowStore {
 public:
  static constexpr bool persistent = false;
  SlowStore(double latency, double bandwidth, const kvc::tier::HostStore<>::Config& config)
      : latency_(latency), bandwidth_(bandwidth), store_(config) {}

  auto lookup(std::span<const kvc::tier::BlockKey> keys, std::span<std::uint8_t> found) {
    return store_.lookup(keys, found);
  }
  auto read(const kvc::tier::RecordInfo& block, std::span<const kvc::io::ByteSpan> to,
            kvc::tier::PartRange parts = {}) {
    const auto in = [](double seconds) {
      return std::chrono::duration_cast<TurnClock::duration>(std::chrono::duration<double>(seconds));
    };
    free_ = std::max(free_, TurnClock::now() + in(latency_)) +
            in(static_cast<double>(kvc::io::total_bytes(to)) / bandwidth_);
    due_.push_back(free_);
    return store_.read(block, to, parts);
  }
  auto write(const kvc::tier::RecordInfo& block, std::span<const kvc::io::ConstByteSpan> from) {
    return store_.write(block, from);
  }
  auto erase(const kvc::tier::BlockKey& key) { return store_.erase(key); }
  std::optional<kvc::tier::Completion> poll() {
    while (const std::optional<kvc::tier::Completion> ended = store_.poll()) {
      if (ended->operation != kvc::tier::StoreOperation::read) {
        return ended;
      }
      ended_.push_back(*ended);
    }
    if (ended_.empty() || due_.front() > TurnClock::now()) {
      return std::nullopt;
    }
    const kvc::tier::Completion first = ended_.front();
    ended_.pop_front();
    due_.pop_front();
    return first;
  }
  bool cancel(kvc::tier::Ticket) { return false; }
  bool wait(kvc::tier::TimePoint) { return under_way() > 0; }  // polls: waits are short here
  [[nodiscard]] std::size_t under_way() const { return store_.under_way() + ended_.size(); }
  [[nodiscard]] std::uint64_t capacity() const { return store_.capacity(); }
  [[nodiscard]] kvc::tier::StoreStats stats() const { return store_.stats(); }

 private:
  double latency_, bandwidth_;
  kvc::tier::HostStore<> store_;
  TurnClock::time_point free_{};
  std::deque<TurnClock::time_point> due_;  // of reads that were not polled
  std::deque<kvc::tier::Completion> ended_;
};
static_assert(kvc::tier::BlockStore<SlowStore>);

constexpr Pos turn_block = 16;
constexpr Pos turn_more = 20;
constexpr auto turn_timeout = std::chrono::seconds(60);

/// A process: an empty cache over `store`, if there is one.
template <class Store>
struct TurnProcess {
  TurnProcess(const RealMachine& m, Pos longest, Store* store)
      : machine(m),
        cache(m.model->config.cache_shape(), {.blocks = longest / turn_block + 4, .block_tokens = turn_block}) {
    if (store != nullptr) {
      tiers.emplace(cache, kvc::tier::TiersConfig{.model = "tier-curve", .load = LoadRule::always, .reads = 1024},
                    *store);
    }
  }
  /// Serves a prompt, and returns the seconds until the logits of its first token.
  double serve(const std::vector<Token>& prompt) {
    const TurnClock::time_point begin = TurnClock::now();
    if (tiers) {
      (void)tiers->wait(tiers->prefetch(prompt).load, begin + turn_timeout);
    }
    const kvc::Opened opened = cache.open(prompt);
    const std::span<const Token> rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached));
    found = opened.cached;
    TurnCache::Append append = cache.extend(opened.seq, rest);
    (void)compute_rows(machine, cache, append, rest);
    const double seconds = seconds_since(begin);
    cache.commit(std::move(append));
    cache.close(opened.seq);
    return seconds;
  }
  const RealMachine& machine;
  TurnCache cache;
  std::optional<TurnTiers> tiers;
  Pos found = 0;  ///< by the last prompt
};

/// One store, which may be opened anew for each process.
struct MeasuredStore {
  std::string name;
  std::function<double(const std::vector<Token>& first, const std::vector<Token>& then)> seconds;
};

/// The second turn in a process of its own, after one that computed the first.
template <class Store>
double second_turn(const RealMachine& machine, Pos longest, const std::function<std::shared_ptr<Store>()>& open,
                   const std::vector<Token>& first, const std::vector<Token>& then) {
  {
    const std::shared_ptr<Store> store = open();
    TurnProcess<Store> before(machine, longest, store.get());
    (void)before.serve(first);
    if (!before.tiers->flush(TurnClock::now() + turn_timeout)) {
      throw std::runtime_error("--tier-curve: the first turn could not be written");
    }
  }
  const std::shared_ptr<Store> store = open();
  TurnProcess<Store> after(machine, longest, store.get());
  const double seconds = after.serve(then);
  if (after.found < static_cast<Pos>(first.size())) {
    throw std::runtime_error("--tier-curve: the first turn was not found");
  }
  return seconds;
}

}  // namespace

TurnTimes measure_turns(const RealMachine& given, int rounds) {
  TurnTimes times;
  times.lengths = {16, 32, 64, 128, 256, 512, 1024, 2000, 4000};
  times.more = turn_more;
  const Pos longest = times.lengths.back() + turn_more;
  kvc::llama::Model model = *given.model;
  model.config.seq_len = longest + 1;
  model.rope = kvc::llama::RopeTable(model.config.seq_len, model.config.head_dim(),
                                     static_cast<double>(model.config.rope_theta));
  const RealMachine machine{&model, given.threads, given.clock};
  const auto& c = model.config;
  times.token_bytes = static_cast<double>(2 * c.layers * c.kv_heads * c.head_dim()) * sizeof(float);

  kvc::tier::HostStore<>::Config room;
  room.bytes = std::uint64_t{64} << 20;
  const ScratchFolder folder;
  const auto measured = [&]<class Store>(std::string name, std::function<std::shared_ptr<Store>()> open) {
    return MeasuredStore{std::move(name),
                         [&machine, longest, open = std::move(open)](const auto& first, const auto& then) {
                           return second_turn<Store>(machine, longest, open, first, then);
                         }};
  };
  // Memory outlives the cache, but not the process: the next one finds it as another engine would.
  const auto kept = [](auto store) { return [store] { return store; }; };
  std::vector<MeasuredStore> all;
  all.push_back(measured(std::string("host memory"), std::function<std::shared_ptr<kvc::tier::HostStore<>>()>(
                                                         kept(std::make_shared<kvc::tier::HostStore<>>(room)))));
  all.push_back(measured(std::string("files, reopened"), std::function<std::shared_ptr<kvc::tier::FileStore>()>([&] {
                           kvc::tier::FileStore::Config config;
                           config.folder = folder.path();
                           return std::make_shared<kvc::tier::FileStore>(config);
                         })));
  for (const auto& [latency, bandwidth] : {std::pair(2e-3, 4e8), std::pair(1e-2, 1e8)}) {
    all.push_back(measured(
        std::to_string(std::lround(bandwidth / 1e6)) + " MB/s, " + std::to_string(std::lround(latency * 1e3)) + " ms",
        std::function<std::shared_ptr<SlowStore>()>(kept(std::make_shared<SlowStore>(latency, bandwidth, room)))));
  }

  std::vector<std::vector<std::vector<double>>> samples(all.size() + 1);  // [tiers + 1, lengths, rounds]
  for (auto& one : samples) {
    one.resize(times.lengths.size());
  }
  const auto tokens = [&](Pos count, int round) {
    std::vector<Token> made;
    made.reserve(static_cast<std::size_t>(count));
    for (Pos i = 0; i < count; ++i) {
      made.push_back(
          synthetic_token(scramble(static_cast<std::uint64_t>(round) << 32 | static_cast<std::uint64_t>(count)), i,
                          static_cast<Token>(c.vocab_size)));
    }
    return made;
  };
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < times.lengths.size(); ++i) {
      const std::vector<Token> first = tokens(times.lengths[i], round);
      std::vector<Token> then = first;
      then.resize(first.size() + turn_more, Token{1});
      TurnProcess<SlowStore> alone(machine, longest, nullptr);
      samples[0][i].push_back(alone.serve(then));
      for (std::size_t t = 0; t < all.size(); ++t) {
        samples[t + 1][i].push_back(all[t].seconds(first, then));
      }
    }
  }
  for (std::size_t i = 0; i < times.lengths.size(); ++i) {
    times.computed.push_back(median_seconds(samples[0][i]));
  }
  // Relative errors count, from a length on at which the constant of a step is small.
  double xx = 0, xz = 0, zz = 0, xy = 0, zy = 0;
  for (std::size_t i = 0; i < times.lengths.size(); ++i) {
    const double n = times.lengths[i] + turn_more, pairs = n * n / 2, w = 1 / (times.computed[i] * times.computed[i]);
    xx += w * n * n, xz += w * n * pairs, zz += w * pairs * pairs;
    xy += w * n * times.computed[i], zy += w * pairs * times.computed[i];
  }
  const double determinant = xx * zz - xz * xz;
  times.seconds_per_token = (xy * zz - zy * xz) / determinant;
  times.seconds_per_pair = std::max(0.0, (zy * xx - xy * xz) / determinant);
  for (std::size_t t = 0; t < all.size(); ++t) {
    TierCurve curve;
    curve.name = all[t].name;
    double weight = 0, x = 0, y = 0, x2 = 0, xs = 0;  // a line through the loads, by relative errors
    for (std::size_t i = 0; i < times.lengths.size(); ++i) {
      curve.seconds.push_back(median_seconds(samples[t + 1][i]));
      const double n = times.lengths[i], bytes = n * times.token_bytes;
      const double rest =
          times.seconds_per_token * turn_more + times.seconds_per_pair * turn_more * (n + turn_more / 2.0);
      const double load = std::max(1e-6, curve.seconds.back() - rest), w = 1 / (load * load);
      weight += w, x += w * bytes, y += w * load, x2 += w * bytes * bytes, xs += w * bytes * load;
    }
    const double slope = (weight * xs - x * y) / (weight * x2 - x * x);
    curve.bandwidth = 1 / std::max(1e-15, slope);
    curve.latency = std::max(0.0, (y - slope * x) / weight);
    times.tiers.push_back(std::move(curve));
  }
  return times;
}
#else
TurnTimes measure_turns(const RealMachine&, int) {
  throw std::runtime_error("--tier-curve: this program was built without xxHash or libsodium (Debian: libxxhash-dev, " +
                           std::string("libsodium-dev)"));
}
#endif

}  // namespace serving
