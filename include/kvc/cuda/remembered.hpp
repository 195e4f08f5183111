// PerDevice and RecentValues: answers of the driver that do not change, kept on the host. A launch asks for occupancy,
// attributes and tensor maps; each question takes the CPU up to a microsecond.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <vector>

#include "kvc/config.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// A number of at least 0 that is constant for each device. Threads may share it: if two ask at once, both get the same
/// answer. Survives no reset of the device.
class PerDevice {
 public:
  /// The number for `device`: that of ask(), which is called the first time, and again if it threw; and each time for
  /// devices from the 64th on.
  template <class Ask>
  [[nodiscard]] int get(int device, Ask ask) {
    if (device < 0 || device >= static_cast<int>(known_.size())) {
      return ask();
    }
    std::atomic<int>& known = known_[static_cast<std::size_t>(device)];
    int next = known.load(std::memory_order_acquire);
    if (next == 0) {
      next = ask() + 1;
      known.store(next, std::memory_order_release);
    }
    return next - 1;
  }

 private:
  std::array<std::atomic<int>, 64> known_{};  ///< the number plus 1; 0: not known
};

/// The last values of a function that depends on its key only. Not for several threads at once.
///
///   Key    comparable by ==
template <class Key, class Value>
class RecentValues {
 public:
  /// Keeps up to `places` values, at least 1; keys whose hashes are equal modulo `places` displace each other.
  explicit RecentValues(std::size_t places) : places_(places) {}

  /// The value of `key`: make() unless it is kept. Valid until the next call. Nothing changes if make() throws.
  template <class Make>
  [[nodiscard]] const Value& get(const Key& key, std::size_t hash, Make make) {
    Place& place = places_[hash % places_.size()];
    if (!place.used || !(place.key == key)) {
      const Value value = make();
      place = {true, key, value};
    }
    return place.value;
  }

 private:
  struct Place {
    bool used = false;
    Key key{};
    Value value{};
  };
  std::vector<Place> places_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
