#include "cases.hpp"
#include "kvc/core/half.hpp"
static const kvc_bench::Cases cases(3, kvc_bench::add_cases<Eigen::bfloat16>);
