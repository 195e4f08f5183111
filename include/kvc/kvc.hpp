// kvc: the KV cache of transformer inference. Includes everything but the adapters that need a library of their own
// (attention/openmp.hpp, attention/tbb.hpp).
#pragma once

#include "kvc/attention/decode.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/attention/reference.hpp"
#include "kvc/attention/scores.hpp"
#include "kvc/attention/state.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/core/half.hpp"
#include "kvc/core/view.hpp"
#include "kvc/model/checkpoint.hpp"
#include "kvc/model/decoder.hpp"
#include "kvc/model/sampler.hpp"
#include "kvc/model/tokenizer.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/version.hpp"
