// The caches and engines behind snapshot/any_cache.hpp and transfer/engine.hpp that several files use.
#include "snapshot/any_cache.hpp"
#include "transfer/engine.hpp"

namespace kvc_test {

template class CacheOf<float, kvc::Paged, kvc::HeadMajor>;
template class CacheOf<float, kvc::Paged, kvc::TokenMajor>;
template class CacheOf<float, Prefixes, kvc::HeadMajor>;

template class Engine<float, kvc::Paged>;
template class Engine<float, kvc::Paged, kvc::TokenMajor>;
template class Engine<float, Prefixes>;

#if !defined(KVC_THREADS_ALONE)  // no test with threads uses these
template class CacheOf<float, kvc::Contiguous, kvc::HeadMajor>;
template class CacheOf<float, kvc::Contiguous, kvc::TokenMajor>;
template class CacheOf<float, Prefixes, kvc::TokenMajor>;

template class Engine<float, kvc::Contiguous>;
#endif

}  // namespace kvc_test
