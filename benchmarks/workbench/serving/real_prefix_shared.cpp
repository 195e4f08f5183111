#include "real_policies.hpp"
#include "real_run.hpp"

namespace serving {

template void real_over<RealPrefixShared>(const Scenario&, const SchedulerConfig&, const RealMachine&,
                                          const OnProgress&, const OnAnswer&, RunResult&);
template kvc::llama::Matrix compute_rows(const RealMachine&, kvc::KvCache<float, RealPrefixShared>&,
                                         const kvc::KvCache<float, RealPrefixShared>::Append&, std::span<const Token>);

}  // namespace serving
