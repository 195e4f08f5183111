// One way to include Catch2, whether it is version 2.13 or 3, and to skip a test case in both.
#pragma once

#include <iostream>
#include <sstream>
#include <string>

#if __has_include(<catch2/catch_all.hpp>)

#include <catch2/catch_all.hpp>
#define KVC_CATCH_VERSION 3
using Catch::Approx;

#else

#include <catch2/catch.hpp>
#define KVC_CATCH_VERSION 2
namespace Catch {
using Detail::Approx;
}

#endif

namespace kvc_test {

/// A matcher for strings that contain `text`, as in REQUIRE_THROWS_WITH(f(), contains("dim")).
inline auto contains(const std::string& text) {
#if KVC_CATCH_VERSION == 3
  return Catch::Matchers::ContainsSubstring(text);
#else
  return Catch::Matchers::Contains(text);
#endif
}

/// How many times the running program skipped; the main function for Catch2 2 reads it.
inline int skip_count = 0;

/// Ends the running test case as skipped. Use KVC_SKIP.
[[noreturn]] inline void skip(const std::string& reason) {
  ++skip_count;
  std::cerr << "skipped: " << Catch::getResultCapture().getCurrentTestName() << ": " << reason << std::endl;
#if KVC_CATCH_VERSION == 3
  SKIP(reason);
#else
  // Catch2 2 has no SKIP, but this exception, which a failed REQUIRE throws after it has recorded its
  // failure, ends a test case and records nothing by itself.
  throw Catch::TestFailureException();
#endif
}

}  // namespace kvc_test

/// Ends the running test case, from wherever it is called, as neither passed nor failed: a program that
/// has skipped and not failed exits with 4, which CTest counts as skipped. Takes a stream expression:
///   KVC_SKIP("no data at " << path);
#define KVC_SKIP(reason)                  \
  do {                                    \
    std::ostringstream kvc_skip_text_;    \
    kvc_skip_text_ << reason;             \
    kvc_test::skip(kvc_skip_text_.str()); \
  } while (false)
