// FileRequests: reads and writes of segments that one thread has under way, by io_uring where a program is built with
// it and the kernel allows it, else one after the other by preadv and pwritev. POSIX.
//
// A program that defines KVC_HAVE_LIBURING, in all of its sources, and links liburing (Debian: liburing-dev) has
// io_uring.
#pragma once

#if defined(KVC_HAVE_LIBURING)
#include <liburing.h>
#endif
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/tier/detail/segment.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// For one thread at a time. The bytes of a request must stay until it has ended; the destructor waits for all of them.
class FileRequests {
 public:
  /// How a request ended: with an error of the system, or with the bytes that were moved.
  struct End {
    int error = 0;
    std::size_t bytes = 0;
    std::span<const io::ByteSpan> to{};  // of a read: where they went. Valid until the next request begins
  };

  /// With `depth` 0, or where there is no io_uring, requests take place at once, and no two at the same time.
  explicit FileRequests(unsigned depth) : requests_(std::max(depth, 1U)) {
    if (depth == 0) {
      return;
    }
#if defined(KVC_HAVE_LIBURING)
    ring_ = std::make_unique<io_uring>();
    const int error = ::io_uring_queue_init(depth, ring_.get(), 0);
    if (error < 0) {
      ring_.reset();
      requests_.resize(1);
      why_not_ = kvc::detail::concat({"the system refuses io_uring: ", std::generic_category().message(-error)});
    }
#else
    requests_.resize(1);
    why_not_ = "the program is built without liburing";
#endif
  }
  ~FileRequests() {
    end_all();
#if defined(KVC_HAVE_LIBURING)
    if (ring_ != nullptr) {
      ::io_uring_queue_exit(ring_.get());
    }
#endif
  }
  FileRequests(const FileRequests&) = delete;
  FileRequests& operator=(const FileRequests&) = delete;

  /// Requests that may be under way at once.
  [[nodiscard]] std::size_t depth() const noexcept { return requests_.size(); }
  /// Why io_uring was asked for and is not used; empty otherwise.
  [[nodiscard]] const std::string& why_not() const noexcept { return why_not_; }
  [[nodiscard]] bool is_full() const noexcept { return count_ == requests_.size(); }
  [[nodiscard]] bool is_empty() const noexcept { return count_ == 0; }

  /// Begins to read to, or to write, spans from `offset` of the segment on; not if it is full. Throws std::bad_alloc;
  /// nothing has begun then.
  void read(const Segment& segment, std::uint64_t offset, std::span<const io::ByteSpan> spans) {
    Request& request = next();
    request.to.assign(spans.begin(), spans.end());
    begin(request, segment, offset, spans);
  }
  void write(const Segment& segment, std::uint64_t offset, std::span<const io::ConstByteSpan> spans) {
    Request& request = next();
    request.from.assign(spans.begin(), spans.end());
    begin(request, segment, offset, spans);
  }
  /// Waits for the first of the requests that were begun and have not been ended; not if there is none.
  End end_first() noexcept {
    Request& request = requests_[first_];
    wait_for(request);
    first_ = (first_ + 1) % requests_.size();
    --count_;
    request.end.to = request.to;
    return request.end;
  }
  /// Waits for all requests. The first error, or 0.
  int end_all() noexcept {
    int error = 0;
    while (!is_empty()) {
      const int each = end_first().error;
      error = error != 0 ? error : each;
    }
    return error;
  }

 private:
  struct Request {
    const Segment* segment = nullptr;
    std::uint64_t offset = 0;
    std::vector<io::ByteSpan> to;         // of a read
    std::vector<io::ConstByteSpan> from;  // of a write
    std::vector<iovec> list;
    std::size_t bytes = 0;
    bool is_over = true;
    End end;
  };

  Request& next() noexcept {
    Request& request = requests_[(first_ + count_) % requests_.size()];
    request.to.clear();
    request.from.clear();
    return request;
  }
  template <class Span>
  void begin(Request& request, const Segment& segment, std::uint64_t offset, std::span<const Span> spans) {
    request.segment = &segment;
    request.offset = offset;
    request.bytes = static_cast<std::size_t>(io::total_bytes(spans));
    request.is_over = false;
#if defined(KVC_HAVE_LIBURING)
    if (ring_ != nullptr && spans.size() <= 1024) {
      request.list.clear();
      for (const Span span : spans) {
        request.list.push_back({const_cast<std::byte*>(static_cast<const std::byte*>(span.data())), span.size()});
      }
      const int fd = segment.fd_for(offset, request.list);
      io_uring_sqe* const entry = ::io_uring_get_sqe(ring_.get());  // there are as many as requests
      const auto count = static_cast<unsigned>(request.list.size());
      if constexpr (std::is_same_v<Span, io::ByteSpan>) {
        ::io_uring_prep_readv(entry, fd, request.list.data(), count, offset);
      } else {
        ::io_uring_prep_writev(entry, fd, request.list.data(), count, offset);
      }
      ::io_uring_sqe_set_data64(entry, static_cast<std::uint64_t>(&request - requests_.data()));
      ++count_;
      while (::io_uring_submit(ring_.get()) < 0) {  // the kernel is short of memory, or of room for what has ended
        reap();
        std::this_thread::yield();
      }
      return;
    }
#endif
    perform(request);
    ++count_;
  }
  /// The plain calls. They also end what io_uring has moved in part, or refused.
  static void perform(Request& request) noexcept {
    if (request.from.empty()) {
      request.end.error = request.segment->read_at(request.offset, request.to, request.end.bytes);
    } else {
      request.end.error = request.segment->write_at(request.offset, request.from);
      request.end.bytes = request.end.error == 0 ? request.bytes : 0;
    }
    request.is_over = true;
  }
  void wait_for([[maybe_unused]] Request& request) noexcept {
#if defined(KVC_HAVE_LIBURING)
    while (!request.is_over) {
      io_uring_cqe* ended = nullptr;
      if (::io_uring_wait_cqe(ring_.get(), &ended) == 0) {
        take(ended);
      }
    }
#endif
  }
#if defined(KVC_HAVE_LIBURING)
  void reap() noexcept {
    io_uring_cqe* ended = nullptr;
    while (::io_uring_peek_cqe(ring_.get(), &ended) == 0) {
      take(ended);
    }
  }
  void take(io_uring_cqe* ended) noexcept {
    Request& request = requests_[static_cast<std::size_t>(ended->user_data)];
    const int result = ended->res;
    ::io_uring_cqe_seen(ring_.get(), ended);
    request.end = {0, request.bytes, {}};
    request.is_over = true;
    if (result < 0 || static_cast<std::size_t>(result) != request.bytes) {
      perform(request);
    }
  }

  std::unique_ptr<io_uring> ring_;
#endif
  std::vector<Request> requests_;
  std::size_t first_ = 0, count_ = 0;
  std::string why_not_;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
