#include "kvc/policy/prefix_shared.hpp"
#include "real_run.hpp"

namespace serving {

template void real_over<kvc::PrefixShared<>>(const Scenario&, const SchedulerConfig&, const RealMachine&,
                                             const OnProgress&, const OnAnswer&, RunResult&);

}  // namespace serving
