// The record of a run: the times of each request, and the figures of each engine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "messages.hpp"

namespace disaggregated {

enum class State { waiting, assigned, done, failed, cancelled };

struct RequestRecord {
  State state = State::waiting;
  std::string failure;  ///< why it failed
  Attempt attempt;      ///< the last one
  Peer prefill = -1;
  Peer decode = -1;
  Pos prompt_tokens = 0;
  Pos output_tokens = 0;
  std::vector<Token> output;

  bool computed = false;  ///< the prompt
  bool handed_over = false;
  bool finished = false;  ///< by the decode engine
  Time arrival = 0;
  Prefilled prefilled{};
  HandedOver handover{};
  Finished decoded{};

  [[nodiscard]] bool is_over() const noexcept { return state != State::waiting && state != State::assigned; }
  /// Time to first token.
  [[nodiscard]] Time ttft() const noexcept { return prefilled.end - arrival; }
  /// Time per output token after the first.
  [[nodiscard]] Time tpot() const noexcept {
    return output_tokens < 2 ? 0 : (decoded.end - prefilled.end) / (output_tokens - 1);
  }
  /// From the first rows that could be sent until all had arrived.
  [[nodiscard]] Time transfer() const noexcept { return decoded.received - handover.begin; }
  /// The part of it in which the prompt was still being computed.
  [[nodiscard]] Time hidden() const noexcept {
    return std::clamp<Time>(prefilled.end - handover.begin, 0, std::max<Time>(0, transfer()));
  }
};

struct EngineRecord {
  bool lost = false;
  bool stopped = false;
  Stopped figures{};
};

struct RunRecord {
  int prefill_engines = 0;
  std::vector<EngineRecord> engines;  // by peer: the prefill engines first
  std::vector<RequestRecord> requests;
  Time total = 0;  // until the last request ended

  [[nodiscard]] bool is_complete() const {
    return std::all_of(requests.begin(), requests.end(), [](const RequestRecord& r) { return r.state == State::done; });
  }
};

}  // namespace disaggregated
