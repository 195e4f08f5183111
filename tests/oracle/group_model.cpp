// Policies with several layer groups against a plain model: sets of positions, and a brute-force search for the longest
// valid hit. Rows are written into a model of the memory, so that a wrong row is seen wherever it comes from.
#include <algorithm>
#include <concepts>
#include <cstdint>
#include <map>
#include <numeric>
#include <optional>
#include <ostream>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "failing_allocation.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/eviction/priority.hpp"
#include "kvc/policy/eviction/reuse_hazard.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "policies.hpp"
#include "random_source.hpp"

using namespace kvc;
using kvc_test::Random;

namespace {

using Tokens = std::vector<Token>;

/// Whether a group of this rule still has a position when rows in [kept, from) are gone.
bool is_retained(const GroupRule& rule, Pos from, Pos position) {
  return position < rule.retained.kept || position >= from;
}
/// How many of the first `length` positions it has.
Index retained_positions(const GroupRule& rule, Pos from, Pos length) {
  Index count = 0;
  for (Pos p = 0; p < length; ++p) {
    count += is_retained(rule, from, p) ? 1 : 0;
  }
  return count;
}

/// Whether a row at `position` sees one at j < position, by the definition.
bool sees(const Retained& rule, Pos position, Pos j) {
  const bool in_window = rule.window == 0 || position - j < rule.window;
  const bool in_chunk = rule.chunk == 0 || j >= position / rule.chunk * rule.chunk;
  return j < rule.kept || (in_window && in_chunk);
}
/// How many rows before it a row at `position` sees.
Index seen_positions(const Retained& rule, Pos position) {
  Index count = 0;
  for (Pos j = 0; j < position; ++j) {
    count += sees(rule, position, j) ? 1 : 0;
  }
  return count;
}

struct ModelSequence {
  Tokens tokens;  // of the committed and reserved positions
  Pos committed = 0;
  bool uncommitted = false;
  struct Extension {  // the uncommitted one
    Pos count = 0;
    bool tells = false;  // its tokens are known when it is committed
    bool had_cross = false;
  } extension{};
  Pos known = 0;  // tokens that the policy knows
  std::string salt;
  std::vector<Pos> from;  // [groups] rows in [kept, from) are gone
  Pos most = max_pos;     // tokens
  std::string input;      // names the rows of cross-attention groups
  bool has_cross = false;
  std::vector<Pos> states;  // lengths of which it has recurrent states

  /// Whether the rows of another input are committed.
  [[nodiscard]] bool has_committed_cross() const { return uncommitted ? extension.had_cross : has_cross; }
};

/// The most slots that Contiguous may take for a sequence; in grow mode, for one that is committed.
Index most_slots(const Contiguous::Config& config, const GroupRules& rules, std::size_t group, const ModelSequence& s) {
  const GroupRule& rule = rules.groups[group];
  if (rule.cross_rows > 0) {
    return rule.cross_rows;
  }
  const Pos window = rule.retained.window > 0 ? rule.retained.window : max_pos;
  const Pos chunk = rule.retained.chunk > 0 ? rule.retained.chunk : max_pos;
  const Index kept = rule.retained.kept;
  const Index resting = Index{std::min(window, chunk)} - 1 + rules.rewind;
  if (config.mode == Contiguous::Mode::reserve) {
    const Pos pass = config.pass_tokens == 0 ? config.max_tokens : config.pass_tokens;
    return std::min(Index{s.most}, kept + resting + pass);
  }
  const Index rows = rule.retained.everything() ? Index{s.committed} : resting;
  return kept + ceil_div(rows + config.growth_tokens, Index{config.growth_tokens}) * config.growth_tokens;
}

/// The most blocks that a sequence may have in a group beyond those that its rows fill, the last one aside: the bound
/// of docs/layer-groups.md.
///   keeps_slack   the block before the first one may be there, for hits that end within it
Index partial_blocks(const GroupRule& rule, bool keeps_slack) {
  const bool drops = rule.cross_rows == 0 && !rule.retained.everything();
  return drops ? 1 + (keeps_slack ? 1 : 0) + (rule.retained.kept > 0 ? 1 : 0) : 0;
}

struct Node {
  BlockId parent = no_block;  // no_block: a root
  Tokens tokens;
  std::vector<BlockId> blocks;
  bool operator==(const Node&) const = default;
};
/// The nodes of a prefix index.
struct Tree {
  std::map<BlockId, Node> nodes;
  std::map<std::pair<std::string, BlockId>, std::vector<BlockId>> children;  // of a root: (salt, no_block)
  std::set<std::string> inputs;  // salts for which rows of another input are cached
  Pos node_tokens = 1;
  bool operator==(const Tree&) const = default;
};

}  // namespace

/// Shows the index of a policy with groups.
template <class Eviction, class Hash, class Events>
struct kvc::testing::Corruption<PrefixShared<Eviction, Hash, Events>> {
  static void read(const PrefixShared<Eviction, Hash, Events>& policy, auto& tree) {
    const auto& nodes = policy.grouped_->blocks_.nodes;
    tree.node_tokens = nodes.node_tokens();
    nodes.index.for_each([&](auto root, auto parent, BlockId node) {
      auto& added = tree.nodes[node];
      const auto tokens = std::as_const(nodes.index).tokens(node);
      added.tokens.assign(tokens.begin(), tokens.end());
      const auto blocks = nodes.blocks_of(node);
      added.blocks.assign(blocks.begin(), blocks.end());
      added.parent = parent.is_root() ? no_block : parent.block();
      tree.children[{parent.is_root() ? nodes.index.roots().salt(root) : std::string(), added.parent}].push_back(node);
    });
  }
};

namespace {

template <class P>
Tree index_of(const P& policy) {
  Tree tree;
  testing::Corruption<P>::read(policy, tree);
  policy.for_each_cached([&](const BlockStored& stored) {
    const auto group = static_cast<std::size_t>(stored.group);
    const GroupRules& rules = policy.group_rules();
    if (group < rules.groups.size() && rules.groups[group].cross_rows > 0) {
      tree.inputs.insert(std::string(stored.salt));
    }
  });
  return tree;
}

/// The longest prefix of `tokens` for which every group has, on one path of the index, all positions that a row behind
/// it sees, and the whole block that it ends in; and recurrent states behind it, if there are recurrent layers. Tries
/// every length.
template <class P>
Pos longest_hit(const P& policy, const Tree& tree, const std::string& salt, std::span<const Token> tokens) {
  const auto children_of = [&](BlockId node) {
    const auto found = tree.children.find({node == no_block ? salt : std::string(), node});
    return found == tree.children.end() ? std::vector<BlockId>{} : found->second;
  };
  std::vector<BlockId> path;
  BlockId at = no_block;
  for (std::size_t used = 0; used + static_cast<std::size_t>(tree.node_tokens) <= tokens.size();) {
    BlockId next = no_block;
    for (const BlockId child : children_of(at)) {
      if (std::ranges::equal(tree.nodes.at(child).tokens,
                             tokens.subspan(used, static_cast<std::size_t>(tree.node_tokens)))) {
        next = child;
      }
    }
    if (next == no_block) {
      break;
    }
    path.push_back(at = next);
    used += static_cast<std::size_t>(tree.node_tokens);
  }
  const std::size_t groups = policy.group_rules().groups.size();
  const bool has_states = !policy.group_rules().states.empty();
  const auto valid = [&](const std::vector<BlockId>& nodes, Pos length) {
    if (has_states && (length % tree.node_tokens != 0 ||
                       std::ranges::count(std::span(tree.nodes.at(nodes.back()).blocks).subspan(groups), no_block))) {
      return false;
    }
    const auto has = [&](std::size_t group, Pos position) {  // a node of the same block, at it or behind, has a block
      const Pos block = policy.block_tokens(static_cast<Index>(group));
      for (std::size_t i = static_cast<std::size_t>(position / tree.node_tokens); i < nodes.size(); ++i) {
        if (static_cast<Pos>(i) * tree.node_tokens / block == position / block &&
            tree.nodes.at(nodes[i]).blocks[group] != no_block) {
          return true;
        }
      }
      return false;
    };
    for (std::size_t g = 0; g < groups; ++g) {
      if (policy.group_rules().groups[g].cross_rows > 0) {
        if (!tree.inputs.contains(salt)) {
          return false;
        }
        continue;
      }
      const Pos block = policy.block_tokens(static_cast<Index>(g));
      // The last position must be there as of the last node: nodes behind it are another prompt's.
      for (Pos p = 0; p < length; ++p) {
        const bool is_needed = sees(policy.group_rules().groups[g].retained, length, p) || p >= length / block * block;
        if (is_needed && !has(g, p)) {
          return false;
        }
      }
    }
    return true;
  };
  Pos best = 0;
  const auto whole = static_cast<Pos>(path.size()) * tree.node_tokens;
  for (Pos length = whole; length > 0 && best == 0; --length) {
    const auto nodes = static_cast<std::ptrdiff_t>(ceil_div(length, tree.node_tokens));
    if (valid({path.begin(), path.begin() + nodes}, length)) {
      best = length;
    }
  }
  for (const BlockId child : children_of(at)) {
    const std::span<const Token> rest = tokens.subspan(static_cast<std::size_t>(whole));
    const auto& theirs = tree.nodes.at(child).tokens;
    const auto common = static_cast<Pos>(std::ranges::mismatch(theirs, rest).in1 - theirs.begin());
    std::vector<BlockId> nodes = path;
    nodes.push_back(child);
    for (Pos count = common; count > 0; --count) {
      if (valid(nodes, whole + count)) {
        best = std::max(best, whole + count);
      }
    }
  }
  return best;
}

/// The knowledge of a router that hears all events: the cached nodes, each with its block in a group.
class Mirror {
 public:
  using Stored = std::tuple<BlockId, std::int32_t, std::string, Tokens>;

  void apply(const EventRing::Record& event) {
    REQUIRE(event.number == next_++);
    switch (event.kind) {
      case EventRing::Record::Kind::stored:
        stored_.emplace(event.block, event.group, event.salt, event.tokens);
        break;
      case EventRing::Record::Kind::removed:
        REQUIRE(std::erase_if(stored_, [&](const Stored& stored) {
                  REQUIRE((std::get<0>(stored) != event.block || std::get<1>(stored) == event.group));
                  return std::get<0>(stored) == event.block;
                }) > 0);
        break;
      case EventRing::Record::Kind::cleared:
        stored_.clear();
        break;
    }
  }
  [[nodiscard]] const std::multiset<Stored>& stored() const { return stored_; }

 private:
  std::multiset<Stored> stored_;
  std::uint64_t next_ = 0;
};

template <class P>
class GroupModel {
 public:
  static constexpr bool finds_prefixes = KnowsTokens<P>;
  static constexpr bool shares = P::shares_blocks;
  static constexpr Pos no_position = -1;
  static constexpr bool is_contiguous = std::same_as<P, Contiguous>;
  static constexpr bool emits_events = finds_prefixes && !std::is_same_v<P, Paged> && requires(P& p) {
    { p.events() } -> std::same_as<EventRing&>;
  };

  GroupModel(Random& random, const typename P::Config& config, const GroupRules& rules)
      : random_(random), policy_(config, rules), rules_(rules) {}

  void step() {
    switch (random_.between(0, 23)) {
      case 23:
        expect();
        break;
      case 20:
        pin();
        break;
      case 21:
        publish();
        break;
      case 22:
        admit();
        break;
      case 0:
      case 1:
      case 2:
        open();
        break;
      case 3:
        fork();
        break;
      case 4:
        truncate();
        break;
      case 5:
      case 6:
        close();
        break;
      case 7:
        clear();
        break;
      case 8:
        restore();
        break;
      default:
        extend();
    }
    check();
  }
  [[nodiscard]] Index hits() const { return hits_; }
  [[nodiscard]] Index refusals() const { return refusals_; }
  [[nodiscard]] Index dropped() const { return dropped_; }
  [[nodiscard]] Index restored() const { return restored_; }
  [[nodiscard]] Index admitted() const { return admitted_; }
  [[nodiscard]] Index never() const { return never_; }

 private:
  /// A prefix whose rows are on their way.
  struct Expected {
    PinId pin;
    OpenOptions options;
    ModelSequence sequence;
    bool is_cleared = false;
    bool is_due = false;  // not all of it was cached
  };

  using Row = std::uint64_t;  // a hash of a salt and of a prefix, or of an input and a position
  static constexpr Row no_row = 0;

  [[nodiscard]] static Row next_row(Row row, std::int64_t value) {
    return (row ^ static_cast<Row>(value + 1)) * 0x9e37'79b9'7f4a'7c15U ^ row >> 29;
  }
  [[nodiscard]] Pos cross_rows(Index group) const { return rules_.groups[static_cast<std::size_t>(group)].cross_rows; }
  [[nodiscard]] Pos positions(const ModelSequence& s, Index group) const {
    return cross_rows(group) == 0 ? static_cast<Pos>(s.tokens.size()) : s.has_cross ? cross_rows(group) : 0;
  }
  [[nodiscard]] static std::vector<Row> rows_of(const std::string& name, std::span<const Token> tokens) {
    std::vector<Row> rows;
    Row row = 1;
    for (const char letter : name) {
      row = next_row(row, letter);
    }
    for (const Token token : tokens) {
      rows.push_back(row = next_row(row, token));
    }
    return rows;
  }
  /// The rows of all positions.
  [[nodiscard]] std::vector<Row> rows_of(const ModelSequence& s, Index group) const {
    return cross_rows(group) > 0 ? rows_of(s.input, Tokens(static_cast<std::size_t>(cross_rows(group))))
                                 : rows_of(s.salt, s.tokens);
  }
  [[nodiscard]] SeqId any() { return open_[random_.between<std::size_t>(0, open_.size() - 1)].first; }
  [[nodiscard]] ModelSequence& model(SeqId seq) {
    return std::ranges::find(open_, seq, &std::pair<SeqId, ModelSequence>::first)->second;
  }

  /// Tokens of few kinds, often those of a prompt before.
  Tokens make_prompt() {
    Tokens tokens;
    if (!prompts_.empty() && !random_.one_in(4)) {
      tokens = prompts_[random_.between<std::size_t>(0, prompts_.size() - 1)];
      tokens.resize(random_.between<std::size_t>(0, tokens.size()));
    }
    const int more = random_.one_in(3) ? random_.between(0, 40) : random_.between(0, 6);
    for (int i = 0; i < more; ++i) {
      tokens.push_back(random_.between(0, 2));
    }
    if (prompts_.size() < 12) {
      prompts_.push_back(tokens);
    } else {
      prompts_[random_.between<std::size_t>(0, prompts_.size() - 1)] = tokens;
    }
    return tokens;
  }

  OpenOptions make_options() {
    OpenOptions options;
    if (random_.one_in(has_cross() ? 2 : 8)) {
      options.salt = Salt(SaltKind::tenant, random_.one_in(4) ? "third" : "other");
    }
    if (random_.one_in(3)) {
      options.retention.priority = random_.between(0, 100);
      options.retention.duration =
          random_.one_in(2) ? Retention::forever : random_.between(std::uint64_t{0}, std::uint64_t{40});
    }
    if constexpr (is_contiguous) {
      options.max_tokens = random_.one_in(4) ? random_.between(1, policy_.max_tokens()) : 0;
    }
    return options;
  }
  [[nodiscard]] bool has_cross() const {
    return std::ranges::any_of(rules_.groups, [](const GroupRule& rule) { return rule.cross_rows > 0; });
  }
  /// The name of the rows of another input: the salt, where they are found by it.
  [[nodiscard]] std::string new_input(const std::string& salt) {
    return finds_prefixes && !salt.empty() ? salt : "input " + std::to_string(++inputs_);
  }
  /// All that there is to see of the policy but for its sequences.
  struct Seen {
    std::vector<Index> counts;
    Tree index;
    bool operator==(const Seen&) const = default;
  };
  [[nodiscard]] Seen seen() const {
    Seen seen;
    for (Index g = -1; g < policy_.groups(); ++g) {
      const Stats stats = g < 0 ? policy_.stats() : policy_.stats(g);
      for (const Index count : {stats.blocks_free, stats.blocks_cached, stats.blocks_referenced, stats.largest_free_run,
                                stats.sequences, stats.pins, stats.tokens_stored, stats.tokens_reserved,
                                stats.tokens_unknown, stats.prompt_tokens, stats.hit_tokens, stats.hits, stats.misses,
                                stats.lost_tokens, stats.merges, stats.evictions, stats.copies, stats.copied_tokens}) {
        seen.counts.push_back(count);
      }
    }
    if constexpr (finds_prefixes) {
      seen.index = index_of(policy_);
    }
    return seen;
  }
  /// f(), and before that, now and then, with one of its first `most` allocations failing: then nothing has changed.
  template <class F>
  void with_failures(int most, F&& f) {
    if (!emits_events && random_.one_in(8)) {  // an event for which there is no memory is lost
      const Seen before = seen();
      try {
        const kvc_test::FailAllocation fail(random_.between(0, most - 1));
        f();
        return;
      } catch (const std::bad_alloc&) {
      }
      ++failures_;
      REQUIRE(seen() == before);
      policy_.verify();
    }
    f();
  }

  void open() {
    if (open_.size() >= 8) {
      return;
    }
    (void)open(make_prompt(), make_options());
  }
  std::optional<SeqId> open(const Tokens& prompt, const OpenOptions& options) {
    Pos expected = 0;
    if constexpr (finds_prefixes) {
      const std::span<const Token> tokens(prompt);
      expected = longest_hit(policy_, index_of(policy_), options.salt.bytes(),
                             tokens.first(prompt.empty() ? 0 : prompt.size() - 1));
      REQUIRE(policy_.match_length(prompt, options) == expected);
    }
    const LimitMet why = policy_.why_not_open(options);
    std::optional<Opened> opened;
    with_failures(12, [&] { opened = policy_.try_open(prompt, options); });
    REQUIRE(opened.has_value() == (why.limit == Limit::none));
    if (!opened) {
      ++refusals_;
      return std::nullopt;
    }
    REQUIRE(opened->cached == expected);
    hits_ += expected > 0 ? 1 : 0;
    ModelSequence s;
    s.tokens.assign(prompt.begin(), prompt.begin() + expected);
    s.committed = expected;
    s.salt = options.salt.bytes();
    s.known = expected;
    s.input = new_input(s.salt);
    if constexpr (finds_prefixes) {
      s.has_cross = has_cross() && index_of(policy_).inputs.contains(s.salt);
    }
    if constexpr (is_contiguous) {
      s.most = options.max_tokens == 0 ? policy_.max_tokens() : options.max_tokens;
    }
    for (const GroupRule& rule : rules_.groups) {
      s.from.push_back(expected > rule.retained.kept ? rule.retained.first_seen(expected) : 0);
    }
    read_states(opened->seq, s);
    REQUIRE((!has_states() || expected == 0 || std::ranges::count(s.states, expected) == 1));
    open_.emplace_back(opened->seq, s);
    waiting_.push_back({opened->seq, Tokens(prompt.begin() + expected, prompt.end())});
    return opened->seq;
  }

  void extend() {
    if (open_.empty()) {
      return;
    }
    const SeqId seq = any();
    ModelSequence& s = model(seq);
    if (s.uncommitted) {
      complete(seq, s);
      return;
    }
    Tokens tokens;
    const auto waits = std::ranges::find(waiting_, seq, &std::pair<SeqId, Tokens>::first);
    if (waits != waiting_.end() && !waits->second.empty()) {  // a prompt, in one pass or in chunks
      const auto count =
          random_.one_in(2) ? waits->second.size() : random_.between<std::size_t>(1, waits->second.size());
      tokens.assign(waits->second.begin(), waits->second.begin() + static_cast<std::ptrdiff_t>(count));
    } else {
      for (int i = random_.one_in(6) ? random_.between(0, 9) : 1; i > 0; --i) {
        tokens.push_back(random_.between(0, 2));
      }
    }
    const auto count = static_cast<Pos>(tokens.size());
    // A sequence that has begun without its tokens mostly goes on like that, so that they can be published.
    const bool tells = s.known < s.committed ? random_.one_in(4) : !random_.one_in(s.committed == 0 ? 8 : 40);
    const Index available = policy_.available();
    const LimitMet why = policy_.why_not_extend(seq, count);
    const Stats before = policy_.stats();
    const std::span<const Token> given = tells ? std::span<const Token>(tokens) : std::span<const Token>();
    std::vector<Pos> states_at;
    for (Pos length = s.committed + 1; has_states() && length <= s.committed + count; ++length) {
      if (random_.one_in(6)) {
        states_at.push_back(length);
      }
    }
    std::optional<Extension> extension;
    bool failed = false;
    {
      const kvc_test::FailAllocation fail(random_.one_in(16) ? random_.between(0, 2) : 1000);
      try {
        extension = states_at.empty() ? policy_.try_extend(seq, count, given)
                                      : policy_.try_extend(seq, count, given, states_at);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
    }
    if (failed) {
      ++failures_;
      REQUIRE(policy_.available() == available);
      REQUIRE(policy_.stats().blocks_referenced == before.blocks_referenced);
      REQUIRE(policy_.reserved(seq) == s.committed);
      return;
    }
    if (!extension && !states_at.empty()) {  // why_not_extend does not know of them
      ++refusals_;
      REQUIRE(policy_.reserved(seq) == s.committed);
      return;
    }
    finish(seq, s, tokens, tells, extension, why);
    REQUIRE((!s.uncommitted || std::ranges::includes(s.states, states_at)));
  }

  /// A sequence that was computed elsewhere: with the rows that its groups retain, or fewer.
  void restore() {
    if (open_.size() >= 8 || (finds_prefixes && has_cross())) {
      return;
    }
    ModelSequence s;
    s.tokens = make_prompt();
    OpenOptions options;
    if (random_.one_in(8)) {
      options.salt = Salt(SaltKind::tenant, "other");
    }
    s.salt = options.salt.bytes();
    const auto length = static_cast<Pos>(s.tokens.size());
    const std::optional<Opened> opened = policy_.try_open({}, options);
    if (!opened) {
      ++refusals_;
      return;
    }
    const SeqId seq = opened->seq;
    s.input = new_input(s.salt);
    if constexpr (is_contiguous) {
      s.most = policy_.max_tokens();
    }
    std::vector<PosRange> missing;
    for (const GroupRule& rule : rules_.groups) {
      PosRange gap{0, 0};
      if (const Pos most = rule.retained.first_seen(length); most > rule.retained.kept) {
        const Pos last = random_.between(rule.retained.kept, most);
        gap = {random_.between(rule.retained.kept, last), last};
      }
      missing.push_back(gap.empty() ? PosRange{0, 0} : gap);
      const Pos from = std::max(rule.retained.first_seen(std::max(length - rules_.rewind, 0)), missing.back().last);
      s.from.push_back(from > rule.retained.kept ? from : 0);
    }
    RestoreOptions restored{.length = length, .missing = missing};
    if (!open_.empty() && random_.one_in(2)) {
      const SeqId like = any();
      const ModelSequence& other = model(like);
      if (other.salt == s.salt) {
        const auto common =
            std::ranges::mismatch(std::span(other.tokens).first(static_cast<std::size_t>(other.committed)), s.tokens);
        restored.like = like;
        restored.shared = random_.between(0, static_cast<Pos>(common.in2 - s.tokens.begin()));
        restored.shares_cross = other.has_committed_cross() && random_.one_in(2);
        s.input = restored.shares_cross ? other.input : s.input;
      }
    }
    std::vector<RestoredState> states;
    for (Pos at = 1; has_states() && at <= length; ++at) {
      if (at == length || random_.one_in(4)) {
        const bool is_shared = restored.like && at <= restored.shared &&
                               std::ranges::count(model(*restored.like).states, at) > 0 && random_.one_in(2);
        states.push_back({at, is_shared});
      }
    }
    restored.states = states;
    const Stats before = policy_.stats();
    std::optional<Extension> extension;
    try {
      const kvc_test::FailAllocation fail(random_.one_in(16) ? random_.between(0, 2) : 1000);
      extension = policy_.try_restore(seq, restored);
      refusals_ += extension ? 0 : 1;
    } catch (const std::bad_alloc&) {
      ++failures_;
    }
    if (!extension) {
      REQUIRE(policy_.stats().blocks_referenced == before.blocks_referenced);
      REQUIRE(policy_.reserved(seq) == 0);
      policy_.close(seq);
      return;
    }
    REQUIRE(extension->range == PosRange{0, length});
    REQUIRE(extension->copies.empty());
    write_restored(seq, s, missing);
    write_states(seq, s, 0);
    if (random_.one_in(6)) {  // it goes on as an empty one
      policy_.rollback(seq);
      REQUIRE(policy_.stats().blocks_referenced == before.blocks_referenced);
      s.input = new_input(s.salt);
      s.tokens.clear();
      s.from.assign(s.from.size(), 0);
      read_states(seq, s);
      open_.emplace_back(seq, s);
      return;
    }
    policy_.commit(seq);
    s.committed = length;
    s.has_cross = true;
    if constexpr (finds_prefixes) {
      const auto known = random_.one_in(6) ? random_.between<std::size_t>(0, s.tokens.size()) : s.tokens.size();
      policy_.publish_tokens(seq, std::span<const Token>(s.tokens).first(known));
      s.known = static_cast<Pos>(known);
    }
    ++restored_;
    read_states(seq, s);
    open_.emplace_back(seq, s);
  }
  /// Writes the rows of all slots of a restored sequence but the missing ones, which hold anything.
  void write_restored(SeqId seq, const ModelSequence& s, const std::vector<PosRange>& missing) {
    const auto length = static_cast<Pos>(s.tokens.size());
    for (Index g = 0; g < policy_.groups(); ++g) {
      const std::vector<Row> rows = rows_of(s, g);
      if (!GroupTablePolicy<P> || cross_rows(g) > 0) {
        policy_.for_each_run(seq, g, {0, policy_.positions(seq, g)}, [&](const SlotRun& run) { write(g, run, rows); });
        continue;
      }
      if constexpr (GroupTablePolicy<P>) {
        const GroupBlocks blocks = policy_.group_blocks(seq, g);
        const PosRange gap = missing[static_cast<std::size_t>(g)];
        REQUIRE(blocks.missing == gap);
        const auto write_block = [&](BlockId block, Pos number) {
          for (Pos slot = 0; slot < policy_.block_tokens(g); ++slot) {
            const Pos position = number * policy_.block_tokens(g) + slot;
            if (position >= length || (gap.first <= position && position < gap.last)) {
              auto& there = memory_.try_emplace(place(g, block, slot), g, no_row).first->second;
              there = there.first == g ? there : std::pair{g, no_row};
            } else {
              memory_[place(g, block, slot)] = {g, rows[static_cast<std::size_t>(position)]};
            }
          }
        };
        for (std::size_t i = 0; i < blocks.kept.size(); ++i) {
          write_block(blocks.kept[i], static_cast<Pos>(i));
        }
        for (std::size_t i = 0; i < blocks.rest.size(); ++i) {
          write_block(blocks.rest[i], blocks.first + static_cast<Pos>(i));
        }
      }
    }
  }

  void finish(SeqId seq, ModelSequence& s, const Tokens& tokens, bool tells, const std::optional<Extension>& extension,
              const LimitMet& why) {
    REQUIRE(extension.has_value() == (why.limit == Limit::none));
    if constexpr (is_contiguous) {
      check_room(s, static_cast<Pos>(tokens.size()), why, extension.has_value());
    }
    if (!extension) {
      ++refusals_;
      REQUIRE(policy_.reserved(seq) == s.committed);
      return;
    }
    const auto count = static_cast<Pos>(tokens.size());
    REQUIRE(extension->range == PosRange{s.committed, s.committed + count});
    copy(extension->copies);
    s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
    // Every row of every group is written, and can be read before the commit.
    for (Index g = 0; g < policy_.groups(); ++g) {
      const PosRange range = policy_.extension(seq, g);
      const Pos cross = cross_rows(g);
      REQUIRE(range == (cross > 0 ? PosRange{0, s.has_cross ? 0 : cross} : extension->range));
      const std::vector<Row> rows = rows_of(s, g);
      Pos written = 0;
      policy_.for_each_run(seq, g, range, [&](const SlotRun& run) {
        write(g, run, rows);
        written += run.count;
      });
      REQUIRE(written == range.size());
    }
    write_states(seq, s, s.committed);
    s.extension = {count, s.known == s.committed && tells, std::exchange(s.has_cross, true)};
    s.uncommitted = true;
    check_rows(seq, s);
    if (random_.one_in(16)) {
      check_stats();
    }
    if (always_commits_ || !random_.one_in(4)) {  // otherwise operations on others come first
      complete(seq, s);
    }
  }
  /// Commits an extension, or takes it back.
  void complete(SeqId seq, ModelSequence& s) {
    const Pos count = s.extension.count;
    if (random_.one_in(5) && !always_commits_) {
      without_allocation([&] { policy_.rollback(seq); });
      s.tokens.resize(static_cast<std::size_t>(s.committed));
      s.has_cross = s.extension.had_cross;
      s.uncommitted = false;
      read_states(seq, s);
      return;
    }
    without_allocation([&] { policy_.commit(seq); });
    s.uncommitted = false;
    s.known += s.extension.tells ? count : 0;
    s.committed += count;
    drop(s);
    keep_states(seq, s);
    if (const auto waits = std::ranges::find(waiting_, seq, &std::pair<SeqId, Tokens>::first);
        waits != waiting_.end()) {
      waits->second.erase(waits->second.begin(),
                          waits->second.begin() + std::min<std::ptrdiff_t>(count, std::ssize(waits->second)));
    }
  }

  // --- recurrent states ----------------------------------------------------------------------------------------------

  [[nodiscard]] bool has_states() const { return !rules_.states.empty(); }
  /// The lengths of which the policy says that there are states.
  void read_states(SeqId seq, ModelSequence& s) const {
    if constexpr (HoldsStates<P>) {
      const std::span<const Pos> lengths = policy_.state_lengths(seq);
      s.states.assign(lengths.begin(), lengths.end());
    }
  }
  /// f(place, row) for the blocks of all states after `length` tokens.
  template <class F>
  void for_each_state(SeqId seq, const ModelSequence& s, Pos length, F&& f) const {
    if constexpr (HoldsStates<P>) {
      const Row row = rows_of(s.salt, std::span(s.tokens).first(static_cast<std::size_t>(length))).back();
      for (std::size_t kind = 0; kind < rules_.states.size(); ++kind) {
        std::int64_t number = 0;
        for (const BlockId block : policy_.state_blocks(seq, static_cast<Index>(kind), length)) {
          const auto column = static_cast<Index>(rules_.groups.size() + kind);
          f(place(column, block, 0), std::pair{column, next_row(row, ++number)});
        }
      }
    }
  }
  /// Writes the states of lengths above `committed`.
  void write_states(SeqId seq, ModelSequence& s, Pos committed) {
    read_states(seq, s);
    for (const Pos length : s.states) {
      if (length > committed) {
        for_each_state(seq, s, length, [&](std::uint64_t place, const auto& row) { memory_[place] = row; });
      }
    }
  }
  /// After a commit there are the states of the length that the sequence can be cut back to, or of the last one before,
  /// and those above it. There may be others of before.
  void keep_states(SeqId seq, ModelSequence& s) {
    if (!has_states()) {
      return;
    }
    const std::vector<Pos> before = s.states;
    read_states(seq, s);
    const auto newest = std::ranges::upper_bound(before, std::max(s.committed - rules_.rewind, 0));
    for (auto at = newest == before.begin() ? newest : std::prev(newest); at != before.end(); ++at) {
      REQUIRE(std::ranges::binary_search(s.states, *at));
    }
    REQUIRE(std::ranges::includes(before, s.states));
  }

  void drop(ModelSequence& s) {
    for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
      const Pos first = rules_.groups[g].retained.first_seen(std::max(s.committed - rules_.rewind, 0));
      dropped_ += first > s.from[g] ? 1 : 0;
      s.from[g] = std::max(s.from[g], first);
    }
  }

  /// Whether Contiguous found room for `count` positions more, and the reason if not, are right.
  void check_room(const ModelSequence& s, Pos count, const LimitMet& why, bool found) const {
    const Contiguous::Config& config = policy_.config();
    if (s.committed + count > s.most) {
      REQUIRE(why == LimitMet{Limit::max_tokens, s.most, s.committed + count});
      return;
    }
    Index fits = max_pos;
    bool may_refuse = false;
    for (Index g = 0; g < policy_.groups(); ++g) {
      const auto at = static_cast<std::size_t>(g);
      const Retained& rule = rules_.groups[at].retained;
      const Index rows = retained_positions(rules_.groups[at], s.from[at], positions(s, g));
      if (cross_rows(g) == 0) {
        fits = std::min(fits, most_slots(config, rules_, at, s) - rows);
      }
      may_refuse = may_refuse || policy_.stats(g).largest_free_run <
                                     rows + rule.kept + std::max(count, s.has_cross ? 0 : cross_rows(g));
    }
    if (config.mode == Contiguous::Mode::grow) {
      REQUIRE((found || may_refuse));
      REQUIRE((found || why.limit == Limit::pool || why.limit == Limit::fragmentation));
      REQUIRE((found || (why.needed > why.allowed && why.allowed >= policy_.stats(why.group).largest_free_run)));
      return;
    }
    REQUIRE(found == (count <= fits));
    REQUIRE((found || (why.limit == Limit::pass_tokens && why.allowed == fits && why.needed == count)));
  }

  [[nodiscard]] bool can_end_at(const ModelSequence& s, Pos length) const {
    return rows_can_end_at(s, length) && (!has_states() || length == 0 || std::ranges::binary_search(s.states, length));
  }
  [[nodiscard]] bool rows_can_end_at(const ModelSequence& s, Pos length) const {
    for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
      const Retained& rule = rules_.groups[g].retained;
      if (s.from[g] > rule.kept && length > rule.kept && rule.first_seen(length) < s.from[g]) {
        return false;
      }
    }
    return true;
  }

  void fork() {
    if (open_.empty() || open_.size() >= 8) {
      return;
    }
    const SeqId parent = any();
    const Pos at = random_.one_in(2) ? model(parent).committed : some_length(model(parent), 0);
    if (!can_end_at(model(parent), at)) {
      REQUIRE_THROWS_AS(policy_.try_fork(parent, at), std::invalid_argument);
      ++refusals_;
      return;
    }
    const LimitMet why = policy_.why_not_fork(parent, at);
    std::optional<Forked> forked;
    with_failures(8, [&] { forked = policy_.try_fork(parent, at); });
    REQUIRE(forked.has_value() == (why.limit == Limit::none));
    if (!forked) {
      ++refusals_;
      return;
    }
    REQUIRE((forked->copies.empty() || !shares));
    copy(forked->copies);
    ModelSequence s = model(parent);
    s.has_cross = s.has_committed_cross();
    s.uncommitted = false;
    s.input = s.has_cross ? s.input : new_input(s.salt);
    s.tokens.resize(static_cast<std::size_t>(at));
    s.committed = at;
    s.known = std::min(s.known, at);
    cut(s, at);
    read_states(forked->seq, s);
    REQUIRE((!has_states() || at == 0 || s.states == std::vector{at}));
    open_.emplace_back(forked->seq, s);
  }
  /// A committed length from `least` on; with recurrent layers often one of which there are states.
  [[nodiscard]] Pos some_length(const ModelSequence& s, Pos least) {
    if (has_states() && !s.states.empty() && !random_.one_in(4)) {
      return std::min(s.states[random_.between<std::size_t>(0, s.states.size() - 1)], s.committed);
    }
    return random_.between(least, s.committed);
  }
  void truncate() {
    if (open_.empty()) {
      return;
    }
    const SeqId seq = any();
    ModelSequence& s = model(seq);
    const Pos length = some_length(s, std::max(0, s.committed - random_.between(0, 12)));
    if (s.uncommitted || !can_end_at(s, length)) {
      const Stats before = policy_.stats();
      REQUIRE_THROWS_AS(policy_.truncate(seq, length), std::invalid_argument);
      REQUIRE(policy_.length(seq) == s.committed);
      REQUIRE(policy_.stats().blocks_referenced == before.blocks_referenced);
      ++refusals_;
      return;
    }
    without_allocation([&] { policy_.truncate(seq, length); });
    s.tokens.resize(static_cast<std::size_t>(length));
    s.committed = length;
    s.known = std::min(s.known, length);
    cut(s, length);
    std::erase_if(s.states, [&](Pos at) { return at > length; });
    std::erase_if(waiting_, [&](const auto& w) { return w.first == seq; });
  }
  void cut(ModelSequence& s, Pos length) const {
    for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
      if (length <= rules_.groups[g].retained.kept) {
        s.from[g] = 0;
      }
    }
  }
  void close() {
    if (open_.empty()) {
      return;
    }
    close(any());
  }
  void close(SeqId seq) {
    without_allocation([&] { policy_.close(seq); });
    std::erase_if(open_, [&](const auto& s) { return s.first == seq; });
    std::erase_if(waiting_, [&](const auto& w) { return w.first == seq; });
  }
  void clear() {
    if constexpr (finds_prefixes) {
      if (random_.one_in(30)) {
        without_allocation([&] { policy_.clear(); });
        for (auto& [seq, s] : open_) {
          s.known = 0;
          s.extension.tells = false;
        }
        for (Expected& expected : expected_) {
          expected.is_cleared = true;
        }
        for (Pin& pin : pins_) {
          pin.is_cleared = true;
        }
      }
    }
  }

  void pin() {
    if constexpr (finds_prefixes) {
      if (!pins_.empty() && random_.one_in(2)) {
        const auto at = pins_.begin() + random_.between<std::ptrdiff_t>(0, std::ssize(pins_) - 1);
        without_allocation([&] { policy_.unpin(at->pin.pin); });
        pins_.erase(at);
        return;
      }
      if (pins_.size() >= 3) {
        return;
      }
      const Tokens prefix = make_prompt();
      const OpenOptions options = make_options();
      const Tree tree = index_of(policy_);
      const auto whole = prefix.size() - prefix.size() % static_cast<std::size_t>(tree.node_tokens);
      const Pos expected =
          longest_hit(policy_, tree, options.salt.bytes(), std::span<const Token>(prefix).first(whole));
      std::optional<PrefixPin> pinned;
      with_failures(8, [&] { pinned = policy_.try_pin(prefix, options.salt); });
      REQUIRE((pinned ? pinned->tokens : 0) == expected);
      if (pinned) {
        pins_.push_back({*pinned, Tokens(prefix.begin(), prefix.begin() + expected), options, false});
      }
    }
  }
  void publish() {
    if constexpr (finds_prefixes) {
      for (auto& [seq, s] : open_) {
        if (s.known > 0 || s.committed == 0 || s.uncommitted) {
          continue;
        }
        const Pos count = random_.one_in(3) ? random_.between(0, s.committed) : s.committed;
        const std::span<const Token> tokens = std::span<const Token>(s.tokens).first(static_cast<std::size_t>(count));
        with_failures(3, [&, seq = seq] { policy_.publish_tokens(seq, tokens); });
        s.known = count;
        drop(s);
        return;
      }
    }
  }
  /// A prefix whose rows come from elsewhere: nobody finds it before it has arrived.
  void expect() {
    if constexpr (finds_prefixes) {
      if (!expected_.empty() && random_.one_in(2)) {
        const auto at = expected_.begin() + random_.between<std::ptrdiff_t>(0, std::ssize(expected_) - 1);
        const Expected expected = *at;
        expected_.erase(at);
        if (open_.size() < 8 && random_.one_in(3)) {
          open_expected(expected);
        }
        if (random_.one_in(2)) {
          bool arrived = false;
          with_failures(3, [&] { arrived = policy_.arrive(expected.pin, expected.sequence.tokens); });
          REQUIRE(arrived == (expected.is_due && !expected.is_cleared));
          // In an index that is full not all nodes find their place.
          const Tree tree = index_of(policy_);
          const bool is_found = longest_hit(policy_, tree, expected.sequence.salt, expected.sequence.tokens) ==
                                expected.sequence.committed;
          REQUIRE((is_found || expected.is_cleared || 2 * std::ssize(tree.nodes) > policy_.nodes()));
          pins_.push_back({{expected.pin, expected.sequence.committed},
                           expected.sequence.tokens,
                           expected.options,
                           expected.is_cleared || !is_found});
          return;
        }
        without_allocation([&] { policy_.unpin(expected.pin); });
        return;
      }
      Tokens prefix = make_prompt();
      const auto node_tokens = static_cast<std::size_t>(policy_.node_tokens());
      prefix.resize(prefix.size() - prefix.size() % node_tokens);
      if (has_cross() || expected_.size() + pins_.size() >= 4 || prefix.empty()) {
        return;
      }
      Expected expected{{}, make_options(), {}};
      ModelSequence& s = expected.sequence;
      s.tokens = prefix;
      s.committed = static_cast<Pos>(prefix.size());
      s.salt = expected.options.salt.bytes();
      s.input = new_input(s.salt);
      const Seen before = seen();
      std::optional<ExpectedPrefix> pinned;
      with_failures(12, [&] { pinned = policy_.try_expect(prefix, expected.options.salt); });
      if (!pinned) {
        ++refusals_;
        REQUIRE(seen() == before);
        return;
      }
      expected.pin = pinned->pin;
      expected.is_due = pinned->cached < s.committed;
      policy_.for_each_expected(pinned->pin, [&](const ExpectedBlock& e) {
        if (e.column >= policy_.groups()) {
          const Row row = rows_of(s.salt, s.tokens).back();
          std::int64_t number = 0;
          for (const BlockId block : e.blocks) {
            memory_[place(e.column, block, 0)] = {e.column, next_row(row, ++number)};
          }
          return;
        }
        const std::vector<Row> rows = rows_of(s, e.column);
        for (Pos p = e.first; p < e.last; ++p) {
          memory_[place(e.column, e.blocks[0], p - e.first)] = {e.column, rows[static_cast<std::size_t>(p)]};
        }
      });
      expected_.push_back(expected);
    }
  }
  void open_expected(const Expected& expected) {
    SeqId seq{};
    with_failures(8, [&] { seq = policy_.open_expected(expected.pin); });
    ModelSequence s = expected.sequence;
    read_states(seq, s);
    s.has_cross = has_cross();
    s.known = expected.is_due || expected.is_cleared ? 0 : s.committed;
    for (Index g = 0; g < policy_.groups(); ++g) {
      const GroupRule& rule = rules_.groups[static_cast<std::size_t>(g)];
      const Pos seen = expected.is_due
                           ? rule.retained.first_seen(s.committed) / policy_.block_tokens(g) * policy_.block_tokens(g)
                           : 0;
      const Pos kept =
          static_cast<Pos>(ceil_div(rule.retained.kept, policy_.block_tokens(g))) * policy_.block_tokens(g);
      const Pos gone = rule.retained.everything() || seen <= kept ? 0 : seen;
      const Pos from =
          std::max(rule.retained.first_seen(std::max(s.committed - (expected.is_due ? rules_.rewind : 0), 0)), gone);
      s.from.push_back(from > rule.retained.kept ? from : 0);
    }
    open_.emplace_back(seq, s);
  }

  /// An admitted request runs to its end; one that is never admitted does not run even alone.
  void admit() {
    if constexpr (finds_prefixes) {
      if (open_.size() >= 8) {
        return;
      }
      const Tokens prompt = make_prompt();
      const Pos reserve = random_.one_in(3) ? 0 : random_.between(1, 30);
      const OpenOptions options = make_options();
      const Admission admission = policy_.admission(prompt, reserve, options);
      const auto run = [&](SeqId seq, Pos length, auto extend_by) {
        const auto end = static_cast<Pos>(prompt.size());
        while (length < end + reserve) {
          const Pos pass = policy_.config().pass_tokens;
          const Pos count = length >= end ? 1 : pass > 0 ? std::min(pass, end - length) : end - length;
          Tokens tokens;
          for (Pos p = length; p < length + count; ++p) {
            tokens.push_back(p < end ? prompt[static_cast<std::size_t>(p)] : random_.between(0, 2));
          }
          if (!extend_by(seq, tokens)) {
            return false;
          }
          length += count;
        }
        return true;
      };
      const auto extend_here = [&](SeqId to, const Tokens& tokens) {
        const auto count = static_cast<Pos>(tokens.size());
        const LimitMet why = policy_.why_not_extend(to, count);
        const auto extension = policy_.try_extend(to, count, tokens);
        finish(to, model(to), tokens, true, extension, why);
        return extension.has_value();
      };
      CAPTURE(prompt.size(), reserve, policy_.config().pass_tokens, policy_.config().watermark);
      if (admission == Admission::now) {
        ++admitted_;
        const SeqId seq = *open(prompt, options);
        std::erase_if(waiting_, [&](const auto& w) { return w.first == seq; });
        always_commits_ = true;
        REQUIRE(run(seq, policy_.length(seq), extend_here));
        always_commits_ = false;
        if (random_.one_in(2)) {
          close(seq);
        }
      } else if (admission == Admission::later) {
        REQUIRE(policy_.available() < policy_.blocks());  // there is something to wait for
      } else {
        ++never_;
        auto config = policy_.config();
        config.blocks -= config.watermark;
        config.watermark = 0;
        P alone(config, rules_);
        // Where nobody holds a block, that of this policy: waiting would not help.
        if (has_states()) {  // it counts more states than every sequence has
          return;
        }
        if (policy_.available() == policy_.blocks()) {
          if (policy_.config().watermark > 0) {
            return;
          }
          const SeqId seq = *open(prompt, options);
          std::erase_if(waiting_, [&](const auto& w) { return w.first == seq; });
          always_commits_ = true;
          REQUIRE_FALSE(run(seq, policy_.length(seq), extend_here));
          always_commits_ = false;
          return;
        }
        const SeqId seq = alone.try_open(prompt, options)->seq;
        REQUIRE_FALSE(run(seq, 0, [&](SeqId to, const Tokens& tokens) {
          if (!alone.try_extend(to, static_cast<Pos>(tokens.size()), tokens)) {
            return false;
          }
          alone.commit(to);
          return true;
        }));
      }
    }
  }

  /// Ends of operations must not fail, so they must not allocate. (A listener may.)
  template <class F>
  void without_allocation(F&& f) {
    if constexpr (emits_events) {
      f();
    } else {
      bool failed = false;
      {
        const kvc_test::FailAllocation fail(0);
        f();
        failed = fail.failed();
      }
      REQUIRE_FALSE(failed);
    }
  }

  /// Where a row lies: in blocks that groups share, or in a pool of the group.
  [[nodiscard]] static std::uint64_t place(Index group, BlockId block, Pos slot) {
    return static_cast<std::uint64_t>(shares ? 0 : group) << 56 | static_cast<std::uint64_t>(block) << 28 |
           static_cast<std::uint64_t>(slot);
  }
  void write(Index group, const SlotRun& run, const std::vector<Row>& rows) {
    for (Pos i = 0; i < run.count; ++i) {
      memory_[place(group, run.block, run.offset + i)] = {group, rows.at(static_cast<std::size_t>(run.first + i))};
    }
  }
  void copy(std::span<const RowCopy> copies) {
    for (const RowCopy& c : copies) {
      for (Pos i = 0; i < c.count; ++i) {
        const auto from = memory_.find(place(c.group, c.from, c.from_slot + i));
        REQUIRE(from != memory_.end());
        REQUIRE(from->second.first == c.group);
        memory_[place(c.group, c.to, c.to_slot + i)] = from->second;
      }
    }
  }

  void check_rows(SeqId seq, const ModelSequence& s) {
    Pos least = 0;
    for (Index g = 0; g < policy_.groups(); ++g) {
      least = std::max(least, policy_.retained_from(seq, g));
      const auto length = positions(s, g);
      REQUIRE(policy_.positions(seq, g) == length);
      // One check for all rows of a group: a check of Catch takes longer than all else here.
      const GroupRule& rule = rules_.groups[static_cast<std::size_t>(g)];
      const Pos from = s.from[static_cast<std::size_t>(g)];
      const std::vector<Row> rows = rows_of(s, g);
      std::vector<int> seen(static_cast<std::size_t>(length), 0);
      Pos wrong_row = no_position, wrong_position = no_position;
      policy_.for_each_run(seq, g, {0, length}, [&](const SlotRun& run) {
        REQUIRE(run.offset + run.count <= policy_.block_tokens(g));
        REQUIRE((0 <= run.first && run.first + run.count <= length));
        for (Pos i = 0; i < run.count; ++i) {
          const auto position = static_cast<std::size_t>(run.first + i);
          const auto row = memory_.find(place(g, run.block, run.offset + i));
          if (row == memory_.end() || row->second != std::pair{g, rows[position]}) {
            wrong_row = run.first + i;
          }
          ++seen[position];
        }
      });
      for (Pos p = 0; p < length; ++p) {
        if (seen[static_cast<std::size_t>(p)] != (is_retained(rule, from, p) ? 1 : 0)) {
          wrong_position = p;
        }
      }
      CAPTURE(g);
      REQUIRE(wrong_row == no_position);       // it has the row of another prefix, or of another group
      REQUIRE(wrong_position == no_position);  // it is there and should not be, or the other way round
    }
    REQUIRE(least <= s.committed);
    for (Pos length = least; length <= s.committed; ++length) {
      if (!rows_can_end_at(s, length)) {  // and truncate and fork do what it says
        CAPTURE(length);
        REQUIRE(rows_can_end_at(s, length));
      }
    }
    if constexpr (finds_prefixes) {
      const Tokens known = policy_.known_tokens(seq);
      const Pos more = s.uncommitted && s.extension.tells ? s.extension.count : 0;
      REQUIRE(known == Tokens(s.tokens.begin(), s.tokens.begin() + s.known + more));
    }
    if (has_states()) {
      check_states(seq, s);
    }
  }
  void check_states(SeqId seq, const ModelSequence& s) {
    ModelSequence now = s;
    read_states(seq, now);
    REQUIRE(now.states == s.states);
    REQUIRE((s.tokens.empty() ? s.states.empty() : s.states.back() == std::ssize(s.tokens)));
    for (const Pos length : s.states) {
      bool is_right = true;
      for_each_state(seq, s, length, [&](std::uint64_t place, const auto& row) {
        const auto found = memory_.find(place);
        is_right = is_right && found != memory_.end() && found->second == row;
      });
      CAPTURE(length);
      REQUIRE(is_right);
    }
  }
  void check_stats() {
    const Stats all = policy_.stats();
    REQUIRE(all.blocks_free + all.blocks_cached + all.blocks_referenced == all.blocks_total);
    REQUIRE(all.tokens_stored <= all.tokens_reserved);
    Stats sum;
    for (Index g = 0; g < policy_.groups(); ++g) {
      const Stats one = policy_.stats(g);
      REQUIRE(one.block_tokens == (is_contiguous ? 1 : policy_.block_tokens(g)));
      REQUIRE(one.tokens_reserved == one.blocks_referenced * one.block_tokens);
      sum.blocks_cached += one.blocks_cached;
      sum.blocks_referenced += one.blocks_referenced;
      sum.tokens_stored += one.tokens_stored;
      sum.tokens_reserved += one.tokens_reserved;
    }
    if (!has_states()) {  // those are of no group
      REQUIRE(sum.blocks_cached == all.blocks_cached);
      REQUIRE(sum.blocks_referenced == all.blocks_referenced);
      REQUIRE(sum.tokens_reserved == all.tokens_reserved);
    }
    REQUIRE(sum.tokens_stored == all.tokens_stored);
  }
  void check_events() {
    if constexpr (emits_events) {
      while (const auto event = policy_.events().poll()) {
        mirror_.apply(*event);
      }
      std::multiset<Mirror::Stored> listed;
      policy_.for_each_cached([&](const BlockStored& stored) {
        listed.emplace(stored.block, stored.group, std::string(stored.salt),
                       Tokens(stored.tokens.begin(), stored.tokens.end()));
      });
      REQUIRE(listed == mirror_.stored());
    }
  }
  void check_pins() {
    if constexpr (finds_prefixes) {
      REQUIRE(policy_.stats().pins == std::ssize(pins_) + std::ssize(expected_));
      for (const Pin& pin : pins_) {
        if (!pin.is_cleared) {
          Tokens prompt = pin.tokens;
          prompt.push_back(99);
          REQUIRE(policy_.match_length(prompt, pin.options) == std::ssize(pin.tokens));
        }
      }
    }
  }

  void check() {
    policy_.verify();
    check_stats();
    check_events();
    check_pins();
    const Stats stats = policy_.stats();
    REQUIRE(stats.sequences == std::ssize(open_));
    Index bound = 0;
    for (auto& [seq, s] : open_) {
      REQUIRE(policy_.length(seq) == s.committed);
      check_rows(seq, s);
      for (Index g = 0; g < policy_.groups(); ++g) {
        const auto at = static_cast<std::size_t>(g);
        const Index rows = retained_positions(rules_.groups[at], s.from[at], positions(s, g));
        if constexpr (is_contiguous) {
          const Index slots = most_slots(policy_.config(), rules_, at, s);
          const Pos growth = policy_.config().growth_tokens;
          const bool moves = s.uncommitted && policy_.config().mode == Contiguous::Mode::grow;  // and is in two places
          bound += moves ? 2 * slots + ceil_div(s.extension.count, growth) * growth : slots;
          continue;
        }
        bound += s.uncommitted ? 1 : 0;  // the shared block that it has copied
        bound += ceil_div(rows, Index{policy_.block_tokens(g)}) + partial_blocks(rules_.groups[at], finds_prefixes);
      }
    }
    for (const Expected& expected : expected_) {
      bound += blocks_of_prefix(expected.sequence.committed);
    }
    for (const Pin& pin : pins_) {
      bound += blocks_of_prefix(static_cast<Pos>(pin.tokens.size()));
    }
    REQUIRE((has_states() || stats.blocks_referenced <= bound));
  }
  /// The most blocks that a pin holds.
  [[nodiscard]] Index blocks_of_prefix(Pos length) const {
    Index blocks = 0;
    for (Index g = 0; g < policy_.groups(); ++g) {
      const GroupRule& rule = rules_.groups[static_cast<std::size_t>(g)];
      const Index rows = rule.cross_rows > 0 ? Index{rule.cross_rows} : seen_positions(rule.retained, length);
      blocks += ceil_div(rows, Index{policy_.block_tokens(g)}) + partial_blocks(rule, false);
    }
    return blocks;
  }

  struct Pin {
    PrefixPin pin;
    Tokens tokens;
    OpenOptions options;
    bool is_cleared;
  };

  Random& random_;
  P policy_;
  GroupRules rules_;
  std::vector<Pin> pins_;
  std::vector<Expected> expected_;
  Mirror mirror_;
  bool always_commits_ = false;
  std::vector<std::pair<SeqId, ModelSequence>> open_;
  std::vector<std::pair<SeqId, Tokens>> waiting_;
  std::vector<Tokens> prompts_;
  std::unordered_map<std::uint64_t, std::pair<Index, Row>> memory_;  // of each place: whose row it is, and which
  std::uint64_t inputs_ = 0;
  Index hits_ = 0, refusals_ = 0, dropped_ = 0, failures_ = 0, restored_ = 0, admitted_ = 0, never_ = 0;
};

GroupRules random_rules(Random& random, bool has_states) {
  GroupRules rules{{}, random.one_in(2) ? 0 : random.between(1, 5)};
  const int groups = random.between(1, 3);
  for (int g = 0; g < groups; ++g) {
    GroupRule rule;
    switch (random.between(0, 4)) {
      case 0:
        break;
      case 1:
        rule.retained.chunk = random.between(1, 12);
        break;
      default:
        rule.retained.window = random.between(1, 14);
    }
    if (!rule.retained.everything() && random.one_in(3)) {
      rule.retained.kept = random.between(1, 6);
    }
    rule.row_weight = random.one_in(2) ? 1 : random.between(1, 6);
    rules.groups.push_back(rule);
  }
  if (rules.is_plain()) {
    rules.groups[0].retained.window = 4;
  }
  if (random.one_in(4)) {
    rules.groups.insert(rules.groups.begin() + random.between(0, groups), {{}, random.between(1, 9), 1});
  }
  if (has_states && random.one_in(4)) {
    for (int kind = random.between(1, 2); kind > 0; --kind) {
      rules.states.push_back({random.between(1, 3), random.between(1, 6)});
    }
  }
  return rules;
}

std::string text(const GroupRules& rules) {
  std::string text = "rewind " + std::to_string(rules.rewind);
  for (const GroupRule& rule : rules.groups) {
    text += "; window " + std::to_string(rule.retained.window) + " chunk " + std::to_string(rule.retained.chunk) +
            " kept " + std::to_string(rule.retained.kept) + " weight " + std::to_string(rule.row_weight) + " cross " +
            std::to_string(rule.cross_rows);
  }
  for (const StateRule& rule : rules.states) {
    text += "; states of " + std::to_string(rule.layers) + " layers, weight " + std::to_string(rule.weight);
  }
  return text;
}

template <class P>
typename P::Config blocks_config(Random& random) {
  typename P::Config config{};
  config.block_tokens = random.between(1, 6);
  config.blocks = random.between(8, 60);
  if constexpr (KnowsTokens<P>) {
    config.index_tokens = random.one_in(4) ? random.between(20, 200) : 0;
    config.tenant_quota = random.one_in(4) ? random.between(1, 10) : 0;
    config.watermark = random.one_in(4) ? random.between(Index{1}, Index{5}) : 0;
    config.pass_tokens = random.one_in(2) ? random.between(1, 10) : 0;
  }
  return config;
}

template <Contiguous::Mode mode>
Contiguous::Config regions_config(Random& random) {
  Contiguous::Config config{.sequences = random.between(1, 8), .max_tokens = random.between(10, 90), .mode = mode};
  config.pool_tokens = random.one_in(2) ? 0 : random.between(config.max_tokens / 2, 5 * config.max_tokens);
  config.fit = random.one_in(2) ? Contiguous::Fit::first : Contiguous::Fit::best;
  config.growth_tokens = random.between(1, 6);
  config.pass_tokens = random.one_in(3) ? 0 : random.between(1, 30);
  return config;
}

std::string text(const Contiguous::Config& config) {
  return std::to_string(config.sequences) + " sequences of " + std::to_string(config.max_tokens) + ", pool " +
         std::to_string(config.pool_tokens) + ", growth " + std::to_string(config.growth_tokens) + ", pass " +
         std::to_string(config.pass_tokens) + ", fit " + std::to_string(static_cast<int>(config.fit));
}
template <class Config>
std::string text(const Config& config) {
  return std::to_string(config.blocks) + " blocks of " + std::to_string(config.block_tokens);
}

/// Counts how often it is asked: once for each node that a prompt is compared with, or that is added.
struct CountingHash : kvc_test::SeededHash {
  static inline thread_local Index calls = 0;
  std::uint64_t operator()(std::uint64_t parent, std::span<const Token> tokens) const noexcept {
    ++calls;
    return kvc_test::SeededHash::operator()(parent, tokens);
  }
};

/// What operations take, in counts that depend neither on the processor nor on the time.
struct Cost {
  std::size_t allocated = 0;  // bytes
  Index hashes = 0;           // by CountingHash
  std::size_t events = 0;
  Index in_tables = 0;  // blocks
  Index referenced = 0;
  Index cached = 0;
  bool operator==(const Cost&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Cost& cost) {
  return out << cost.allocated << " bytes, " << cost.hashes << " hashes, " << cost.events << " events, "
             << cost.in_tables << " blocks in tables, " << cost.referenced << " referenced, " << cost.cached
             << " cached";
}

/// A sequence whose groups all drop blocks, beside a cached prompt.
template <class P>
class DroppingSequence {
 public:
  static constexpr bool emits_events = requires(P& p) {
    { p.events() } -> std::same_as<EventRing&>;
  };
  static constexpr Pos block_tokens = 4;
  static constexpr Pos period = 32;  // after so many tokens, windows and chunks lie in blocks as before

  explicit DroppingSequence(const typename P::Config& config)
      : policy_(config, {{{{16, 0, 0}, 0, 1}, {{8, 0, 4}, 0, 1}, {{0, 32, 0}, 0, 1}}, 4}) {
    (void)policy_.try_extend(seq_, 8, prompt(-100));
    policy_.commit(seq_);
    policy_.close(seq_);
    seq_ = policy_.try_open()->seq;
  }

  void verify() const { policy_.verify(); }
  /// Returns how many bytes it has allocated.
  std::size_t append_until_dropped(Index blocks) {
    const std::size_t allocated = kvc_test::allocated_bytes();
    while (policy_.group_blocks(seq_, 0).first < blocks) {
      append(period);
    }
    return kvc_test::allocated_bytes() - allocated;
  }
  [[nodiscard]] std::vector<Cost> costs() {
    const Pos length = policy_.length(seq_);
    REQUIRE(length % period == 0);
    std::vector<Cost> costs;
    costs.push_back(cost([&] { append(period); }));
    for (const Pos at : {length + period, length + period - 3}) {
      std::optional<Forked> forked;
      costs.push_back(cost([&] { forked = policy_.try_fork(seq_, at); }));
      costs.push_back(cost([&] { policy_.close(forked->seq); }));
    }
    costs.push_back(cost([&] { policy_.truncate(seq_, length + period - 4); }));
    costs.push_back(cost([&] { append(4); }));
    if constexpr (MatchesPrefixes<P>) {
      for (const Token first : {-100, 0}) {  // another prompt; the beginning of this sequence, where the two part
        const Tokens tokens = prompt(first);
        Pos found = 0;
        costs.push_back(cost([&] { found = policy_.match_length(tokens); }));
        REQUIRE(found == (first < 0 ? 7 : 4));
        std::optional<Opened> opened;
        costs.push_back(cost([&] { opened = policy_.try_open(tokens); }));
        costs.push_back(cost([&] { policy_.close(opened->seq); }));
      }
    }
    return costs;
  }

 private:
  [[nodiscard]] static Tokens prompt(Token first) {
    Tokens tokens(8);
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
  }
  void append(Pos count) {
    for (; count > 0; --count) {
      const Token next = policy_.length(seq_);
      if (!policy_.try_extend(seq_, 1, std::span(&next, 1))) {
        FAIL("no room for position " << next);  // a check that passes would allocate
      }
      policy_.commit(seq_);
    }
  }
  template <class F>
  Cost cost(F&& f) {
    Cost cost;
    const Index hashes = CountingHash::calls;
    const std::size_t events = events_so_far(), allocated = kvc_test::allocated_bytes();
    f();
    cost.allocated = emits_events ? 0 : kvc_test::allocated_bytes() - allocated;
    cost.hashes = CountingHash::calls - hashes;
    cost.events = events_so_far() - events;
    for (Index g = 0; g < policy_.groups(); ++g) {
      const GroupBlocks blocks = policy_.group_blocks(seq_, g);
      cost.in_tables += std::ssize(blocks.kept) + std::ssize(blocks.rest);
    }
    const Stats stats = policy_.stats();
    cost.referenced = stats.blocks_referenced;
    cost.cached = stats.blocks_cached;
    return cost;
  }
  std::size_t events_so_far() {
    if constexpr (emits_events) {
      return policy_.events().size() + policy_.events().lost();
    } else {
      return 0;
    }
  }

  P policy_;
  SeqId seq_ = policy_.try_open()->seq;
};

template <class P>
void run_model(std::uint64_t fixed, int operations, typename P::Config (*make_config)(Random&)) {
  const std::uint64_t seed = kvc_test::seed_or(fixed);
  CAPTURE(seed);
  Random random(seed);
  Index hits = 0, refusals = 0, dropped = 0, restored = 0, admitted = 0, never = 0;
  for (int done = 0; done < operations;) {
    const GroupRules rules = random_rules(random, !GroupModel<P>::is_contiguous);
    const typename P::Config config = make_config(random);
    CAPTURE(text(rules), text(config));
    GroupModel<P> model(random, config, rules);
    for (int i = 0; i < 500 && done < operations; ++i, ++done) {
      CAPTURE(i);
      model.step();
    }
    hits += model.hits();
    refusals += model.refusals();
    dropped += model.dropped();
    restored += model.restored();
    admitted += model.admitted();
    never += model.never();
  }
  CHECK(dropped > operations / 50);
  CHECK(restored > operations / 300);
  CHECK(refusals > operations / 200);
  if (GroupModel<P>::finds_prefixes) {
    CHECK(hits > operations / 100);
    CHECK(admitted > operations / 200);
    CHECK((never > 0 || operations < 10'000));
  }
}

}  // namespace

TEST_CASE("Paged with random layer groups does what sets of positions do") {
  run_model<Paged>(4711, kvc_test::operations_or(20'000), blocks_config<Paged>);
}

TEST_CASE("Contiguous with random layer groups does what sets of positions do, with all slots taken at open") {
  run_model<Contiguous>(4713, kvc_test::operations_or(20'000), regions_config<Contiguous::Mode::reserve>);
}

TEST_CASE("Contiguous with random layer groups does what sets of positions do, with regions that grow and move") {
  run_model<Contiguous>(4714, kvc_test::operations_or(20'000), regions_config<Contiguous::Mode::grow>);
}

TEST_CASE("PrefixShared with random layer groups finds the longest valid hit, and no wrong row") {
  run_model<PrefixShared<Lru>>(4712, kvc_test::operations_or(100'000), blocks_config<PrefixShared<Lru>>);
}

TEMPLATE_TEST_CASE("PrefixShared with layer groups is right with other evictions, with hashes that collide, and events",
                   "", (PrefixShared<kvc_test::Mru, CountingHash, EventRing>),
                   (PrefixShared<ReuseHazard, kvc_test::SeededHash, EventRing>),
                   (PrefixShared<Priority, kvc_test::ConstantHash>)) {
  run_model<TestType>(4713, kvc_test::operations_or(20'000), blocks_config<TestType>);
}

TEMPLATE_TEST_CASE("Nothing that append or match or fork take grows with the number of dropped blocks", "", Paged,
                   PrefixShared<Lru>, (PrefixShared<kvc_test::Mru, CountingHash, EventRing>)) {
  typename TestType::Config config{};
  config.blocks = 64;
  config.block_tokens = DroppingSequence<TestType>::block_tokens;
  if constexpr (KnowsTokens<TestType>) {
    config.index_tokens = 100'000;  // of the sequence: its nodes stay, their blocks do not
  }
  const auto costs_after = [&](Index dropped) {
    DroppingSequence<TestType> sequence(config);
    sequence.append_until_dropped(50);
    (void)sequence.costs();  // what is used for the first time takes memory
    const std::size_t allocated = sequence.append_until_dropped(dropped);
    if (!DroppingSequence<TestType>::emits_events) {  // events that wait take memory
      CHECK(allocated == 0);
    }
    std::vector<Cost> costs = sequence.costs();
    sequence.verify();
    return costs;
  };
  CHECK(costs_after(100) == costs_after(10'000));
}
