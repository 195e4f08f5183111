// BlockTable is kept from step to step, and always equals the table that is built anew.
#include "kvc/interop/block_table.hpp"

#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "kvc/batch.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "random_source.hpp"

namespace block_table_test {
namespace {
using namespace kvc;
using kvc::interop::BlockTable;
using kvc::interop::EntryRange;
using kvc_test::contains;
using Ints = std::vector<std::int32_t>;

std::int32_t block(const Paged& policy, SeqId seq, std::size_t i) {
  return static_cast<std::int32_t>(policy.block_table(seq)[i]);
}
}  // namespace

TEST_CASE("A block table says which entries a step has changed", "[interop]") {
  Paged policy({.blocks = 16, .block_tokens = 4});
  BlockTable table(2, 4);
  REQUIRE(table.entries().size() == 8);
  const SeqId seq = policy.try_open()->seq;
  REQUIRE(table.update(1, policy, seq).empty());
  REQUIRE(policy.try_extend(seq, 6));
  REQUIRE(table.update(1, policy, seq) == EntryRange{0, 2});  // before the commit, for the kernels of the step
  policy.commit(seq);
  REQUIRE(table.update(1, policy, seq).empty());
  REQUIRE(policy.try_extend(seq, 3));
  REQUIRE(table.update(1, policy, seq) == EntryRange{2, 3});
  policy.commit(seq);
  REQUIRE(Ints(table.entries().begin(), table.entries().end()) ==
          Ints{-1, -1, -1, -1, block(policy, seq, 0), block(policy, seq, 1), block(policy, seq, 2), -1});
  REQUIRE(Ints(table.seq_lens().begin(), table.seq_lens().end()) == Ints{0, 9});
  policy.truncate(seq, 4);
  REQUIRE(table.update(1, policy, seq) == EntryRange{1, 3});
  REQUIRE(table.entries()[5] == -1);
  REQUIRE(policy.try_extend(seq, 20));
  REQUIRE_THROWS_WITH(table.update(1, policy, seq),
                      contains("blocks of the sequence is 6, must be at most max_blocks of the table"));
  REQUIRE(table.entries()[5] == -1);
  REQUIRE(table.seq_lens()[1] == 4);
  REQUIRE(table.clear(1) == EntryRange{0, 1});
  REQUIRE(Ints(table.entries().begin(), table.entries().end()) == Ints(8, -1));
  REQUIRE_THROWS_WITH(table.update(2, policy, seq), contains("row is 2, must be between 0 and 1"));
  REQUIRE_THROWS_WITH(BlockTable(-1, 4), contains("rows is -1"));
}

TEST_CASE("A block table equals one that is built anew, whatever happens to its sequences", "[interop]") {
  constexpr std::size_t rows = 4;
  PrefixShared<> policy({.blocks = 60, .block_tokens = 4});
  BlockTable table(rows, 30);
  std::vector<SeqId> seqs(rows);
  kvc_test::Random random(17);
  for (SeqId& seq : seqs) {
    seq = policy.try_open()->seq;
  }
  Index written = 0;
  for (int step = 0; step < 2000; ++step) {
    const auto row = static_cast<std::size_t>(random.between(0, static_cast<int>(rows) - 1));
    SeqId& seq = seqs[row];
    const Pos length = policy.length(seq);
    const int what = random.between(0, 9);
    if (what == 0 || length > 100) {
      policy.close(seq);
      const std::vector<Token> prompt(static_cast<std::size_t>(random.between(1, 40)), 1);
      seq = policy.try_open(prompt)->seq;  // found in place, in part
    } else if (what == 1) {
      policy.truncate(seq, random.between(0, static_cast<int>(length)));
    } else if (what == 2) {
      const SeqId from = seqs[static_cast<std::size_t>(random.between(0, static_cast<int>(rows) - 1))];
      if (from != seq) {
        const auto forked = policy.try_fork(from, policy.length(from));
        policy.close(seq);
        seq = forked->seq;
      }
    } else {  // few tokens, so that equal blocks become one when they are committed
      const std::vector<Token> tokens(static_cast<std::size_t>(random.between(1, 6)), random.between(1, 2));
      if (policy.try_extend(seq, static_cast<Pos>(tokens.size()), tokens)) {
        const EntryRange before = table.update(static_cast<Index>(row), policy, seq);
        written += before.last - before.first;
        policy.commit(seq);
      }
    }
    const EntryRange changed = table.update(static_cast<Index>(row), policy, seq);
    written += changed.last - changed.first;
    const std::vector<Pos> none(rows, 0);
    const BatchIndex anew = make_batch(policy, seqs, none);
    for (std::size_t i = 0; i < rows; ++i) {
      REQUIRE(table.seq_lens()[i] == anew.seq_lens[i]);
      for (std::size_t entry = 0; entry < 30; ++entry) {
        REQUIRE(table.entries()[i * 30 + entry] ==
                (static_cast<Index>(entry) < anew.max_blocks
                     ? anew.block_table[i * static_cast<std::size_t>(anew.max_blocks) + entry]
                     : -1));
      }
    }
  }
  REQUIRE(written > 100);
}

}  // namespace block_table_test
