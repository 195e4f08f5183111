// Rank 0 computes sequences and sends them to all others, layer by layer, over MPI; they must have the same rows.
#include "mpi/engines.hpp"

namespace {
using namespace kvc_mpi_test;

bool send(transport::Mpi& transport) {
  KvCache<float, Paged> cache(shape, {.blocks = 600, .block_tokens = 16});
  transfer::Sender sender(cache, transport, {.message_bytes = 50000});
  for (std::uint64_t r = 0; r < requests; ++r) {
    const SeqId seq = cache.open();
    auto step = cache.extend(seq, length_of(r));
    transfer::Offer offer;
    offer.to = static_cast<transport::Peer>(1 + r % static_cast<std::uint64_t>(transport.peers() - 1));
    offer.seq = seq;
    offer.request = r;
    const transfer::Id id = sender.offer(offer);
    for (Index layer = 0; layer < shape.layers; ++layer) {
      cache.write(layer, step, rows(r, layer, true), rows(r, layer, false));
      sender.ready(id, layer, length_of(r));
      sender.poll();
    }
    cache.commit(std::move(step));  // Paged leaves rows in place
    sender.finish(id);
  }
  int complete = 0;
  (void)transport::wait_for(transport, std::chrono::steady_clock::now() + patience, [&] {
    sender.poll();
    while (const auto sent = sender.next()) {
      complete += sent->outcome == transfer::Outcome::complete ? 1 : 0;
      if (sent->outcome != transfer::Outcome::complete) {
        std::cerr << "request " << sent->request << ": " << to_text(sent->outcome) << ", " << sent->reason << "\n";
      }
      cache.close(sent->seq);
    }
    return sender.transfers() == 0;
  });
  cache.verify();
  return complete == requests && cache.stats().blocks_referenced == 0;
}

template <class Cache>
bool receive(transport::Mpi& transport, Cache& cache) {
  transfer::Receiver receiver(cache, transport);
  int right = 0;
  int expected = 0;
  for (int r = 0; r < requests; ++r) {
    expected += 1 + r % (transport.peers() - 1) == transport.self() ? 1 : 0;
  }
  (void)transport::wait_for(transport, std::chrono::steady_clock::now() + patience, [&] {
    receiver.poll();
    while (const auto got = receiver.next()) {
      right += has_rows(cache, *got) ? 1 : 0;
      if (got->outcome == transfer::Outcome::complete) {
        cache.close(got->seq);
      }
    }
    return right == expected || transport.is_lost(0);
  });
  cache.verify();
  return right == expected && cache.stats().blocks_referenced == 0;
}
}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  bool ok = false;
  {
    transport::Mpi transport(MPI_COMM_WORLD, {.channels = 2, .window_messages = 8});
    if (transport.self() == 0) {
      ok = send(transport);
    } else if (transport.self() == 1) {
      KvCache<float, Paged> cache(shape, {.blocks = 600, .block_tokens = 16});
      ok = receive(transport, cache);
    } else {
      KvCache<float, PrefixShared<>, TokenMajor> cache(shape, {.blocks = 1000, .block_tokens = 7});
      ok = receive(transport, cache);
    }
  }
  std::cout << (ok ? "ok\n" : "wrong\n");
  MPI_Finalize();
  return ok ? 0 : 1;
}
