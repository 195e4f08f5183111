// TenantQuota: how many evictable blocks each tenant has, and which of them must go first.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/eviction/block_lists.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The tenants of open sequences and of cached blocks, each with a list of its evictable blocks, the oldest first.
/// Operations are O(1) expected, but `acquire` is O(blocks) when there are more tenants than ever before. Takes 12
/// bytes per block, and none without a quota.
class TenantQuota {
 public:
  static constexpr int none = -1;

  /// At most `quota` blocks per tenant; 0: no limit.
  TenantQuota(Index blocks, Index quota) : quota_(quota), lists_(quota > 0 ? blocks : 0, 0) {
    if (quota > 0) {
      lists_.reserve(64);
      tenant_of_ = BlockArray<int>(blocks, none);
    }
  }
  [[nodiscard]] bool limited() const noexcept { return quota_ > 0; }

  /// One reference more to a tenant, of an open sequence. Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] int acquire(std::string_view tenant) {
    if (!limited()) {
      return none;
    }
    const std::string key(tenant);
    if (const auto known = ids_.find(key); known != ids_.end()) {
      ++tenants_[static_cast<std::size_t>(known->second)].ref_count;
      return known->second;
    }
    if (free_.empty()) {
      free_.reserve(tenants_.size() + 1);  // so that release cannot fail
      lists_.reserve(static_cast<int>(tenants_.size()) + 1);
      tenants_.emplace_back();
      lists_.add_list();
      free_.push_back(static_cast<int>(tenants_.size()) - 1);
    }
    const int id = free_.back();
    tenants_[static_cast<std::size_t>(id)].name = &ids_.emplace(key, id).first->first;
    tenants_[static_cast<std::size_t>(id)].ref_count = 1;
    free_.pop_back();
    return id;
  }
  void ref(int tenant) noexcept {
    if (tenant != none) {
      ++tenants_[static_cast<std::size_t>(tenant)].ref_count;
    }
  }
  void release(int tenant) noexcept {
    if (tenant == none) {
      return;
    }
    Tenant& t = tenants_[static_cast<std::size_t>(tenant)];
    if (--t.ref_count == 0) {
      ids_.erase(ids_.find(*t.name));
      free_.push_back(tenant);
    }
  }

  /// A block of the tenant has become cached, or is not cached any more.
  void on_cached(BlockId block, int tenant) noexcept {
    if (limited()) {
      tenant_of_[block] = tenant;
      ref(tenant);
    }
  }
  void on_uncached(BlockId block) noexcept {
    if (limited()) {
      release(tenant_of_[block]);
    }
  }
  /// A cached block became evictable, or is referenced again.
  void on_evictable(BlockId block) noexcept {
    if (limited()) {
      lists_.push_newest(tenant_of_[block], block);
      ++tenant(block).evictable;
    }
  }
  void on_acquired(BlockId block) noexcept {
    if (limited()) {
      lists_.erase(block);
      --tenant(block).evictable;
    }
  }

  /// The block that must be evicted because its tenant exceeds the quota by this one, or no_block. It has no cached
  /// children.
  [[nodiscard]] BlockId in_excess(BlockId block) noexcept {
    if (!limited() || tenant(block).evictable <= quota_) {
      return no_block;
    }
    return lists_.oldest(tenant_of_[block]);
  }

  /// `sequences` are the references of open sequences; all others are of cached blocks. Throws InvariantError.
  template <class IsCached, class IsEvictable>
  void verify(std::span<const Index> sequences, IsCached is_cached, IsEvictable is_evictable) const {
    if (!limited()) {
      return;
    }
    std::vector<Index> ref_counts(sequences.begin(), sequences.end());
    std::vector<Index> evictable(tenants_.size(), 0);
    tenant_of_.for_each([&](BlockId block, int tenant) {
      if (is_cached(block)) {
        ++ref_counts[static_cast<std::size_t>(tenant)];
        evictable[static_cast<std::size_t>(tenant)] += is_evictable(block) ? 1 : 0;
      }
    });
    for (std::size_t t = 0; t < tenants_.size(); ++t) {
      if (tenants_[t].ref_count != ref_counts[t] || tenants_[t].evictable != evictable[t] || evictable[t] > quota_) {
        throw_error(InvariantError("kvc: tenant " + std::to_string(t) + " counts " +
                                   std::to_string(tenants_[t].evictable) + " cached blocks, and has " +
                                   std::to_string(evictable[t])));
      }
    }
    if (ids_.size() + free_.size() != tenants_.size()) {
      throw_error(InvariantError("kvc: tenants that nothing references are remembered, or used ones are not"));
    }
  }
  [[nodiscard]] std::size_t entries() const noexcept { return tenants_.size(); }

 private:
  struct Tenant {
    const std::string* name = nullptr;  // the key in ids_
    Index ref_count = 0;
    Index evictable = 0;
  };
  [[nodiscard]] Tenant& tenant(BlockId block) noexcept { return tenants_[static_cast<std::size_t>(tenant_of_[block])]; }

  Index quota_;
  BlockLists lists_;  // one per tenant: its cached blocks that nothing references
  BlockArray<int> tenant_of_;
  std::vector<Tenant> tenants_;
  std::vector<int> free_;
  std::unordered_map<std::string, int> ids_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
