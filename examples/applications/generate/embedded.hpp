// The model and the tokenizer that embed.S puts into the program: bytes of its read-only data, which
// live as long as the program and start at a multiple of 64.
#pragma once

#include <cstddef>
#include <span>

extern "C" {
extern const std::byte kvc_model_begin[];
extern const std::byte kvc_model_end[];
extern const std::byte kvc_tokenizer_begin[];
extern const std::byte kvc_tokenizer_end[];
}

/// examples/model/shakespeare.bin
inline std::span<const std::byte> embedded_model() { return {kvc_model_begin, kvc_model_end}; }

/// examples/model/shakespeare.tok
inline std::span<const std::byte> embedded_tokenizer() { return {kvc_tokenizer_begin, kvc_tokenizer_end}; }
