// SegmentDirectory: the segments of a directory and the index of their records. It gives out places, frees them, and
// keeps the limit; it does not read or write records. POSIX.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <system_error>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/record_index.hpp"
#include "kvc/tier/detail/segment.hpp"
#include "kvc/tier/key.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// The records of a directory, and their places. Any thread may call it; calls wait for one another, and for system
/// calls of microseconds, but never for the bytes of a record.
///
/// Segments whose lock this process holds are its own: new ones, and those of processes that are gone. Only in these
/// does it erase, evict and compact. Segments of other living processes are read; a record that they erased is noticed
/// when it is read.
class SegmentDirectory {
 public:
  struct Config {
    std::filesystem::path folder;
    std::uint64_t bytes = unlimited;
    std::uint64_t segment_bytes = 0;
    WhenFull when_full = WhenFull::evict;
    std::chrono::milliseconds refresh{};
    bool is_direct = false;
  };
  /// A record that was found, with its segment, which stays open as long as this.
  struct Found {
    std::shared_ptr<Segment> segment;
    RecordPlace place;
  };

  /// Opens all segments, and reads their tables. Throws std::system_error if the folder is not there and cannot be
  /// made, or cannot be read.
  explicit SegmentDirectory(Config config) : config_(std::move(config)) {
    std::error_code error;
    std::filesystem::create_directories(config_.folder, error);
    if (!std::filesystem::is_directory(config_.folder)) {
      throw_error(std::system_error(error ? error : std::make_error_code(std::errc::not_a_directory),
                                    kvc::detail::concat({"kvc: cannot keep blocks in ", config_.folder.string()})));
    }
    const std::filesystem::directory_iterator can_be_read(config_.folder);
    scan();
  }

  /// How many of the keys have a record; sets found[i] to 1 or 0.
  std::uint64_t lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    const std::lock_guard lock(mutex_);
    std::uint64_t count = 0;
    for (const bool again : {false, true}) {
      count = 0;
      index_.find_all(keys, [&](std::size_t i, bool is_there) {
        found[i] = is_there || (!foreign_.empty() && foreign_.contains(keys[i])) ? 1 : 0;
        count += found[i];
      });
      if (again || count == keys.size() || !refresh()) {
        break;
      }
    }
    return count;
  }

  /// The record of a key, and that it was used.
  [[nodiscard]] std::optional<Found> find(const BlockKey& key) {
    const std::lock_guard lock(mutex_);
    for (const bool again : {false, true}) {
      if (auto* const record = index_.find(key)) {
        index_.touch(*record);
        return Found{segments_.at(record->second.value.segment), record->second.value};
      }
      if (const auto other = foreign_.find(key); other != foreign_.end()) {
        return Found{segments_.at(other->second.segment), other->second};
      }
      if (again || !refresh()) {
        break;
      }
    }
    return std::nullopt;
  }
  /// Whether this is still the place of the record, also by the word of the segment.
  [[nodiscard]] bool is_at(const BlockKey& key, const Found& found) {
    const std::lock_guard lock(mutex_);
    if (const auto* const record = index_.find(key)) {
      return record->second.value == found.place;
    }
    const auto other = foreign_.find(key);
    SegmentEntry entry{};
    return other != foreign_.end() && other->second == found.place &&
           found.segment->read_entry(found.place.entry, entry) == 0 && entry.state == SegmentEntry::live;
  }

  /// Gives out a place for a record of so many bytes, and evicts others for it if it may and must. Nothing, and `error`
  /// 0: there is no room. Nothing, and an error of the system: the folder takes no segment. The bytes of the place may
  /// be written until `commit` or `abandon` is called.
  [[nodiscard]] std::optional<Found> allocate(std::uint32_t head_bytes, std::uint64_t payload_bytes, bool may_evict,
                                              int& error) {
    SegmentEntry entry{};
    entry.head_bytes = head_bytes;
    entry.payload_bytes = payload_bytes;
    const std::uint64_t extent = entry.extent();
    error = 0;
    const std::lock_guard lock(mutex_);
    for (;;) {
      const bool needs_segment = current_ == nullptr || !fits(*current_, extent);
      const std::uint64_t more = extent + (needs_segment ? Segment::data_begin(table_entries()) : 0);
      if (more > config_.bytes) {
        return std::nullopt;
      }
      if (physical_ > config_.bytes - more) {
        if (!may_evict || config_.when_full == WhenFull::refuse || !evict_one()) {
          return std::nullopt;
        }
        continue;
      }
      if (needs_segment) {
        if (error = begin_segment(); error != 0) {
          return std::nullopt;
        }
      }
      const std::uint64_t offset = record_offset(current_->data_end, head_bytes, payload_bytes, current_->makes_holes);
      Found place{current_, {current_number_, current_->next_entry++, offset, payload_bytes, head_bytes}};
      current_->data_end = offset + extent;
      current_->taken_bytes += extent;
      current_->physical_bytes += extent;
      physical_ += extent;
      ++current_->writers;
      return place;
    }
  }
  /// The record has been written to its place: writes its entry, and others find it. The record that was under this key
  /// is erased. Returns the error of the system; nothing has changed then, and the place is free.
  [[nodiscard]] int commit(const Found& place, const BlockKey& key, const BlockKey& parent) {
    SegmentEntry entry{};
    entry.key = key;
    entry.parent = parent;
    entry.offset = place.place.offset;
    entry.payload_bytes = place.place.payload_bytes;
    entry.head_bytes = place.place.head_bytes;
    entry.state = SegmentEntry::live;
    const int error = place.segment->write_entry(place.place.entry, entry);
    const std::lock_guard lock(mutex_);
    if (error != 0) {
      abandon_locked(place);
      return error;
    }
    // Until all is done: the old record may be the last one of the same segment.
    const kvc::detail::ScopeGuard written([&] {
      --place.segment->writers;
      remove_if_empty(place.place.segment);
    });
    if (auto* const old = index_.find(key)) {
      const RecordPlace at = old->second.value;
      index_.erase(*old);
      free_place(key, parent, at);
    }
    foreign_.erase(key);
    index_.insert(key, parent, place.place);
    place.segment->live_bytes += entry.extent();
    ++place.segment->live_records;
    return 0;
  }
  /// Nothing is to be found at this place.
  void abandon(const Found& place) {
    const std::lock_guard lock(mutex_);
    abandon_locked(place);
  }

  /// Erases the record of a key; with `only`, only if it is at that place. Whether there was one. In a segment of
  /// another process it is only forgotten.
  bool erase(const BlockKey& key, const RecordPlace* only = nullptr) {
    const std::lock_guard lock(mutex_);
    if (auto* const record = index_.find(key)) {
      const RecordPlace at = record->second.value;
      if (only != nullptr && !(at == *only)) {
        return false;
      }
      index_.erase(*record);
      free_place(key, {}, at);
      return true;
    }
    const auto other = foreign_.find(key);
    if (other == foreign_.end() || (only != nullptr && !(other->second == *only))) {
      return false;
    }
    forgotten_.insert(key);
    foreign_.erase(other);
    return true;
  }

  /// A sealed segment of this process that is at most half full, with its live records: to be compacted. Empty if there
  /// is none, or no room to move a record.
  [[nodiscard]] std::vector<std::pair<BlockKey, Found>> to_compact() {
    const std::lock_guard lock(mutex_);
    std::vector<std::pair<BlockKey, Found>> records;
    for (auto& [number, segment] : segments_) {
      if (!segment->is_own || !segment->is_sealed || segment->writers != 0 ||
          segment->live_bytes > config_.segment_bytes / 2 || compacting_.contains(number)) {
        continue;
      }
      // Two must become one, else nothing is gained.
      std::uint64_t sparse = 0;
      for (const auto& [other, each] : segments_) {
        sparse += each->is_own && each->is_sealed && each->live_bytes <= config_.segment_bytes / 2 ? 1 : 0;
      }
      std::vector<SegmentEntry> table;
      if (sparse < 2 || segment->read_table(table) != 0) {
        continue;
      }
      compacting_.insert(number);
      for (const SegmentEntry& entry : table) {
        if (const auto* const record = entry.state == SegmentEntry::live ? index_.find(entry.key) : nullptr;
            record != nullptr && record->second.value.segment == number) {
          records.emplace_back(entry.key, Found{segment, record->second.value});
        }
      }
      return records;
    }
    return records;
  }
  /// A record was copied from one place to another, which is written: it is found there from now on, with its use and
  /// its parent as they were. Does nothing but free the new place if the record has moved or is gone.
  void move_record(const BlockKey& key, const Found& from, const Found& to) {
    SegmentEntry entry{};
    if (from.segment->read_entry(from.place.entry, entry) != 0 || !(entry.key == key)) {
      abandon(to);
      return;
    }
    entry.offset = to.place.offset;
    entry.state = SegmentEntry::live;
    const int error = to.segment->write_entry(to.place.entry, entry);
    const std::lock_guard lock(mutex_);
    auto* const record = index_.find(key);
    if (error != 0 || record == nullptr || !(record->second.value == from.place)) {
      if (error == 0) {
        entry.state = SegmentEntry::dead;
        (void)to.segment->write_entry(to.place.entry, entry);
      }
      abandon_locked(to);
      return;
    }
    --to.segment->writers;
    record->second.value = to.place;
    to.segment->live_bytes += entry.extent();
    ++to.segment->live_records;
    free_place(key, entry.parent, from.place);
  }

  [[nodiscard]] std::uint64_t records() const {
    const std::lock_guard lock(mutex_);
    return index_.size() + foreign_.size();
  }
  [[nodiscard]] std::uint64_t physical_bytes() const {
    const std::lock_guard lock(mutex_);
    return physical_;
  }
  [[nodiscard]] std::uint64_t evicted() const {
    const std::lock_guard lock(mutex_);
    return evicted_;
  }
  [[nodiscard]] std::size_t segments() const {
    const std::lock_guard lock(mutex_);
    return segments_.size();
  }

 private:
  static constexpr const char* extension = ".kvcseg";

  [[nodiscard]] std::uint32_t table_entries() const noexcept {
    return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(config_.segment_bytes / segment_page, 32, 4096));
  }
  [[nodiscard]] bool fits(const Segment& segment, std::uint64_t extent) const noexcept {
    return segment.next_entry < segment.entries() &&
           (segment.taken_bytes == 0 || segment.data_begin() + segment.taken_bytes + extent <= config_.segment_bytes);
  }

  /// Seals the current segment and begins another.
  int begin_segment() {
    std::random_device random;
    char name[17];
    std::snprintf(name, sizeof name, "%08x%08x", static_cast<unsigned>(random()), static_cast<unsigned>(random()));
    const std::string path = (config_.folder / (name + std::string(extension))).string();
    int error = 0;
    std::optional<Segment> made = Segment::create(path, table_entries(), last_sequence_ + 1, error);
    if (!made) {
      return error;
    }
    seal();
    ++last_sequence_;
    auto segment = std::make_shared<Segment>(std::move(*made));
    if (config_.is_direct) {
      (void)segment->go_direct();
    }
    segment->physical_bytes = segment->data_begin();
    physical_ += segment->physical_bytes;
    current_number_ = ++last_number_;
    current_ = segment;
    segments_.emplace(current_number_, std::move(segment));
    paths_.insert(path);
    return 0;
  }
  void seal() {
    if (current_ != nullptr) {
      const std::shared_ptr<Segment> old = std::move(current_);
      current_ = nullptr;
      old->is_sealed = true;
      remove_if_empty(current_number_);
    }
  }
  void remove_if_empty(std::uint32_t number) {
    const auto found = segments_.find(number);
    if (found == segments_.end()) {
      return;
    }
    const std::shared_ptr<Segment>& segment = found->second;
    if (segment->is_own && segment->is_sealed && segment->writers == 0 && segment->live_records == 0) {
      (void)::unlink(segment->path().c_str());
      physical_ -= segment->physical_bytes;
      paths_.erase(segment->path());
      compacting_.erase(number);
      segments_.erase(found);
    }
  }
  void abandon_locked(const Found& place) {
    Segment& segment = *place.segment;
    --segment.writers;
    free_bytes(segment, place.place);
    remove_if_empty(place.place.segment);
  }
  /// Marks the entry of a record of this process as dead, and frees its bytes.
  void free_place(const BlockKey& key, const BlockKey& parent, const RecordPlace& at) {
    Segment& segment = *segments_.at(at.segment);
    SegmentEntry entry{};
    entry.key = key;
    entry.parent = parent;
    entry.offset = at.offset;
    entry.payload_bytes = at.payload_bytes;
    entry.head_bytes = at.head_bytes;
    entry.state = SegmentEntry::dead;
    (void)segment.write_entry(at.entry, entry);  // if this fails, the record is found again by the next process
    segment.live_bytes -= entry.extent();
    --segment.live_records;
    free_bytes(segment, at);
    remove_if_empty(at.segment);
  }
  /// Frees the bytes of a record, where the file system can.
  void free_bytes(Segment& segment, const RecordPlace& at) {
    const std::uint64_t extent = record_extent(at.head_bytes, at.payload_bytes);
    if (segment.punch(at.offset, extent) == 0) {
      segment.physical_bytes -= extent;
      physical_ -= extent;
    }
  }
  /// Evicts one record, or where a file cannot have holes, its segment. Whether there was one.
  bool evict_one() {
    const std::uint64_t before = physical_;
    auto* const victim = index_.victim();
    if (victim == nullptr) {
      const bool had_current = current_ != nullptr && current_->writers == 0;
      if (had_current) {
        seal();  // a segment without records: its table may be what is in the way
      }
      return physical_ < before;
    }
    const BlockKey key = victim->first;
    const RecordPlace at = victim->second.value;
    index_.erase(*victim);
    free_place(key, {}, at);
    ++evicted_;
    if (physical_ == before) {
      evict_segment(at.segment);
    }
    return true;
  }
  void evict_segment(std::uint32_t number) {
    if (current_ != nullptr && number == current_number_) {
      seal();
    }
    std::vector<BlockKey> keys;
    index_.for_each([&](auto& record) {
      if (record.second.value.segment == number) {
        keys.push_back(record.first);
      }
    });
    for (const BlockKey& key : keys) {
      auto* const record = index_.find(key);
      const RecordPlace at = record->second.value;
      index_.erase(*record);
      free_place(key, {}, at);
      ++evicted_;
    }
  }

  /// Looks for new segments and new records of other processes, if the last look is long enough ago. Whether it looked.
  bool refresh() {
    if (std::chrono::steady_clock::now() - scanned_ < config_.refresh) {
      return false;
    }
    scan();
    return true;
  }
  void scan() {
    std::vector<std::string> added;
    std::unordered_set<std::string> there;
    std::error_code error;
    for (std::filesystem::directory_iterator each(config_.folder, error), end; !error && each != end;
         each.increment(error)) {
      const std::string path = each->path().string();
      if (path.ends_with(extension)) {
        there.insert(path);
        if (!paths_.contains(path)) {
          added.push_back(path);
        }
      } else if (path.ends_with(std::string(extension) + ".new")) {
        remove_abandoned(path);
      }
    }
    foreign_.clear();
    std::vector<std::pair<std::uint32_t, std::shared_ptr<Segment>>> news;
    for (auto each = segments_.begin(); each != segments_.end();) {
      const auto& [number, segment] = *each;
      if (segment->is_own) {
        ++each;
        continue;
      }
      physical_ -= segment->physical_bytes;
      if (!there.contains(segment->path())) {
        paths_.erase(segment->path());
        each = segments_.erase(each);
        continue;
      }
      news.emplace_back(*each);
      ++each;
    }
    for (const std::string& path : added) {
      if (std::optional<Segment> opened = Segment::open(path, true)) {
        if (config_.is_direct) {
          (void)opened->go_direct();
        }
        news.emplace_back(++last_number_, std::make_shared<Segment>(std::move(*opened)));
        segments_.emplace(last_number_, news.back().second);
        paths_.insert(path);
      }
    }
    std::sort(news.begin(), news.end(), [](const auto& a, const auto& b) {
      return a.second->sequence() != b.second->sequence() ? a.second->sequence() < b.second->sequence()
                                                          : a.second->path() < b.second->path();
    });
    std::size_t most = index_.size();
    for (const auto& [number, segment] : news) {
      most += segment->entries_there();
    }
    index_.reserve(most);
    for (const auto& [number, segment] : news) {
      read_segment(number, *segment);
    }
    for (const auto& [number, segment] : news) {
      remove_if_empty(number);
    }
    scanned_ = std::chrono::steady_clock::now();
  }
  /// A process was killed while it made a segment.
  static void remove_abandoned(const std::string& path) {
    const io::detail::FileHandle file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    struct stat status{};
    if (file && ::flock(file.get(), LOCK_EX | LOCK_NB) == 0 && ::fstat(file.get(), &status) == 0 &&
        status.st_size > 0) {  // of size 0: perhaps not locked yet by its maker
      (void)::unlink(path.c_str());
    }
  }
  void read_segment(std::uint32_t number, Segment& segment) {
    const bool is_own = segment.try_own();
    std::vector<SegmentEntry> table;
    (void)segment.read_table(table);  // an entry that cannot be read is not there
    last_sequence_ = std::max(last_sequence_, segment.sequence());
    const std::uint64_t size = segment.size();
    std::uint64_t extents = 0;
    ++segment.writers;  // a record that is there twice may be the only one as yet: the segment stays
    const kvc::detail::ScopeGuard was_read([&] { --segment.writers; });
    for (std::uint32_t i = 0; i < table.size(); ++i) {
      const SegmentEntry& entry = table[i];
      if (!entry.is_valid(size, segment.data_begin()) || entry.state != SegmentEntry::live) {
        continue;
      }
      extents += entry.extent();
      const RecordPlace at{number, i, entry.offset, entry.payload_bytes, entry.head_bytes};
      if (!is_own) {
        if (index_.find(entry.key) == nullptr && !forgotten_.contains(entry.key)) {
          foreign_.insert_or_assign(entry.key, at);
        }
        continue;
      }
      foreign_.erase(entry.key);
      if (auto* const old = index_.find(entry.key)) {  // written twice, and killed between: the later one stays
        const RecordPlace old_at = old->second.value;
        index_.erase(*old);
        free_place(entry.key, entry.parent, old_at);
      }
      index_.insert(entry.key, entry.parent, at);
      segment.live_bytes += entry.extent();
      ++segment.live_records;
    }
    segment.physical_bytes = std::max(segment.data_begin() + extents, segment.allocated());
    physical_ += segment.physical_bytes;
  }

  Config config_;
  mutable std::mutex mutex_;
  RecordIndex<RecordPlace> index_;                                   // of own segments
  std::unordered_map<BlockKey, RecordPlace, BlockKeyHash> foreign_;  // of others'
  std::unordered_set<BlockKey, BlockKeyHash> forgotten_;             // of these, erased by this process
  std::map<std::uint32_t, std::shared_ptr<Segment>> segments_;
  std::unordered_set<std::string> paths_;
  std::unordered_set<std::uint32_t> compacting_;
  std::shared_ptr<Segment> current_;  // takes new records
  std::uint32_t current_number_ = 0, last_number_ = 0;
  std::uint64_t last_sequence_ = 0;
  std::uint64_t physical_ = 0;
  std::uint64_t evicted_ = 0;
  std::chrono::steady_clock::time_point scanned_{};
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
