// Runs requests through prefill and decode engines, as threads or as processes.
#pragma once

#include <optional>
#include <span>

#include "engine.hpp"
#include "records.hpp"
#include "requests.hpp"
#include "router.hpp"

namespace disaggregated {

struct RunConfig {
  int prefill_engines = 1;
  int decode_engines = 2;
  RouterConfig router;
  EngineConfig prefill;
  EngineConfig decode;
  // For tests: over MPI, the process of this decode engine is killed after so many layers that it has decoded.
  int die_rank = -1;
  int die_after = 0;
};

/// One thread for each engine; the router shares the first one's.
RunRecord run_in_process(const kvc::llama::Model& model, std::span<const Request> requests, const RunConfig& config);

/// Whether this program was built with MPI.
bool has_mpi();
/// The part of this process, between MPI_Init and MPI_Finalize (which waits for ever where an engine has died: then
/// MPI_Abort ends the others). The record is that of rank 0.
/// `before` is run there first, while the others wait.
std::optional<RunRecord> run_over_mpi(const kvc::llama::Model& model, std::span<const Request> requests,
                                      const RunConfig& config, const std::function<void()>& before);

}  // namespace disaggregated
