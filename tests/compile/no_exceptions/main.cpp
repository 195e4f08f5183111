// Without exceptions the try_ forms work as ever, and an error reaches the handler with the message that
// the exception would have had.
#include <cstdlib>
#include <iostream>
#include <string_view>

#include "kvc/kvc.hpp"

#if KVC_HAS_EXCEPTIONS
#error "this program is for a build with -fno-exceptions"
#endif

namespace {

void expect_block_tokens(const char* message) {
  std::cout << message << '\n';
  std::exit(std::string_view(message).find("block_tokens is 0") != std::string_view::npos ? 0 : 1);
}

}  // namespace

int main() {
  const kvc::Shape shape{.layers = 1, .kv_heads = 1, .key_dim = 4};
  kvc::KvCache<float, kvc::Paged> cache(shape, {.blocks = 2, .block_tokens = 4});
  const kvc::SeqId seq = cache.open();
  if (cache.try_extend(seq, 9)) return 1;
  if (!cache.try_extend(seq, 8)) return 1;

  kvc::set_error_handler(&expect_block_tokens);
  const kvc::KvCache<float, kvc::Paged> bad(shape, {.blocks = 2, .block_tokens = 0});
  return 1;
}
