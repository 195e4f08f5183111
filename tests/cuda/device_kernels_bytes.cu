// Kernels of the device tests over caches of bytes, and the plain kernel of float: see device_kernels.hpp.
#include "device_kernels.hpp"

KVC_TEST_KERNELS_OF_BYTES(template)
