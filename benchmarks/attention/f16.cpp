#include "cases.hpp"
#include "kvc/core/half.hpp"
static const kvc_bench::Cases cases(2, kvc_bench::add_cases<Eigen::half>);
