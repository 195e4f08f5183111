// Tiers against a model: random operations over two stores that delay, reorder, lose, damage and fail. Every row that
// is found is compared with what its tokens say, nothing is found that was never computed, and nothing leaks.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "catch.hpp"
#include "every_store.hpp"
#include "kvc/tier/file_store.hpp"
#include "kvc/tier/host_store.hpp"
#include "paused_store.hpp"
#include "random_source.hpp"
#include "temp_files.hpp"
#include "tiered.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
using tier::WriteRule;

template <class Small, class Large>
class TiersModel {
 public:
  TiersModel(std::uint64_t seed, Small& small, Large& large)
      : random_(seed), stores_{PausedStore<Small>(small), PausedStore<Large>(large)} {
    for_each_store([&](auto& store) {
      store.can_cancel = random_.one_in(2);
      store.fault = [this](const auto&) {
        return faults_ && random_.one_in(6) ? static_cast<Fault>(random_.between(1, 4)) : Fault::none;
      };
    });
    restart();
  }

  void step() {
    switch (random_.between(0, 19)) {
      case 0:
      case 1:
      case 2:
      case 3:
        open();
        break;
      case 4:
      case 5:
        close();
        break;
      case 6:
      case 7:
      case 8: {
        const Tokens prompt = random_prompt();
        const OpenOptions options = random_salt();
        const tier::Found found = tiers_->prefetch(prompt, options);
        CHECK(found.cached + found.pending <= static_cast<Pos>(prompt.size()) - 1);
        loads_.push_back(found.load);
        break;
      }
      case 9:
        if (!loads_.empty() && random_.one_in(4)) {
          tiers_->cancel(loads_[random_.between(std::size_t{0}, loads_.size() - 1)]);
        }
        break;
      case 10:
        if (random_.one_in(25)) {
          clear();
        }
        break;
      case 11:
        if (random_.one_in(25)) {
          restart();
        }
        break;
      case 12:
        faults_ = random_.one_in(3);
        break;
      default:
        let_some();
    }
    tiers_->verify();
  }
  void steps(int count) {
    for (int i = 0; i < count; ++i) {
      step();
    }
    faults_ = false;
    while (!open_.empty()) {
      close();
    }
    quiesce();
    CHECK(tiers_->loads() == 0);
    CHECK(cache_->stats().pins == 0);
    CHECK(cache_->available() == cache_->policy().blocks());
    // After all, what the slowest tier has from the first block on is found.
    CHECK(tiers_->flush(tier::TimePoint::max()));
    for (int i = 0; i < 8; ++i) {
      const Tokens prompt = random_prompt();
      (void)tiers_->prefetch(prompt);
      quiesce();
      const auto opened = tiers_->open(prompt);
      CHECK(has_rows(*cache_, opened.seq, prompt, model_));
      cache_->close(opened.seq);
    }
    quiesce();
    tiers_->verify();
  }
  [[nodiscard]] Index loaded() const { return loaded_ + tiers_->stats(0).loaded + tiers_->stats(1).loaded; }

 private:
  struct Open {
    SeqId seq;
    Tokens tokens;
    std::uint32_t model;
  };

  template <class F>
  void for_each_store(F&& f) {
    f(stores_.first);
    f(stores_.second);
  }
  void restart() {
    if (tiers_) {
      loaded_ += tiers_->stats(0).loaded + tiers_->stats(1).loaded;
    }
    tiers_.reset();  // whatever is under way
    if (cache_) {
      while (!open_.empty()) {
        close();
      }
      cache_->verify();
      CHECK(cache_->stats().pins == 0);
    }
    loads_.clear();
    cache_ = std::make_unique<TieredCache<>>(tiered_shape,
                                             PrefixSharedConfig<Lru>{.blocks = 20, .block_tokens = tiered_block});
    const auto rule = [&] { return static_cast<WriteRule>(random_.between(0, 3)); };
    tiers_ = std::make_unique<tier::Tiers<TieredCache<>>>(
        *cache_,
        tier::TiersConfig{.model = std::to_string(model_),
                          .load = tier::LoadRule::always,
                          .write = {rule(), random_.one_in(2) ? WriteRule::through : rule()},
                          .reads = random_.between(std::size_t{1}, std::size_t{8}),
                          .writes = random_.between(std::size_t{1}, std::size_t{4}),
                          .pipelined = random_.one_in(2)},
        stores_.first, stores_.second);
  }
  void clear() {
    cache_->clear();
    let_some();
    tiers_->renew(std::to_string(++model_));
    computed_.clear();  // open sequences keep their rows, which nobody finds
  }
  void open() {
    Tokens prompt = random_prompt();
    const OpenOptions options = random_salt();
    const auto opened = tiers_->open(prompt, options);
    CHECK(has_rows(*cache_, opened.seq, prompt, model_));
    CHECK(was_computed(prompt, opened.cached, options));
    if (!compute(*cache_, opened.seq, prompt, model_)) {
      cache_->close(opened.seq);
      return;
    }
    for (std::size_t n = 1; n <= prompt.size(); ++n) {
      computed_.emplace(options.salt.bytes(), Tokens(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(n)));
    }
    open_.push_back({opened.seq, std::move(prompt), model_});
    if (open_.size() > 3) {
      close();
    }
  }
  /// Its rows have not changed meanwhile.
  void close() {
    if (open_.empty()) {
      return;
    }
    const std::size_t i = random_.between(std::size_t{0}, open_.size() - 1);
    CHECK(has_rows(*cache_, open_[i].seq, open_[i].tokens, open_[i].model));
    cache_->close(open_[i].seq);
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  [[nodiscard]] bool was_computed(const Tokens& prompt, Pos count, const OpenOptions& options) const {
    return count == 0 || computed_.contains({options.salt.bytes(), Tokens(prompt.begin(), prompt.begin() + count)});
  }
  void let_some() {
    for_each_store([&](auto& store) {
      for (int n = random_.between(0, 6); n > 0 && !store.waiting.empty(); --n) {
        store.let(random_.between(std::size_t{0}, store.waiting.size() - 1));
      }
    });
    (void)tiers_->poll();
  }
  void quiesce() {
    std::size_t count = 1;
    while (count > 0) {
      (void)tiers_->poll();
      count = stores_.first.let_all() + stores_.second.let_all();
    }
    (void)tiers_->poll();
  }
  /// One of few beginnings, and where it goes on one of few ends: prompts share prefixes of all lengths.
  Tokens random_prompt() {
    Tokens prompt = counting(100 * random_.between(0, 3), random_.between(1, 30));
    if (random_.one_in(2)) {
      prompt = joined(prompt, counting(1000 + 100 * random_.between(0, 1), random_.between(1, 14)));
    }
    return prompt;
  }
  OpenOptions random_salt() {
    return random_.one_in(4) ? OpenOptions{.salt = Salt(SaltKind::lora, "a")} : OpenOptions{};
  }

  Random random_;
  std::vector<tier::LoadId> loads_;
  std::set<std::pair<std::string, Tokens>> computed_;  // with the present weights
  std::uint32_t model_ = 1;
  bool faults_ = false;
  Index loaded_ = 0;
  std::vector<Open> open_;
  struct {
    PausedStore<Small> first;
    PausedStore<Large> second;
  } stores_;
  std::unique_ptr<TieredCache<>> cache_;
  std::unique_ptr<tier::Tiers<TieredCache<>>> tiers_;
};

}  // namespace

TEST_CASE("Tiers find only what was computed, with its rows, whatever their stores do", "[tier][model]") {
  const std::uint64_t seed = seed_or(20);
  CAPTURE(seed);
  Index loaded = 0;
  for (std::uint64_t run = 0; run < static_cast<std::uint64_t>(cases_or(6)); ++run) {
    CAPTURE(run);
    tier::HostStore<> small({.bytes = 24 * 256, .chunk_bytes = 256, .reports_evictions = true});
    tier::HostStore<> large({.bytes = 1 << 18, .chunk_bytes = 256, .reports_evictions = run % 2 == 0});
    TiersModel model(seed + run, small, large);
    model.steps(operations_or(1000));
    loaded += model.loaded();
  }
  CHECK(loaded > 100);  // a test without loads would be none
}

TEST_CASE("The same over files behind memory", "[tier][model]") {
  const std::uint64_t seed = seed_or(40);
  CAPTURE(seed);
  const TempFolder folder;
  tier::HostStore<> small({.bytes = 24 * 256, .chunk_bytes = 256, .reports_evictions = true});
  tier::FileStore files({.folder = folder / "tier", .bytes = 4 << 20, .threads = 1});
  TiersModel model(seed, small, files);
  model.steps(operations_or(400));
  CHECK(model.loaded() > 10);
}

TEST_CASE("The same over io_uring, a server, and a cluster of servers behind memory", "[tier][model]") {
  const std::uint64_t seed = seed_or(60);
  CAPTURE(seed);
  for (const StoreKind kind : store_kinds()) {
    if (kind == StoreKind::host || kind == StoreKind::files || kind == StoreKind::late) {
      continue;  // above, or late without help
    }
    CAPTURE(kind);
    tier::HostStore<> small({.bytes = 24 * 256, .chunk_bytes = 256, .reports_evictions = true});
    EveryStore large(kind);
    TiersModel model(seed, small, large);
    model.steps(std::min(operations_or(400), 50000));  // each waits for a thread or a server
    CHECK(model.loaded() > 10);
  }
}

TEST_CASE("Damaged files are shorter hits: no row is wrong, wherever the bytes were changed", "[tier][faults]") {
  Random random(seed_or(8));
  const Tokens prompt = counting(0, 26);  // six full blocks, and a part
  int found_less = 0;
  for (int run = 0; run < cases_or(20); ++run) {
    const TempFolder folder;
    const auto process = [&](auto&& f) {
      tier::FileStore files({.folder = folder / "tier", .bytes = 4 << 20, .threads = 1});
      TieredCache<> cache(tiered_shape, {.blocks = 8, .block_tokens = tiered_block});
      tier::Tiers tiers(cache, {.model = "m", .load = tier::LoadRule::always}, files);
      f(cache, tiers);
      CHECK(tiers.flush(tier::TimePoint::max()));
      tiers.verify();
    };
    process([&](auto& cache, auto& tiers) { CHECK(serve_tiered(tiers, cache, prompt) == 0); });
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
      if (!entry.is_regular_file() || entry.file_size() == 0) {
        continue;
      }
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      for (int change = random.between(1, 40); change > 0; --change) {
        file.seekp(static_cast<std::streamoff>(random.between(std::uintmax_t{0}, entry.file_size() - 1)));
        file.put(static_cast<char>(random.between(0, 255)));
      }
    }
    process([&](auto& cache, auto& tiers) {
      const tier::Found found = tiers.prefetch(prompt);
      CHECK(tiers.wait(found.load, tier::TimePoint::max()));
      const Pos there = serve_tiered(tiers, cache, prompt);
      CHECK(there >= 0);
      found_less += there < 24 ? 1 : 0;
    });
  }
  CHECK(found_less > 0);
}
