#include "attend_impl.hpp"

template struct kvc_test::Attend<float>;
