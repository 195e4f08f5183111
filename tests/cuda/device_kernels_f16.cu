// Kernels of the device tests: see device_kernels.hpp.
#include "device_kernels.hpp"

KVC_TEST_KERNELS_F16(template)
