// Forge: takes a snapshot apart and reassembles it with valid checksums, so that only its contents are wrong.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "kvc/snapshot/checksum.hpp"
#include "kvc/snapshot/format.hpp"

namespace kvc_test {

struct ForgedSection {
  kvc::snapshot::format::SectionHeader header{};
  std::vector<std::byte> payload;

  ForgedSection() = default;
  ForgedSection(const char (&name)[5], std::uint32_t flags, std::vector<std::byte> bytes) : payload(std::move(bytes)) {
    header.name = kvc::snapshot::section_name(name);
    header.flags = flags;
    header.size = payload.size();
  }
  /// Overwrites a field of the payload.
  template <class V>
  void set(std::size_t at, V value) {
    std::memcpy(payload.data() + at, &value, sizeof value);
  }
  template <class V>
  [[nodiscard]] V get(std::size_t at) const {
    V value{};
    std::memcpy(&value, payload.data() + at, sizeof value);
    return value;
  }
};

struct Forge {
  kvc::snapshot::format::FileHeader header{};
  std::vector<ForgedSection> sections;  // without the end, unless `own_end` is set
  bool own_end = false;

  Forge() = default;
  /// Splits bytes into sections without checking anything.
  explicit Forge(std::span<const std::byte> bytes) {
    const auto take = [&](void* to, std::size_t size) {
      const std::size_t count = std::min(size, bytes.size());
      if (count > 0) {
        std::memcpy(to, bytes.data(), count);
      }
      bytes = bytes.subspan(count);
      return count == size;
    };
    (void)take(&header, sizeof header);
    for (ForgedSection section; take(&section.header, sizeof section.header); section = {}) {
      if (section.header.name == kvc::snapshot::section::end) {
        break;
      }
      section.payload.resize(static_cast<std::size_t>(std::min<std::uint64_t>(section.header.size, bytes.size())));
      (void)take(section.payload.data(), section.payload.size());
      std::uint64_t checksum = 0;
      (void)take(&checksum, sizeof checksum);
      sections.push_back(section);
    }
  }

  /// The section of this name; the first of several.
  [[nodiscard]] ForgedSection& at(const char (&name)[5]) {
    return *std::find_if(sections.begin(), sections.end(),
                         [&](const ForgedSection& s) { return s.header.name == kvc::snapshot::section_name(name); });
  }

  /// `fix_sizes`: headers announce the true sizes of their payloads; otherwise those that were set.
  [[nodiscard]] std::vector<std::byte> bytes(bool fix_sizes = true) const {
    using kvc::snapshot::detail::Checksum;
    std::vector<std::byte> out;
    const auto put = [&](const auto& value) {
      const auto bytes = std::as_bytes(std::span(&value, 1));
      out.insert(out.end(), bytes.begin(), bytes.end());
    };
    kvc::snapshot::format::FileHeader first = header;
    first.checksum = Checksum::of(std::as_bytes(std::span(&first, 1)).first(16));
    put(first);
    Checksum all;
    std::uint64_t count = 0;
    const auto section = [&](kvc::snapshot::format::SectionHeader h, std::span<const std::byte> payload) {
      if (fix_sizes) {
        h.size = payload.size();
      }
      h.checksum = Checksum::of(std::as_bytes(std::span(&h, 1)).first(24));
      const std::uint64_t sum = Checksum::of(payload);
      put(h);
      out.insert(out.end(), payload.begin(), payload.end());
      put(sum);
      all.add(std::as_bytes(std::span(&h.checksum, 1)));
      all.add(std::as_bytes(std::span(&sum, 1)));
      ++count;
    };
    for (const ForgedSection& s : sections) {
      section(s.header, s.payload);
    }
    if (!own_end) {
      const kvc::snapshot::format::EndRecord end{count, all.value()};
      kvc::snapshot::format::SectionHeader h{kvc::snapshot::section::end,
                                             kvc::snapshot::format::SectionHeader::required, 0, sizeof end, 0};
      section(h, std::as_bytes(std::span(&end, 1)));
    }
    return out;
  }
};

}  // namespace kvc_test
