// Without exceptions, an error reaches the handler with the message that the exception would have.
#include <cstdlib>
#include <iostream>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/policy/contiguous.hpp"

#if KVC_HAS_EXCEPTIONS
#error "this program is for a build with -fno-exceptions"
#endif

namespace {

void expect_message(const char* message) {
  const bool named = std::string_view(message).find("block_tokens") != std::string_view::npos;
  std::cout << message << '\n';
  std::exit(named ? EXIT_SUCCESS : EXIT_FAILURE);
}

}  // namespace

int main() {
  kvc::set_error_handler(&expect_message);
  kvc::require(false, "block_tokens", 0, "at least 1");
  return EXIT_FAILURE;
}
