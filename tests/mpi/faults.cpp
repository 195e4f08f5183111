// A failure of a process ends its own transfers only: one scenario, named by the argument, in three processes. The
// survivors check that they reference nothing in the end, and rank 2 prints "all is well".
#include <cstdlib>
#include <functional>
#include <optional>

#include "mpi/engines.hpp"

namespace {
using namespace kvc_mpi_test;

constexpr int judge = 2;  // survives every scenario
constexpr int verdict_tag = 1;

struct World {
  transport::Mpi& transport;
  std::vector<pid_t> process;
  Checks checks;
  [[nodiscard]] int self() const { return transport.self(); }
};

/// Counts of transfers by outcome and peer.
using Counts = std::map<transport::Peer, std::map<transfer::Outcome, int>>;

/// A stalled process is detected after this time, long enough for a slow one on a busy machine.
constexpr auto short_timeout = std::chrono::seconds(4);
constexpr transfer::SenderOptions small_messages{.timeout = patience, .message_bytes = 50000};

class PrefillEngine {
 public:
  explicit PrefillEngine(World& world, std::chrono::nanoseconds timeout = patience)
      : world_(&world),
        cache_(shape, {.blocks = 700, .block_tokens = 16}),
        sender_(cache_, world.transport, {.timeout = timeout, .message_bytes = small_messages.message_bytes}) {}

  /// Computes a sequence and offers it. Without `finish` it cannot be complete, although all rows are sent.
  void begin(std::uint64_t request, transport::Peer to, bool finish = true) {
    const SeqId seq = cache_.open();
    auto step = cache_.extend(seq, length_of(request));
    for (Index layer = 0; layer < shape.layers; ++layer) {
      cache_.write(layer, step, rows(request, layer, true), rows(request, layer, false));
    }
    cache_.commit(std::move(step));
    offer(request, to, seq, finish);
  }
  void offer(std::uint64_t request, transport::Peer to, SeqId seq, bool finish = true) {
    transfer::Offer offer;
    offer.to = to;
    offer.seq = seq;
    offer.request = request;
    id_[request] = sender_.offer(offer);
    if (finish) {
      sender_.finish(id_[request]);
    }
  }
  void cancel(std::uint64_t request) { sender_.cancel(id_[request]); }
  transfer::Sender<KvCache<float, Paged>, transport::Mpi>& sender() { return sender_; }

  /// Polls until all transfers have ended, and closes their sequences. Calls `each` after each poll; offers sequences
  /// again that were refused for lack of room.
  Counts run(const std::function<void()>& each = [] {}) {
    Counts counts;
    const bool in_time = run_until(world_->transport, [&] {
      sender_.poll();
      each();
      while (const auto sent = sender_.next()) {
        ++counts[sent->to][sent->outcome];
        if (sent->outcome == transfer::Outcome::no_room) {
          offer(sent->request, sent->to, sent->seq);
        } else {
          world_->checks.expect(sent->outcome == transfer::Outcome::complete || !sent->reason.empty(), "a reason");
          cache_.close(sent->seq);
        }
      }
      return sender_.transfers() == 0;
    });
    world_->checks.expect(in_time, "the sender is done in time");
    world_->checks.expect_free(cache_);
    return counts;
  }

 private:
  World* world_;
  KvCache<float, Paged> cache_;
  transfer::Sender<KvCache<float, Paged>, transport::Mpi> sender_;
  std::map<std::uint64_t, transfer::Id> id_;
};

class DecodeEngine {
 public:
  explicit DecodeEngine(World& world, std::chrono::nanoseconds timeout = patience, Index blocks = 1500)
      : world_(&world),
        cache_(shape, {.blocks = blocks, .block_tokens = 7}),
        receiver_(cache_, world.transport, {.timeout = timeout}) {}

  /// Polls until `done`; checks and closes the sequences that arrive.
  Counts run(const std::function<bool(const Counts&)>& done, const std::function<void()>& each = [] {}) {
    Counts counts;
    const bool in_time = run_until(world_->transport, [&] {
      receiver_.poll(now(), 100000);
      each();
      while (const auto got = receiver_.next()) {
        ++counts[got->from][got->outcome];
        if (got->outcome == transfer::Outcome::complete) {
          world_->checks.expect(has_rows(cache_, *got), "rows of request " + std::to_string(got->request));
          cache_.close(got->seq);
        } else {
          world_->checks.expect(!got->reason.empty(), "a reason");
        }
      }
      return done(counts);
    });
    world_->checks.expect(in_time, "the receiver is done in time");
    return counts;
  }
  void expect_free() {
    world_->checks.expect(receiver_.transfers() == 0 && receiver_.draining() == 0, "no transfer is in progress");
    world_->checks.expect_free(cache_);
  }
  /// Whether a transfer is in the middle: some rows have arrived, and more are in flight.
  [[nodiscard]] bool is_in_the_middle() {
    middle_ += receiver_.transfers() > 0 && cache_.stats().blocks_referenced > 0 ? 1 : 0;
    return middle_ == 6;
  }
  transfer::Receiver<KvCache<float, PrefixShared<>, TokenMajor>, transport::Mpi>& receiver() { return receiver_; }

 private:
  World* world_;
  KvCache<float, PrefixShared<>, TokenMajor> cache_;
  transfer::Receiver<KvCache<float, PrefixShared<>, TokenMajor>, transport::Mpi> receiver_;
  int middle_ = 0;
};

int count(const Counts& counts, transport::Peer peer, transfer::Outcome outcome) {
  const auto of_peer = counts.find(peer);
  if (of_peer == counts.end() || !of_peer->second.contains(outcome)) {
    return 0;
  }
  return of_peer->second.at(outcome);
}
int all(const Counts& counts, transport::Peer peer) {
  int sum = 0;
  if (const auto of_peer = counts.find(peer); of_peer != counts.end()) {
    for (const auto& [outcome, number] : of_peer->second) {
      sum += number;
    }
  }
  return sum;
}
constexpr auto complete = transfer::Outcome::complete;

void offer_all(PrefillEngine& engine, std::uint64_t first = 0) {
  for (std::uint64_t r = first; r < first + requests; ++r) {
    engine.begin(r, 1 + static_cast<transport::Peer>(r % 2));
  }
}

/// Rank 1 is killed while it receives; rank 0 completes the transfers to the others.
void killed_receiver(World& world) {
  if (world.self() == 0) {
    PrefillEngine engine(world);
    offer_all(engine);
    const Counts counts = engine.run();
    world.checks.expect(count(counts, 2, complete) == requests / 2, "all that rank 2 is to have is complete");
    world.checks.expect(count(counts, 1, transfer::Outcome::peer_lost) > 0, "rank 1 is lost");
    world.checks.expect(all(counts, 1) == requests / 2, "every transfer has ended");
    engine.begin(0, 1);
    const Counts again = engine.run();
    world.checks.expect(count(again, 1, transfer::Outcome::peer_lost) == 1, "what is offered afterwards fails at once");
  } else {
    DecodeEngine engine(world);
    (void)engine.run([&](const Counts& counts) { return count(counts, 0, complete) == requests / 2; },
                     [&] {
                       if (world.self() == 1 && engine.is_in_the_middle()) {
                         raise(SIGKILL);
                       }
                     });
    engine.expect_free();
  }
}

/// Rank 0 is killed while it sends; rank 2 receives everything from rank 1.
void killed_sender(World& world) {
  if (world.self() < 2) {
    PrefillEngine engine(world);
    for (std::uint64_t r = 0; r < requests / 2; ++r) {
      engine.begin(r + requests * static_cast<std::uint64_t>(world.self()), 2);
    }
    const Counts counts = engine.run();  // rank 0 does not return from it
    world.checks.expect(count(counts, 2, complete) == requests / 2, "all transfers of rank 1 are complete");
  } else {
    DecodeEngine engine(world);
    (void)engine.run(
        [&](const Counts& counts) {
          return count(counts, 1, complete) == requests / 2 && count(counts, 0, transfer::Outcome::peer_lost) > 0 &&
                 engine.receiver().transfers() + engine.receiver().draining() == 0;
        },
        [&] {
          if (engine.is_in_the_middle()) {
            kill(world.process[0], SIGKILL);
          }
        });
    world.checks.expect(world.transport.is_lost(0), "rank 0 is lost");
    engine.expect_free();
  }
}

/// Rank 1 is stopped while it receives. It is given up, and notices when it continues.
void stalled_receiver(World& world) {
  if (world.self() == 0) {
    PrefillEngine engine(world, short_timeout);
    offer_all(engine);
    const Counts counts = engine.run();
    world.checks.expect(count(counts, 2, complete) == requests / 2, "all that rank 2 is to have is complete");
    world.checks.expect(count(counts, 1, transfer::Outcome::timed_out) > 0, "rank 1 has timed out");
    world.checks.expect(all(counts, 1) == requests / 2, "every transfer has ended");
    world.checks.expect(!world.transport.is_lost(1), "who has stalled is not lost");
    kill(world.process[1], SIGCONT);
    (void)run_until(world.transport, [&] {  // the cancellations are in flight
      engine.sender().poll();
      return world.transport.is_lost(1);
    });
  } else {
    DecodeEngine engine(world);
    bool stalled = false;
    int calm = 0;
    (void)engine.run(
        [&](const Counts& counts) {
          calm = engine.receiver().transfers() + engine.receiver().draining() == 0 ? calm + 1 : 0;
          return count(counts, 0, complete) == requests / 2 ||
                 (count(counts, 0, transfer::Outcome::cancelled) > 0 && calm > 0);
        },
        [&] {
          if (world.self() == 1 && !stalled && engine.is_in_the_middle()) {
            stalled = true;
            raise(SIGSTOP);
          }
        });
    engine.expect_free();
  }
}

/// Rank 0 is stopped while it sends. It is given up; its blocks are free at the latest when it is killed.
void stalled_sender(World& world) {
  if (world.self() < 2) {
    PrefillEngine engine(world);
    for (std::uint64_t r = 0; r < requests / 2; ++r) {
      engine.begin(r + requests * static_cast<std::uint64_t>(world.self()), 2);
    }
    const Counts counts = engine.run();
    world.checks.expect(count(counts, 2, complete) == requests / 2, "all transfers of rank 1 are complete");
  } else {
    DecodeEngine engine(world, short_timeout);
    const Counts counts = engine.run(
        [&](const Counts& so_far) {
          return count(so_far, 1, complete) == requests / 2 && count(so_far, 0, transfer::Outcome::timed_out) > 0 &&
                 engine.receiver().transfers() == 0;
        },
        [&] {
          if (engine.is_in_the_middle()) {
            kill(world.process[0], SIGSTOP);
          }
        });
    world.checks.expect(count(counts, 0, transfer::Outcome::peer_lost) == 0, "who has stalled is not lost");
    std::cout << "blocks of " << engine.receiver().draining() << " transfers are kept" << std::endl;
    world.transport.drop(0);
    kill(world.process[0], SIGKILL);
    (void)engine.run([&](const Counts&) { return engine.receiver().draining() == 0; });
    engine.expect_free();
  }
}

/// The pool of rank 1 holds one sequence: it refuses the others until there is room.
void full_pool(World& world) {
  if (world.self() == 0) {
    PrefillEngine engine(world);
    offer_all(engine);
    const Counts counts = engine.run();
    for (const transport::Peer peer : {1, 2}) {
      world.checks.expect(count(counts, peer, complete) == requests / 2, "all are complete in the end");
    }
    world.checks.expect(count(counts, 1, transfer::Outcome::no_room) > 0, "rank 1 was full for a time");
    world.checks.expect(count(counts, 2, transfer::Outcome::no_room) == 0, "rank 2 was not");
  } else {
    DecodeEngine engine(world, patience, world.self() == 1 ? 190 : 1500);
    (void)engine.run([&](const Counts& counts) { return count(counts, 0, complete) == requests / 2; });
    engine.expect_free();
  }
}

/// Rank 0 cancels a request of which rank 1 has all rows and not the end; rank 2 one of which it has some rows.
void cancelled(World& world) {
  constexpr std::uint64_t to_one = 4;
  constexpr std::uint64_t to_two = 1;  // the first one, larger than the rows that have arrived in the middle
  if (world.self() == 0) {
    PrefillEngine engine(world);
    for (std::uint64_t r = 0; r < requests; ++r) {
      engine.begin(r, 1 + static_cast<transport::Peer>(r % 2), r != to_one);
    }
    const Counts counts = engine.run([&] {
      if (engine.sender().transfers() == 1) {
        engine.cancel(to_one);
      }
    });
    for (const transport::Peer peer : {1, 2}) {
      world.checks.expect(count(counts, peer, complete) == requests / 2 - 1, "all but one are complete");
      world.checks.expect(count(counts, peer, transfer::Outcome::cancelled) == 1, "one was cancelled");
    }
  } else {
    DecodeEngine engine(world);
    const Counts counts = engine.run([&](const Counts& so_far) { return all(so_far, 0) == requests / 2; },
                                     [&] {
                                       if (world.self() == 2 && engine.is_in_the_middle()) {
                                         engine.receiver().cancel(0, to_two);
                                       }
                                     });
    world.checks.expect(count(counts, 0, transfer::Outcome::cancelled) == 1, "one was cancelled");
    (void)engine.run([&](const Counts&) { return engine.receiver().draining() == 0; });
    engine.expect_free();
  }
}

struct Scenario {
  const char* name;
  void (*run)(World&);
  int victim;  // the rank that is killed; -1: none
};
constexpr Scenario scenarios[] = {{"killed_receiver", killed_receiver, 1},
                                  {"killed_sender", killed_sender, 0},
                                  {"stalled_receiver", stalled_receiver, -1},
                                  {"stalled_sender", stalled_sender, 0},
                                  {"full_pool", full_pool, -1},
                                  {"cancelled", cancelled, -1}};
}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  const std::string name = argc > 1 ? argv[1] : "";
  const auto* const scenario =
      std::find_if(std::begin(scenarios), std::end(scenarios), [&](const Scenario& s) { return s.name == name; });
  if (scenario == std::end(scenarios)) {
    std::cerr << "no scenario \"" << name << "\"\n";
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  int wrong = 0;
  int self = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &self);
  {
    std::vector<pid_t> process = processes();
    transport::Mpi transport(MPI_COMM_WORLD, {.channels = 2, .window_messages = 8});
    World world{transport, std::move(process), Checks(self)};
    scenario->run(world);
    wrong = static_cast<int>(world.checks.wrong().size());
  }
  if (self != judge) {
    MPI_Send(&wrong, 1, MPI_INT, judge, verdict_tag, MPI_COMM_WORLD);
  }
  if (self == judge) {
    for (int rank = 0; rank < judge; ++rank) {
      int other = 0;
      if (rank != scenario->victim) {
        MPI_Recv(&other, 1, MPI_INT, rank, verdict_tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      }
      wrong += other;
    }
    std::cout << (wrong == 0 ? "all is well" : "wrong") << std::endl;
  }
  if (scenario->victim >= 0) {
    std::_Exit(wrong == 0 ? 0 : 1);  // MPI_Finalize may wait for a dead process for ever
  }
  MPI_Finalize();
  return wrong == 0 ? 0 : 1;
}
