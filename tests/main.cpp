// The main function of every Catch2 suite. Its exit code: 0 all is well, 4 something was skipped and
// nothing failed, 1 otherwise. Catch2 itself may return 4 for four failures, and 0 for no test at all.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_RUNNER
#endif
#include "catch.hpp"

namespace {

bool failed = false;

#if KVC_CATCH_VERSION == 3
using Listener = Catch::EventListenerBase;
#else
using Listener = Catch::TestEventListenerBase;
#endif

struct FailureListener : Listener {
  using Listener::Listener;
  void testRunEnded(const Catch::TestRunStats& stats) override {
    const Catch::Counts& cases = stats.totals.testCases;
    failed = cases.failed > 0 || cases.total() == 0;
  }
};

}  // namespace

CATCH_REGISTER_LISTENER(FailureListener)

int main(int argc, char** argv) {
  const int result = Catch::Session().run(argc, argv);
  if (!failed && kvc_test::skip_count > 0) return 4;
  return failed || result != 0 ? 1 : 0;
}
