// Runs the program serve-bench.
#pragma once

#include <string>

#include "run_program.hpp"

namespace kvc_test {

/// The output of the program, standard error included, and its status.
inline Run serve_bench(const std::string& arguments) { return run_program(KVC_SERVE_BENCH, arguments + " 2>&1"); }

}  // namespace kvc_test
