// Bytes from a server: the right replies are understood, and of no others comes anything wrong.
#if defined(KVC_HAVE_HIREDIS)

#include "redis_replies.hpp"

#include <string>
#include <vector>

#include "../random_source.hpp"
#include "catch.hpp"

TEST_CASE("Of what a server answers comes a right outcome, or none", "[tier][redis]") {
  const auto expect = [](bool ok, const char* what) {
    if (!ok) {
      FAIL(what);
    }
  };
  const std::vector<std::string> right = kvc_test::redis_replies();
  const std::vector<std::string> words{"\r\n",
                                       "*",
                                       "$",
                                       ":",
                                       "-",
                                       "+",
                                       "*-1\r\n",
                                       "*1048577\r\n",
                                       "$-1\r\n",
                                       "*2147483647\r\n",
                                       "$9223372036854775807\r\n",
                                       "-MOVED 1 a:1\r\n",
                                       ":1\r\n",
                                       "*1\r\n*1\r\n*1\r\n",
                                       std::string(1, '\0'),
                                       "99999999999999999999"};
  for (const std::string& reply : right) {
    kvc_test::check_redis_replies(reply, expect);
  }
  kvc_test::Random random(kvc_test::seed_or(41));
  const int inputs = kvc_test::operations_or(0) >= 1000000 ? 1000000 : 2000;
  for (int i = 0; i < inputs; ++i) {
    std::string input = right[random.between<std::size_t>(0, right.size() - 1)];
    for (int changes = random.between(1, 4); changes > 0 && !input.empty(); --changes) {
      const std::size_t at = random.between<std::size_t>(0, input.size() - 1);
      switch (random.between(0, 4)) {
        case 0:
          input[at] = static_cast<char>(random.between(0, 255));
          break;
        case 1:
          input.resize(at);
          break;
        case 2:
          input.erase(at, random.between<std::size_t>(1, 8));
          break;
        case 3:
          input.insert(at, words[random.between<std::size_t>(0, words.size() - 1)]);
          break;
        default: {
          const std::string& other = right[random.between<std::size_t>(0, right.size() - 1)];
          input += other.substr(random.between<std::size_t>(0, other.size() - 1));
        }
      }
    }
    CAPTURE(i, input);
    kvc_test::check_redis_replies(input, expect);
  }
}

#endif
