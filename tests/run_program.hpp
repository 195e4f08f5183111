// Runs a built program as a user runs it.
#pragma once

#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "catch.hpp"

namespace kvc_test {

struct Run {
  int status;
  std::string output;
};

/// `environment program arguments` in a shell; stdout, or both streams with "2>&1" among the arguments. Skips the test
/// where the program was not built.
inline Run run_program(const std::string& program, const std::string& arguments, const std::string& environment = "") {
  if (!std::filesystem::exists(program)) {
    KVC_SKIP("it was not built at " << program);
  }
  std::FILE* pipe = popen((environment + " " + program + " " + arguments).c_str(), "r");
  REQUIRE(pipe != nullptr);
  Run run{0, {}};
  char buffer[4096];
  for (std::size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
    run.output.append(buffer, n);
  }
  run.status = WEXITSTATUS(pclose(pipe));
  return run;
}

}  // namespace kvc_test
