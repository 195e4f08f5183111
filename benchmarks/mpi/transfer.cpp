// Transfers of a sequence from one process to another over MPI, beside plain MPI messages of the same sizes, by turns
// in one run of two processes:
//
//   mpirun -n 2 build/release/benchmarks/transfer_mpi [ROUNDS [KiB of a message [KiB of a part]]]
//
//   transfer     one sequence of 4096 tokens (512 MiB), from the offer until the sender knows that it is complete
//   blocks       as many bytes in messages of 64 KiB, the size of a block in a layer: MPI_Isend and MPI_Irecv, 256 in
//                flight, between buffers that are in memory already, and an answer at the end
//   large        the same in messages of 2 MiB, 8 in flight
//
// It prints medians, and the bandwidth of the transfer as a part of each of the others'. Exit code: 0 all is well; 2 a
// bad argument, or not two processes.
#include <mpi.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/transfer/receiver.hpp"
#include "kvc/transfer/sender.hpp"
#include "kvc/transport/mpi.hpp"

namespace {
using namespace kvc;
using Clock = std::chrono::steady_clock;
using Cache = KvCache<Eigen::bfloat16, Paged>;
constexpr Shape shape{.layers = 32, .kv_heads = 8, .key_dim = 128};
constexpr Pos tokens = 4096;

double median(std::vector<double> seconds) {
  const auto middle = seconds.begin() + std::ssize(seconds) / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

template <class F>
double time_of(F&& f) {
  MPI_Barrier(MPI_COMM_WORLD);
  const auto start = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The bytes of `buffer` in messages of `size`, of which `in_flight` travel at once, and an answer.
void plain(int rank, std::vector<std::byte>& buffer, std::size_t size, std::size_t in_flight) {
  std::vector<MPI_Request> requests(in_flight, MPI_REQUEST_NULL);
  std::size_t next = 0;
  for (std::size_t at = 0; at < buffer.size(); at += size) {
    MPI_Wait(&requests[next], MPI_STATUS_IGNORE);
    if (rank == 0) {
      MPI_Isend(buffer.data() + at, static_cast<int>(size), MPI_BYTE, 1, 1, MPI_COMM_WORLD, &requests[next]);
    } else {
      MPI_Irecv(buffer.data() + at, static_cast<int>(size), MPI_BYTE, 0, 1, MPI_COMM_WORLD, &requests[next]);
    }
    next = next + 1 == in_flight ? 0 : next + 1;
  }
  MPI_Waitall(static_cast<int>(in_flight), requests.data(), MPI_STATUSES_IGNORE);
  char answer = 0;
  if (rank == 0) {
    MPI_Recv(&answer, 1, MPI_BYTE, 1, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  } else {
    MPI_Send(&answer, 1, MPI_BYTE, 0, 2, MPI_COMM_WORLD);
  }
}
struct Arguments {
  int rounds = 9;
  Index message_bytes = transfer::SenderOptions().message_bytes;
  std::size_t part_bytes = transport::Mpi::Config().part_bytes;
};

constexpr const char* usage =
    "mpirun -n 2 transfer_mpi [ROUNDS [KiB of a message [KiB of a part]]]\n"
    "\n"
    "Sends a sequence of 4096 tokens (512 MiB) from one process to the other, and as many bytes by plain MPI "
    "messages.\n"
    "Prints the medians of the rounds in GB/s.\n"
    "\n"
    "  ROUNDS            rounds to measure, after one that warms up: 1 to 1000000 [9]\n"
    "  KiB of a message  about the size of a message of the transfer: 1 to 524288 [2048]\n"
    "  KiB of a part     spans of at least this size are MPI messages of their own: 1 to 524288 [32]\n"
    "\n"
    "Exit code: 0 success; 2 a bad argument, or not two processes.\n";

/// The whole number that `text` is, between 1 and `most`.
std::optional<int> parse(std::string_view text, int most) {
  int value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool good = error == std::errc{} && stop == text.data() + text.size() && 1 <= value && value <= most;
  return good ? std::optional(value) : std::nullopt;
}

/// The arguments, or nothing and an exit code. `speaks`: this process prints.
std::optional<Arguments> parse(int argc, char** argv, int processes, bool speaks, int& exit_code) {
  Arguments arguments;
  exit_code = 2;
  constexpr int most[] = {1'000'000, 512 << 10, 512 << 10};
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--help" || std::string_view(argv[i]) == "-h") {
      exit_code = 0;
      if (speaks) {
        std::fputs(usage, stdout);
      }
      return std::nullopt;
    }
    const std::optional<int> value = i <= 3 ? parse(argv[i], most[i - 1]) : std::nullopt;
    if (!value) {
      if (speaks) {
        std::fprintf(stderr, "argument %d: \"%s\" is not allowed, it must be %s\n\n%s", i, argv[i],
                     i == 1   ? "a whole number from 1 to 1000000"
                     : i <= 3 ? "a whole number from 1 to 524288"
                              : "absent",
                     usage);
      }
      return std::nullopt;
    }
    if (i == 1) {
      arguments.rounds = *value;
    } else if (i == 2) {
      arguments.message_bytes = Index{*value} << 10;
    } else {
      arguments.part_bytes = static_cast<std::size_t>(*value) << 10;
    }
  }
  if (processes != 2) {
    if (speaks) {
      std::fprintf(stderr, "started as %d process(es), it must be 2\n\n%s", processes, usage);
    }
    return std::nullopt;
  }
  exit_code = 0;
  return arguments;
}
}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  int processes = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &processes);
  int exit_code = 0;
  const std::optional<Arguments> arguments = parse(argc, argv, processes, rank == 0, exit_code);
  if (!arguments) {
    MPI_Finalize();
    return exit_code;
  }
  const auto [rounds, message_bytes, part_bytes] = *arguments;
  std::vector<double> own;
  std::vector<double> blocks;
  std::vector<double> large;
  {
    Cache cache(shape, {.blocks = tokens / 16, .block_tokens = 16});
    const auto bytes = static_cast<std::size_t>(cache.bytes_per_token() * tokens);
    std::memset(static_cast<void*>(cache.data()), 1, bytes);
    std::vector<std::byte> buffer(bytes, std::byte{1});
    transport::Mpi transport(MPI_COMM_WORLD, {.channels = 2, .part_bytes = part_bytes});
    transfer::Sender sender(cache, transport, {.message_bytes = message_bytes});
    transfer::Receiver receiver(cache, transport);
    SeqId seq{};
    if (rank == 0) {
      seq = cache.open();
      cache.commit(cache.extend(seq, tokens));
    }
    for (int round = 0; round < rounds + 1; ++round) {
      const double t = time_of([&] {
        if (rank == 0) {
          transfer::Offer offer;
          offer.to = 1;
          offer.seq = seq;
          sender.finish(sender.offer(offer));
          (void)transport::wait_for(transport, transport::no_deadline, [&] {
            sender.poll();
            return sender.transfers() == 0;
          });
          transfer::require_complete(sender.next().value());
        } else {
          std::optional<transfer::Received> got;
          (void)transport::wait_for(transport, transport::no_deadline, [&] {
            receiver.poll();
            return (got = receiver.next()).has_value();
          });
          cache.close(got->seq);
        }
      });
      const double b = time_of([&] { plain(rank, buffer, std::size_t{64} << 10, 256); });
      const double l = time_of([&] { plain(rank, buffer, std::size_t{2} << 20, 8); });
      if (round > 0) {  // the first one warms up
        own.push_back(t);
        blocks.push_back(b);
        large.push_back(l);
      }
    }
    if (rank == 0) {
      const auto gb = static_cast<double>(bytes) / 1e9;
      std::printf("transfer %.2f GB/s   blocks %.2f GB/s   large %.2f GB/s\n", gb / median(own), gb / median(blocks),
                  gb / median(large));
      std::printf("of blocks %.2f   of large %.2f\n", median(blocks) / median(own), median(large) / median(own));
    }
  }
  MPI_Finalize();
  return 0;
}
