// Nothing in kvc/tier asks what time of the day it is, or when a file was written: a wall clock may jump. Whatever does
// does not compile here. Time-outs are those of a clock that only runs forward.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#if defined(KVC_HAVE_HIREDIS)
#include <hiredis/hiredis.h>
#endif
#if defined(KVC_HAVE_LIBURING)
#include <liburing.h>
#endif

#include <Eigen/Core>

#include "catch.hpp"

#if defined(__GNUC__)
#pragma GCC poison system_clock utc_clock file_clock high_resolution_clock last_write_time gettimeofday localtime
#pragma GCC poison localtime_r gmtime gmtime_r clock_gettime timespec_get st_mtim st_atim st_ctim futimens utimensat
#endif

#include "kvc/tier/file_store.hpp"
#include "kvc/tier/host_store.hpp"
#include "kvc/tier/tiers.hpp"
#if defined(KVC_HAVE_HIREDIS)
#include "kvc/tier/redis_cluster_store.hpp"
#include "kvc/tier/redis_store.hpp"
#endif

TEST_CASE("What waits for a store waits by a steady clock", "[tier]") {
  STATIC_REQUIRE(kvc::tier::TimePoint::clock::is_steady);
}
