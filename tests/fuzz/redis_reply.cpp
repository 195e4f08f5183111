// Bytes from a Redis server: a store understands the right replies, and gives nothing wrong for any others. The first
// byte says what was asked for; see tests/tier/redis_replies.hpp.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "../tier/redis_replies.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvc_test::check_redis_replies({reinterpret_cast<const char*>(data), size}, [](bool ok, const char* what) {
    if (!ok) {
      std::fprintf(stderr, "broken: %s\n", what);
      std::abort();
    }
  });
  return 0;
}
