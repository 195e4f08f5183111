// Where the public test data lie: KVC_TEST_DATA, or a folder beside the checkout.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "catch.hpp"

namespace kvc_test {

inline std::string data_root() {
  const char* given = std::getenv("KVC_TEST_DATA");
  return given != nullptr && *given != '\0' ? given : KVC_SOURCE_DIR "/../shared/data";
}

/// The path of one file or folder of the data. The running test case ends as skipped where it is absent.
inline std::string data_file(const std::string& name) {
  const std::string path = data_root() + "/" + name;
  if (!std::filesystem::exists(path)) {
    KVC_SKIP("no " << path << "; set KVC_TEST_DATA to the folder that has " << name);
  }
  return path;
}

}  // namespace kvc_test
