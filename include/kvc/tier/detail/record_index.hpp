// RecordIndex: the records of a store by key, and which of them to evict next. Standard library only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>

#include "kvc/core/error.hpp"
#include "kvc/tier/detail/key_table.hpp"
#include "kvc/tier/key.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// A table from keys to values. A record is evictable as long as no child of it is stored: a prefix is found from its
/// first block on, and children without their parent would be of no use to anybody. Of the evictable ones, the least
/// recently used is the next victim.
///
///   expression              | requires                | returns, does                                    | complexity
///   ------------------------+-------------------------+--------------------------------------------------+-----------
///   t.find(key)             |                         | Record*, or nullptr. Valid until it is erased    | O(1)
///   t.insert(key, parent, v)| no record has this key  | Record*. Its use is the most recent. Strong      | O(1)
///                           |                         | guarantee: std::bad_alloc changes nothing        |
///   t.touch(record)         |                         | Its use is the most recent                       | O(1), *
///   t.erase(record)         |                         | Its parent may become evictable                  | O(1), *
///   t.victim()              |                         | Record*: the next to evict; nullptr if there is  | O(1), **
///                           |                         | no record                                        |
///   t.size()                |                         | number of records                                | O(1)
///
/// * O(log of the records whose children are gone) for those.
/// ** O(records) where all records that are left are one another's parents in a circle, or lead to one: no chain of
/// keys does, but a damaged file, or a caller, may say so. Then any of them is the victim.
///
/// A key that is a parent of records, but has no record, has an entry that counts these.
template <class Value>
class RecordIndex {
 public:
  struct Entry;
  using Record = std::pair<const BlockKey, Entry>;
  struct Entry {
    Value value{};

   private:
    friend class RecordIndex;
    enum class Place : std::uint8_t { nowhere, in_list, in_tree };
    Record* parent_ = nullptr;
    Record* before_ = nullptr;  // neighbours in the list of evictable records, in the order of their use
    Record* after_ = nullptr;
    std::uint64_t used_ = 0;      // the time of its last use
    std::uint32_t children_ = 0;  // records whose parent it is
    bool stored_ = false;         // else it only counts
    Place place_ = Place::nowhere;
  };

  RecordIndex() = default;
  RecordIndex(const RecordIndex&) = delete;
  RecordIndex& operator=(const RecordIndex&) = delete;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  void reserve(std::size_t records) { entries_.reserve(records); }

  [[nodiscard]] Record* find(const BlockKey& key) noexcept {
    Record* const found = entries_.find(key);
    return found == nullptr || !found->second.stored_ ? nullptr : found;
  }
  [[nodiscard]] const Record* find(const BlockKey& key) const noexcept {
    const Record* const found = entries_.find(key);
    return found == nullptr || !found->second.stored_ ? nullptr : found;
  }
  /// Calls each(i, whether keys[i] has a record) for all keys; faster than one after the other.
  template <class F>
  void find_all(std::span<const BlockKey> keys, F&& each) const {
    entries_.find_all(keys,
                      [&](std::size_t i, const Record* found) { each(i, found != nullptr && found->second.stored_); });
  }

  Record* insert(const BlockKey& key, const BlockKey& parent, Value value) {
    const auto [parent_record, is_new] = entries_.emplace(parent);
    Record* record = nullptr;
#if KVC_HAS_EXCEPTIONS
    try {
      record = entries_.emplace(key).first;
    } catch (...) {
      if (is_new) {
        entries_.erase(*parent_record);
      }
      throw;
    }
#else
    (void)is_new;
    record = entries_.emplace(key).first;
#endif
    Entry& entry = record->second;
    KVC_ASSERT(!entry.stored_);
    entry.value = std::move(value);
    entry.stored_ = true;
    entry.used_ = ++clock_;
    ++size_;
    if (record != parent_record) {  // no block is its own parent, but a damaged file may say so
      entry.parent_ = parent_record;
      ++parent_record->second.children_;
      if (parent_record->second.place_ != Entry::Place::nowhere) {
        leave(*parent_record);
      }
    }
    if (entry.children_ == 0) {
      append(*record);
    }
    return record;
  }

  void touch(Record& record) noexcept {
    Entry& entry = record.second;
    if (entry.place_ != Entry::Place::nowhere) {
      leave(record);
      entry.used_ = ++clock_;
      append(record);
    } else {
      entry.used_ = ++clock_;
    }
  }

  void erase(Record& record) noexcept {
    Entry& entry = record.second;
    if (entry.place_ != Entry::Place::nowhere) {
      leave(record);
    }
    Record* const parent = entry.parent_;
    entry.parent_ = nullptr;
    entry.stored_ = false;
    entry.value = Value{};
    --size_;
    if (entry.children_ == 0) {
      entries_.erase(record);
    }
    if (parent != nullptr && --parent->second.children_ == 0) {
      if (!parent->second.stored_) {
        entries_.erase(*parent);
      } else {
        return_to_order(*parent);
      }
    }
  }

  [[nodiscard]] Record* victim() noexcept {
    if (tree_.empty()) {
      return oldest_ != nullptr || size_ == 0 ? oldest_ : any_record();
    }
    Record* const in_tree = tree_.begin()->second;
    return oldest_ == nullptr || in_tree->second.used_ < oldest_->second.used_ ? in_tree : oldest_;
  }

  /// Calls `each(Record&)` for every record, in any order; it must not insert or erase.
  template <class F>
  void for_each(F&& each) {
    entries_.for_each([&](Record& record) {
      if (record.second.stored_) {
        each(record);
      }
    });
  }

 private:
  using Place = typename Entry::Place;

  /// At the end of the list: its use is the most recent.
  void append(Record& record) noexcept {
    Entry& entry = record.second;
    entry.before_ = newest_;
    entry.after_ = nullptr;
    (newest_ != nullptr ? newest_->second.after_ : oldest_) = &record;
    newest_ = &record;
    entry.place_ = Place::in_list;
  }
  /// A record that has become evictable keeps the time of its use, which may lie anywhere in the list: it goes to a
  /// tree beside it, unless it is older than all of the list.
  void return_to_order(Record& record) noexcept {
    Entry& entry = record.second;
    if (oldest_ == nullptr || entry.used_ < oldest_->second.used_) {
      entry.before_ = nullptr;
      entry.after_ = oldest_;
      (oldest_ != nullptr ? oldest_->second.before_ : newest_) = &record;
      oldest_ = &record;
      entry.place_ = Place::in_list;
      return;
    }
#if KVC_HAS_EXCEPTIONS
    try {
#endif
      tree_.emplace(entry.used_, &record);
      entry.place_ = Place::in_tree;
#if KVC_HAS_EXCEPTIONS
    } catch (...) {  // no memory for the tree: it counts as just used
      entry.used_ = ++clock_;
      append(record);
    }
#endif
  }
  [[nodiscard]] Record* any_record() noexcept {
    Record* any = nullptr;
    for_each([&](Record& record) { any = &record; });
    return any;
  }
  void leave(Record& record) noexcept {
    Entry& entry = record.second;
    if (entry.place_ == Place::in_tree) {
      tree_.erase(entry.used_);
    } else {
      (entry.before_ != nullptr ? entry.before_->second.after_ : oldest_) = entry.after_;
      (entry.after_ != nullptr ? entry.after_->second.before_ : newest_) = entry.before_;
    }
    entry.place_ = Place::nowhere;
  }

  KeyTable<Record> entries_;
  std::map<std::uint64_t, Record*> tree_;
  Record* oldest_ = nullptr;  // the list of evictable records that are not in the tree
  Record* newest_ = nullptr;
  std::uint64_t clock_ = 0;
  std::size_t size_ = 0;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
