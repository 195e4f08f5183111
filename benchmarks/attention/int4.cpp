#include "cases.hpp"
#include "kvc/element/quantized.hpp"
static const kvc_bench::Cases cases(6, kvc_bench::add_cases<kvc::Int4>);
