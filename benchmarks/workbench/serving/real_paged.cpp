#include "kvc/policy/paged.hpp"

#include "real_run.hpp"

namespace serving {

template void ModelExecutor::run(kvc::KvCache<float, kvc::Paged>& cache, Step<kvc::KvCache<float, kvc::Paged>>& step);
template void real_over<kvc::Paged>(const Scenario&, const SchedulerConfig&, const RealMachine&, const OnProgress&,
                                    const OnAnswer&, RunResult&);

}  // namespace serving
