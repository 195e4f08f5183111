// RedisConnection: commands to one server, and its replies. Needs hiredis. POSIX.
#pragma once

#if !__has_include(<hiredis/hiredis.h>)
#error "kvc/tier/redis_store.hpp needs hiredis (Debian: libhiredis-dev), which was not found, or do not include it"
#endif

#include <hiredis/hiredis.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/io/file.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

struct FreeRedis {
  void operator()(redisContext* p) const noexcept { redisFree(p); }
  void operator()(redisReply* p) const noexcept { freeReplyObject(p); }
};
using RedisReply = std::unique_ptr<redisReply, FreeRedis>;

/// One connection, for one thread; `interrupt` may be called by another. After an error it is closed, and `is_open` is
/// false; whoever uses it connects again.
class RedisConnection {
 public:
  RedisConnection(std::string host, int port, std::chrono::milliseconds timeout)
      : host_(std::move(host)), port_(port), timeout_(timeout) {}

  [[nodiscard]] bool is_open() const noexcept { return context_ != nullptr; }
  /// Of the socket; -1 if it is closed.
  [[nodiscard]] int fd() const noexcept { return is_open() ? context_->fd : -1; }
  /// Whether bytes have been received that belong to no reply yet.
  [[nodiscard]] bool has_input() const noexcept { return is_open() && context_->reader->pos < context_->reader->len; }
  /// Why it is closed.
  [[nodiscard]] const std::string& error() const noexcept { return error_; }

  /// Connects, within the time-out. Whether it is open now.
  bool connect() {
    const timeval limit{static_cast<time_t>(timeout_.count() / 1000),
                        static_cast<suseconds_t>(timeout_.count() % 1000 * 1000)};
    std::unique_ptr<redisContext, FreeRedis> made(redisConnectWithTimeout(host_.c_str(), port_, limit));
    if (made == nullptr || made->err != 0 || redisSetTimeout(made.get(), limit) != REDIS_OK) {
      error_ = made == nullptr ? "no memory" : made->errstr;
      return false;
    }
    return use(std::move(made));
  }
  /// Takes over a socket that is connected, in place of a connection. Whether it is open now.
  bool adopt(int socket) {
    std::unique_ptr<redisContext, FreeRedis> made(redisConnectFd(socket));
    return made != nullptr && use(std::move(made));
  }
  /// Ends what waits for the server, now and later.
  void interrupt() {
    const std::lock_guard lock(mutex_);
    is_interrupted_ = true;
    if (context_ != nullptr) {
      (void)::shutdown(context_->fd, SHUT_RDWR);
    }
  }

  /// Adds a command to those that `flush` sends: its words, of which the last may go on with the bytes of spans. These
  /// are sent from where they lie.
  void add(std::initializer_list<std::string_view> words, std::span<const io::ConstByteSpan> last = {}) {
    text("*");
    number(words.size());
    std::size_t left = words.size();
    for (const std::string_view word : words) {
      const bool goes_on = --left == 0;
      text("$");
      number(word.size() + (goes_on ? io::total_bytes(last) : 0));
      text(word);
      if (goes_on) {
        for (const io::ConstByteSpan span : last) {
          inserted_.push_back({text_.size(), span});
        }
      }
      text("\r\n");
    }
  }
  /// Sends all commands. False: the connection is closed.
  bool flush() {
    std::vector<io::ConstByteSpan> spans;
    spans.reserve(2 * inserted_.size() + 1);
    const io::ConstByteSpan all = std::as_bytes(std::span(text_));
    std::size_t from = 0;
    for (const Inserted& each : inserted_) {
      spans.push_back(all.subspan(from, each.before - from));
      spans.push_back(each.bytes);
      from = each.before;
    }
    spans.push_back(all.subspan(from));
    const auto total = static_cast<std::int64_t>(io::total_bytes(spans));
    const std::int64_t sent =
        is_open() ? io::detail::move_bytes(std::span<const io::ConstByteSpan>(spans),
                                           [this](const iovec* list, int count) {
                                             msghdr message{};
                                             message.msg_iov = const_cast<iovec*>(list);
                                             message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(count);
                                             return ::sendmsg(context_->fd, &message, MSG_NOSIGNAL);
                                           })
                  : -1;
    if (is_open() && sent != total) {
      close(sent < 0 ? std::generic_category().message(errno) : "the server takes no more bytes");
    }
    text_.clear();
    inserted_.clear();
    return is_open();
  }
  /// Waits for the reply to the next command, and gives a string that is all of it to take(bytes), where it was
  /// received: the reply has none of its bytes then. Empty: the connection is closed.
  template <class F>
  [[nodiscard]] RedisReply reply(F&& take) {
    static_assert(noexcept(take(io::ConstByteSpan())), "hiredis passes no exceptions");
    taker_ = &take;
    take_ = [](void* taker, io::ConstByteSpan bytes) noexcept {
      (*static_cast<std::remove_reference_t<F>*>(taker))(bytes);
    };
    RedisReply received = reply();
    take_ = nullptr;
    return received;
  }
  /// Waits for the reply to the next command. Empty: the connection is closed.
  [[nodiscard]] RedisReply reply() {
    if (!is_open()) {
      return nullptr;
    }
    void* received = nullptr;
    if (redisGetReply(context_.get(), &received) != REDIS_OK || received == nullptr) {
      close(context_->errstr[0] != '\0' ? context_->errstr : "no reply");
      return nullptr;
    }
    return RedisReply(static_cast<redisReply*>(received));
  }

  /// Closes it: replies that are on their way will not be read.
  void close(std::string why) {
    const std::lock_guard lock(mutex_);
    error_ = std::move(why);
    context_.reset();
    text_.clear();
    inserted_.clear();
  }

 private:
  struct Inserted {
    std::size_t before;  // bytes of the text that go before it
    io::ConstByteSpan bytes;
  };

  bool use(std::unique_ptr<redisContext, FreeRedis> made) {
    // A string of megabytes is copied once less if it is not copied to a reply object first; and the memory that it was
    // received in is kept for the next one.
    functions_ = *made->reader->fn;
    create_string_ = functions_.createString;
    functions_.createString = &create_string;
    create_array_ = functions_.createArray;
    functions_.createArray = &create_array;
    made->reader->fn = &functions_;
    made->reader->privdata = this;
    made->reader->maxbuf = 0;
    const std::lock_guard lock(mutex_);
    if (is_interrupted_) {
      return false;
    }
    context_ = std::move(made);
    return true;
  }
  static void* create_string(const redisReadTask* task, char* bytes, std::size_t count) noexcept {
    const RedisConnection& self = *static_cast<RedisConnection*>(task->privdata);
    if (self.take_ != nullptr && task->type == REDIS_REPLY_STRING && task->parent == nullptr) {
      self.take_(self.taker_, std::as_bytes(std::span(bytes, count)));
      count = 0;
    }
    return self.create_string_(task, bytes, count);
  }

  /// Memory for elements that a server only announces: 2^20 of them, more than the keys of any prompt.
  template <class Count>
  static void* create_array(const redisReadTask* task, Count count) noexcept {
    return count > Count{1} << 20 ? nullptr : static_cast<RedisConnection*>(task->privdata)->create_array_(task, count);
  }

  void text(std::string_view part) { text_.append(part); }
  void number(std::uint64_t value) { text_.append(std::to_string(value)).append("\r\n"); }
  std::string host_;
  int port_;
  std::chrono::milliseconds timeout_;
  std::mutex mutex_;  // of the two below: a worker closes while another thread interrupts
  std::unique_ptr<redisContext, FreeRedis> context_;
  bool is_interrupted_ = false;
  redisReplyObjectFunctions functions_{};
  decltype(redisReplyObjectFunctions::createString) create_string_ = nullptr;  // of hiredis, as is the next
  decltype(redisReplyObjectFunctions::createArray) create_array_ = nullptr;
  void (*take_)(void*, io::ConstByteSpan) noexcept = nullptr;  // takes a string, if there is one
  void* taker_ = nullptr;
  std::string error_;
  std::string text_;
  std::vector<Inserted> inserted_;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
