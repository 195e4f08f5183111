// --help of the one-page examples, which take no arguments.
#pragma once

#include <cstdio>
#include <string_view>

/// Whether the program should run. Otherwise it has printed `text`, for --help, or an error, and main returns
/// `exit_code`: 0 or 2.
inline bool runs_without_arguments(int argc, char** argv, const char* text, int& exit_code) {
  if (argc < 2) {
    return true;
  }
  const std::string_view argument = argv[1];
  const bool help = argument == "--help" || argument == "-h";
  if (help) {
    std::printf("%s\n\nIt takes no arguments. Exit code: 0 if all went as described, 1 otherwise.\n", text);
  } else {
    std::fprintf(stderr, "unexpected argument \"%s\"; --help says what the program does\n", argv[1]);
  }
  exit_code = help ? 0 : 2;
  return false;
}
