// The main function of the one-page examples, which take no arguments but --help.
#pragma once

#include <cstdio>
#include <string_view>
#include <type_traits>

/// Runs `example` and returns its exit code, 0 if it returns nothing. With --help prints `text`; any other argument is
/// an error, 2.
template <class F>
int run_example(int argc, char** argv, const char* text, F&& example) {
  if (argc > 1) {
    const std::string_view argument = argv[1];
    if (argument == "--help" || argument == "-h") {
      std::printf("%s\n\nIt takes no other arguments. Exit code: 0 if all went as described, 1 otherwise.\n", text);
      return 0;
    }
    std::fprintf(stderr, "unexpected argument \"%s\"; --help says what the program does\n", argv[1]);
    return 2;
  }
  if constexpr (std::is_void_v<decltype(example())>) {
    example();
    return 0;
  } else {
    return example();
  }
}
