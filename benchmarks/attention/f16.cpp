#include "cases.hpp"
#include "kvc/element/float16.hpp"
static const kvc_bench::Cases cases(2, kvc_bench::add_cases<Eigen::half>);
