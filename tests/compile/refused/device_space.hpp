// A space as that of a GPU is: the CPU cannot read it.
#pragma once

#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

struct FarSpace {
  static constexpr bool host_accessible = false;
  std::byte* allocate(std::size_t) { return nullptr; }
  void deallocate(std::byte*, std::size_t) noexcept {}
  void copy(std::byte*, const std::byte*, std::size_t) noexcept {}
};
using FarCache = kvc::KvCache<float, kvc::Paged, kvc::HeadMajor, FarSpace>;
