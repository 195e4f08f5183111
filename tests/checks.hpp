// Checks for where there is no Catch2: other threads and other processes.
#pragma once

#include <iostream>
#include <string>
#include <vector>

namespace kvc_test {

/// Collects what is not as it should be, and says it at once. One thread at a time.
class Checks {
 public:
  explicit Checks(int peer) : peer_(peer) {}
  void expect(bool ok, const std::string& what) {
    if (!ok) {
      wrong_.push_back("peer " + std::to_string(peer_) + ": not so: " + what);
      std::cerr << wrong_.back() + "\n" << std::flush;
    }
  }
  template <class Cache>
  void expect_free(const Cache& cache) {
    cache.verify();  // throws
    expect(cache.stats().blocks_referenced == 0, "no block is referenced");
    expect(cache.stats().sequences == 0, "no sequence is open");
  }
  [[nodiscard]] const std::vector<std::string>& wrong() const noexcept { return wrong_; }

 private:
  int peer_;
  std::vector<std::string> wrong_;
};

}  // namespace kvc_test
