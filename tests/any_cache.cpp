// The caches and engines behind snapshot/any_cache.hpp and transfer/engine.hpp that several files use.
#include "snapshot/any_cache.hpp"
#include "transfer/engine.hpp"

namespace kvc_test {

template class CacheOf<float, kvc::Contiguous, kvc::HeadMajor>;
template class CacheOf<float, kvc::Contiguous, kvc::TokenMajor>;
template class CacheOf<float, kvc::Paged, kvc::HeadMajor>;
template class CacheOf<float, kvc::Paged, kvc::TokenMajor>;
template class CacheOf<float, Prefixes, kvc::HeadMajor>;
template class CacheOf<float, Prefixes, kvc::TokenMajor>;

template class Engine<float, kvc::Contiguous>;
template class Engine<float, kvc::Paged>;
template class Engine<float, kvc::Paged, kvc::TokenMajor>;
template class Engine<float, Prefixes>;

}  // namespace kvc_test
