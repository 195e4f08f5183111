#include "cases.hpp"

static const kvc_bench::Cases cases(1, kvc_bench::add_cases<float>);
