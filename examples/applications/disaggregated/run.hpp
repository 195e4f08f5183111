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
  // For tests, over MPI: kill the process of this decode engine after it has decoded so many layers.
  int die_rank = -1;
  int die_after = 0;
};

/// One thread for each engine; the router shares the first one's.
RunRecord run_in_process(const kvc::llama::Model& model, std::span<const Request> requests, const RunConfig& config);

/// Whether this program was built with MPI.
bool has_mpi();
/// Runs the part of this process, between MPI_Init and MPI_Finalize (which waits for ever if an engine has died;
/// MPI_Abort ends the others then). Rank 0 returns the record. It runs `before` first, while the others wait.
std::optional<RunRecord> run_over_mpi(const kvc::llama::Model& model, std::span<const Request> requests,
                                      const RunConfig& config, const std::function<void()>& before);

}  // namespace disaggregated
