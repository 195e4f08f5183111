// says: no kernels for this element type
#include "kvc/element/quantized.hpp"
#include "kvc/cuda/view.cuh"

void f(std::byte* pool, const kvc::HeadMajor& layout) { (void)kvc::cuda::layer_view<kvc::Int4>(pool, layout, {}, 0); }
