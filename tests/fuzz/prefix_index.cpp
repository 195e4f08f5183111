// A prefix index under operations that the input spells out, beside a std::map that does the same. The hash keeps two
// bits of each prefix only, so nearly everything collides.
#include "kvc/policy/prefix_index.hpp"

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {
using namespace kvc;

struct TwoBits {
  std::uint64_t operator()(std::uint64_t parent, std::span<const Token> tokens) const noexcept {
    std::uint64_t sum = parent;
    for (const Token token : tokens) {
      sum = sum * 3 + static_cast<std::uint32_t>(token);
    }
    return sum & 3;
  }
};
using Tested = PrefixIndex<TwoBits>;
using Parent = Tested::Parent;
constexpr Index blocks = 12;
constexpr Pos block_tokens = 2;
using Tokens = std::array<Token, block_tokens>;

void expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
  }
}

class Fuzzed {
 public:
  explicit Fuzzed(std::span<const std::uint8_t> input) : input_(input), index_(blocks, block_tokens, TwoBits{}) {
    roots_ = {Parent::root(0), index_.roots().acquire(Salt(SaltKind::tenant, "a")),
              index_.roots().acquire(Salt(SaltKind::lora, "a"))};
  }

  void run() {
    for (int step = 0; !input_.empty() && step < 4096; ++step) {
      switch (next() % 4) {
        case 0:
        case 1:
          insert();
          break;
        case 2:
          erase();
          break;
        default:
          look_up();
          break;
      }
      if (next_is_rare_) {
        index_.clear();
        model_.clear();
        key_of_.fill(std::nullopt);
        next_is_rare_ = false;
      }
      expect(index_.size() == static_cast<Index>(model_.size()), "size");
      if (step % 8 == 0) {
        index_.verify();
      }
    }
    index_.verify();
  }

 private:
  // A root is a negative parent, as in the index.
  using Key = std::pair<int, Tokens>;

  std::uint8_t next() {
    if (input_.empty()) {
      return 0;
    }
    const std::uint8_t byte = input_.front();
    input_ = input_.subspan(1);
    next_is_rare_ = byte == 0xff;
    return byte;
  }
  [[nodiscard]] Tokens next_tokens() {
    const std::uint8_t byte = next();
    return {byte & 3, byte >> 2 & 3};
  }
  /// A root, or a block that is cached.
  [[nodiscard]] std::pair<Parent, int> next_parent() {
    const int choice = next() % (3 + static_cast<int>(blocks));
    if (choice >= 3 && key_of_[static_cast<std::size_t>(choice - 3)]) {
      return {Parent(static_cast<BlockId>(choice - 3)), choice - 3};
    }
    return {roots_[static_cast<std::size_t>(choice % 3)], -1 - choice % 3};
  }

  void insert() {
    const auto [parent, number] = next_parent();
    const Tokens tokens = next_tokens();
    const std::size_t block = next() % static_cast<std::size_t>(blocks);
    if (key_of_[block]) {
      return;
    }
    const auto id = static_cast<BlockId>(block);
    std::copy(tokens.begin(), tokens.end(), index_.tokens(id).begin());
    const BlockId equal = index_.insert(id, parent, index_.chain_hash(parent, tokens));
    const auto known = model_.find({number, tokens});
    expect((equal == no_block) == (known == model_.end()), "insert finds an equal block if there is one");
    if (known != model_.end()) {
      expect(equal == known->second, "insert returns the equal block");
      return;
    }
    model_[{number, tokens}] = id;
    key_of_[block] = Key{number, tokens};
  }

  void erase() {
    const std::size_t block = next() % static_cast<std::size_t>(blocks);
    const auto id = static_cast<BlockId>(block);
    bool has_children = false;
    for (const auto& [key, child] : model_) {
      has_children = has_children || key.first == static_cast<int>(block);
    }
    expect(index_.has_children(id) == has_children, "has_children");
    expect(index_.contains(id) == key_of_[block].has_value(), "contains");
    if (key_of_[block] && !has_children) {
      index_.erase(id);
      model_.erase(*key_of_[block]);
      key_of_[block].reset();
    }
  }

  void look_up() {
    const int root = next() % 3;
    std::vector<Token> prompt;
    for (int i = next() % 8; i > 0; --i) {
      const Tokens tokens = next_tokens();
      prompt.insert(prompt.end(), tokens.begin(), tokens.end());
    }
    std::vector<BlockId> expected;
    int parent = -1 - root;
    for (std::size_t i = 0; i + block_tokens <= prompt.size(); i += block_tokens) {
      const auto known = model_.find({parent, {prompt[i], prompt[i + 1]}});
      if (known == model_.end()) {
        break;
      }
      expected.push_back(known->second);
      parent = static_cast<int>(known->second);
    }
    std::vector<BlockId> found;
    const Parent last = index_.find_prefix(roots_[static_cast<std::size_t>(root)], prompt,
                                           [&](BlockId block) { found.push_back(block); });
    expect(found == expected, "find_prefix");
    expect(last == (found.empty() ? roots_[static_cast<std::size_t>(root)] : Parent(found.back())), "its last block");
    const auto rest = std::span(std::as_const(prompt)).subspan(found.size() * block_tokens);
    if (rest.size() >= block_tokens) {
      const auto partial = index_.find_longest(last, rest.first(block_tokens));
      Pos most = 0;
      for (const auto& [key, block] : model_) {
        most = std::max(most, key.first == parent && key.second[0] == rest[0] ? Pos{1} : Pos{0});
      }
      expect(partial.count == most, "find_longest");
    }
  }

  std::span<const std::uint8_t> input_;
  bool next_is_rare_ = false;
  Tested index_;
  std::vector<Parent> roots_;
  std::map<Key, BlockId> model_;
  std::array<std::optional<Key>, static_cast<std::size_t>(blocks)> key_of_{};
};
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Fuzzed({data, size}).run();
  return 0;
}
