#include "cases.hpp"
#include "kvc/element/quantized.hpp"
static const kvc_bench::Cases cases(5, kvc_bench::add_cases<kvc::Fp8E4M3>);
