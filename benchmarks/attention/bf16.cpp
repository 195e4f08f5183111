#include "cases.hpp"
#include "kvc/element/float16.hpp"
static const kvc_bench::Cases cases(3, kvc_bench::add_cases<Eigen::bfloat16>);
