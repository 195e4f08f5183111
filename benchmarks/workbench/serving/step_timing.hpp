// How long steps take on this machine, measured.
//
// On a machine with other users a time means little and a median more: all kinds of steps are measured in turn, in
// several rounds, so that what disturbs some of them disturbs all.
#pragma once

#include <vector>

#include "calibration.hpp"
#include "real.hpp"

namespace serving {

/// The steps of a server under requests made for this: 1, 2, 4 ... 32 sequences at a time, prompts whole and in chunks,
/// of all lengths that the positions of the model allow. All requests are there from the start, so the steps are the
/// same in every round; the time of each is the median of `rounds`. It is from the beginning of the step to that of
/// the next: scheduling, sampling and bookkeeping are in it, and caches of the processor are as cold as they are in
/// service. One second for each round with the model of the project.
[[nodiscard]] std::vector<StepTiming> time_steps(const RealMachine& machine, int rounds);

/// A prompt in chunks, while other sequences decode: the steps until it is computed.
struct ChunkTiming {
  Pos chunk = 0;
  std::vector<StepTiming> steps;
};

struct CostCurve {
  Pos prompt = 0;                    ///< tokens of the prompts in `prefill` and `chunked`
  Index decoding = 0;                ///< sequences that decode beside a chunk
  std::vector<StepTiming> prefill;   ///< of the first 1, 2, 4 ... tokens of a prompt
  std::vector<StepTiming> decode;    ///< of one token each of 1, 2, 4 ... sequences, in the middle of the positions
  std::vector<ChunkTiming> chunked;  ///< chunks of 16, 32 ... tokens and of the whole prompt
};
[[nodiscard]] CostCurve time_curve(const RealMachine& machine, int rounds);

}  // namespace serving
