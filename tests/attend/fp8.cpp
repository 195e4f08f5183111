#include "attend_impl.hpp"

template struct kvc_test::Attend<kvc::Fp8E4M3>;
