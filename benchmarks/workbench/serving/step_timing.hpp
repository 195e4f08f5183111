// Measured times of steps on this machine.
//
// On a shared machine a single time means little and a median more. All kinds of steps are measured in turn, in several
// rounds, so that a disturbance affects all kinds alike.
#pragma once

#include <vector>

#include "calibration.hpp"
#include "real.hpp"

namespace serving {

/// Times the steps of a server under requests made for this purpose: 1, 2, 4 ... 32 sequences at a time, prompts whole
/// and in chunks, of all lengths that the positions of the model allow. All requests arrive at the start, so every
/// round has the same steps; the time of each is the median of `rounds`. A time runs from the beginning of a step to
/// the beginning of the next: it includes scheduling, sampling and bookkeeping, and processor caches are as cold as in
/// service. A round takes one second with the model of the project.
[[nodiscard]] std::vector<StepTiming> time_steps(const RealMachine& machine, int rounds);

/// The steps of a prompt that is computed in chunks while other sequences decode.
struct ChunkTiming {
  Pos chunk = 0;
  std::vector<StepTiming> steps;
};

/// Timings of prefill, decode and chunks on one machine.
struct CostCurve {
  Pos prompt = 0;                    ///< tokens of the prompts in `prefill` and `chunked`
  Index decoding = 0;                ///< sequences that decode beside a chunk
  std::vector<StepTiming> prefill;   ///< of the first 1, 2, 4 ... tokens of a prompt
  std::vector<StepTiming> decode;    ///< of one token each of 1, 2, 4 ... sequences, in the middle of the positions
  std::vector<ChunkTiming> chunked;  ///< chunks of 16, 32 ... tokens and of the whole prompt
};
[[nodiscard]] CostCurve time_curve(const RealMachine& machine, int rounds);

}  // namespace serving
