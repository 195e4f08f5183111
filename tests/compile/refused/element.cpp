// says: no kernels for this element type
#include "kvc/cuda/view.cuh"
#include "kvc/element/quantized.hpp"

void f(std::byte* pool, const kvc::HeadMajor& layout) { (void)kvc::cuda::layer_view<kvc::Int4>(pool, layout, {}, 0); }
