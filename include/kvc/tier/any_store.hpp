// AnyStore: a BlockStore of any type, so that a list of tiers is a list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "kvc/io/byte_spans.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// A store that has copied the bytes of a write when `write` returns, so that they may change at once:
///
///   S::copies_at_once   | true, constant; the completion of a write is there for the next `poll`
template <class S>
concept CopiesAtOnce = BlockStore<S> && requires { requires S::copies_at_once; };

/// Refers to a store, which must outlive it, and calls it through one virtual function for each operation: nothing
/// beside the bytes of a block. Members have the contract of BlockStore.
class AnyStore {
 public:
  /// Throws std::bad_alloc.
  template <BlockStore S>
  explicit AnyStore(S& store) : store_(std::make_unique<Model<S>>(store)) {}

  /// Whether the store is a CopiesAtOnce.
  [[nodiscard]] bool copies_at_once() const noexcept { return store_->copies_at_once; }
  /// As of BlockStore.
  Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) { return store_->lookup(keys, found); }
  /// As of BlockStore.
  Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> to, PartRange parts = {}) {
    return store_->read(block, to, parts);
  }
  /// As of BlockStore.
  Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> from) { return store_->write(block, from); }
  /// As of BlockStore.
  Ticket erase(const BlockKey& key) { return store_->erase(key); }
  /// As of BlockStore.
  [[nodiscard]] std::optional<Completion> poll() { return store_->poll(); }
  /// As of ReportsEvictions; of a store that does not report them, always empty.
  [[nodiscard]] std::optional<BlockKey> poll_evicted() { return store_->poll_evicted(); }
  /// As of BlockStore.
  bool cancel(Ticket ticket) { return store_->cancel(ticket); }
  /// As of BlockStore.
  bool wait(TimePoint until) { return store_->wait(until); }
  /// As of BlockStore.
  [[nodiscard]] std::size_t under_way() const { return store_->under_way(); }

 private:
  struct Interface {
    explicit Interface(bool copies) : copies_at_once(copies) {}
    virtual ~Interface() = default;
    virtual Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) = 0;
    virtual Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> to, PartRange parts) = 0;
    virtual Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> from) = 0;
    virtual Ticket erase(const BlockKey& key) = 0;
    virtual std::optional<Completion> poll() = 0;
    virtual std::optional<BlockKey> poll_evicted() = 0;
    virtual bool cancel(Ticket ticket) = 0;
    virtual bool wait(TimePoint until) = 0;
    [[nodiscard]] virtual std::size_t under_way() const = 0;
    const bool copies_at_once;
  };
  template <class S>
  struct Model final : Interface {
    explicit Model(S& s) : Interface(CopiesAtOnce<S>), store(s) {}
    Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) override {
      return store.lookup(keys, found);
    }
    Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> to, PartRange parts) override {
      return store.read(block, to, parts);
    }
    Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> from) override {
      return store.write(block, from);
    }
    Ticket erase(const BlockKey& key) override { return store.erase(key); }
    std::optional<Completion> poll() override { return store.poll(); }
    std::optional<BlockKey> poll_evicted() override {
      if constexpr (ReportsEvictions<S>) {
        return store.poll_evicted();
      } else {
        return std::nullopt;
      }
    }
    bool cancel(Ticket ticket) override { return store.cancel(ticket); }
    bool wait(TimePoint until) override { return store.wait(until); }
    [[nodiscard]] std::size_t under_way() const override { return store.under_way(); }
    S& store;
  };

  std::unique_ptr<Interface> store_;
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
