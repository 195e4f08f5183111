#include "kvc/policy/contiguous.hpp"
#include "real_run.hpp"

namespace serving {

template void real_over<kvc::Contiguous>(const Scenario&, const SchedulerConfig&, const RealMachine&, const OnProgress&,
                                         const OnAnswer&, RunResult&);

}  // namespace serving
