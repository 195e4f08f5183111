#include "run.hpp"

#ifdef KVC_HAVE_MPI
#include <csignal>

#include "decode_engine.hpp"
#include "kvc/transport/mpi.hpp"
#include "prefill_engine.hpp"
#include "router.hpp"

namespace disaggregated {

using kvc::transport::Mpi;

bool has_mpi() { return true; }

std::optional<RunRecord> run_over_mpi(const kvc::llama::Model& model, std::span<const Request> requests,
                                      const RunConfig& config, const std::function<void()>& before) {
  Mpi transport(MPI_COMM_WORLD, {.channels = channels});
  if (transport.self() >= config.prefill_engines) {
    EngineConfig own = config.decode;
    if (transport.self() == config.die_rank) {
      own.between_layers = [left = config.die_after]() mutable {
        if (left-- == 0) {
          std::raise(SIGKILL);
        }
      };
    }
    DecodeEngine<Mpi> engine(model, transport, own);
    drive(transport, engine);
    return std::nullopt;
  }
  if (transport.self() != router_peer) {
    PrefillEngine<Mpi> engine(model, transport, config.prefill);
    drive(transport, engine);
    return std::nullopt;
  }
  before();
  Router<Mpi> router(transport, requests, config.router);
  EngineConfig shared = config.prefill;
  shared.between_layers = [&] { router.step(); };
  PrefillEngine<Mpi> engine(model, transport, shared);
  drive(transport, router, engine);
  return router.record();
}

}  // namespace disaggregated

#else

namespace disaggregated {

bool has_mpi() { return false; }
std::optional<RunRecord> run_over_mpi(const kvc::llama::Model& /*model*/, std::span<const Request> /*requests*/,
                                      const RunConfig& /*config*/, const std::function<void()>& /*before*/) {
  return std::nullopt;
}

}  // namespace disaggregated

#endif
