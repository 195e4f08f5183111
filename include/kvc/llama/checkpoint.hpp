// Checkpoints in the legacy format of llama2.c (export version 0).
//
//   int32   dim, hidden_dim, layers, heads, kv_heads, vocab_size, seq_len      vocab_size < 0: a separate classifier
//   float   embedding [vocab, dim]
//           attention norm, wq, wk, wv, wo, ffn norm, gate, down, up           each for all layers, one after the other
//           final norm [dim]
//           two tables [seq_len, head_dim / 2], not used any more
//           classifier [vocab, dim], if it is not the embedding
//
// All numbers are little-endian. The header fixes the size of the file to the byte, so a truncated file, a file with
// bytes appended and a file of another kind are rejected before anything is allocated.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/io/exact_reader.hpp"
#include "kvc/io/file.hpp"
#include "kvc/llama/file_kind.hpp"
#include "kvc/llama/llama.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

namespace detail {

/// A sum of products of counts that saturates instead of overflowing.
class Tally {
 public:
  /// Adds the product of non-negative `factors`.
  template <class... I>
  constexpr void add(I... factors) noexcept {
    Index product = 1;
    ((product = times(product, factors)), ...);
    total_ = product >= most - total_ ? most : total_ + product;
  }
  [[nodiscard]] constexpr Index total() const noexcept { return total_; }

 private:
  static constexpr Index most = Index{1} << 60;  // bytes: still fits after a factor of sizeof(float)
  static constexpr Index times(Index a, Index b) noexcept { return a != 0 && b > most / a ? most : a * b; }
  Index total_ = 0;
};

/// The first 28 bytes of a checkpoint.
struct CheckpointHeader {
  static constexpr Index bytes = 7 * sizeof(std::int32_t);
  Config config;
  bool own_classifier = false;

  /// Bytes of the whole file; 2^60 or more for anything absurd.
  [[nodiscard]] constexpr Index file_size() const noexcept {
    const Config& c = config;
    Tally numbers;
    numbers.add(c.vocab_size, c.dim);
    numbers.add(c.layers, c.dim, Index{2});                // norms
    numbers.add(c.layers, c.dim, c.dim, Index{2});         // wq, wo
    numbers.add(c.layers, c.kv_dim(), c.dim, Index{2});    // wk, wv
    numbers.add(c.layers, c.hidden_dim, c.dim, Index{3});  // gate, down, up
    numbers.add(c.dim);
    numbers.add(c.seq_len, c.head_dim());  // the two tables
    if (own_classifier) {
      numbers.add(c.vocab_size, c.dim);
    }
    Tally size;
    size.add(bytes);
    size.add(numbers.total(), Index{sizeof(float)});
    return size.total();
  }
};

/// Reads the seven numbers and checks each. Throws FormatError.
inline CheckpointHeader read_checkpoint_header(io::ExactReader& in) {
  static constexpr const char* what = "the header of a llama2.c checkpoint, seven int32";
  CheckpointHeader header;
  Config& c = header.config;

  const auto next = [&in](const char* name, bool may_be_negative = false) -> Index {
    const Index at = in.offset();
    const auto value = Index{in.read<std::int32_t>(what)};
    if (value == 0 || (value < 0 && !may_be_negative)) {
      in.fail_at(at, "a llama2.c checkpoint with a positive " + std::string(name) + ", found " + std::to_string(value));
    }
    return value;
  };
  if (in.left() < CheckpointHeader::bytes) {
    in.fail(std::string(what) + " (" + std::to_string(CheckpointHeader::bytes) + " bytes), the file has " +
            std::to_string(in.size()));
  }
  c.dim = next("dim");
  c.hidden_dim = next("hidden_dim");
  c.layers = next("n_layers");
  c.heads = next("n_heads");
  c.kv_heads = next("n_kv_heads");
  const Index vocab_size = next("vocab_size", true);
  header.own_classifier = vocab_size < 0;
  c.vocab_size = vocab_size < 0 ? -vocab_size : vocab_size;
  c.seq_len = next("seq_len");

  const auto agree = [&in](bool ok, const std::string& expected) {
    if (!ok) {
      in.fail_at(0, "a llama2.c checkpoint " + expected);
    }
  };
  agree(c.heads % c.kv_heads == 0,
        "where n_kv_heads divides n_heads, found " + std::to_string(c.kv_heads) + " and " + std::to_string(c.heads));
  agree(c.dim % c.heads == 0 && c.head_dim() % 2 == 0,
        "where dim is an even multiple of n_heads, found " + std::to_string(c.dim) + " and " + std::to_string(c.heads));
  return header;
}

/// Reads one tensor of every layer.
template <class M>
void read_layers(io::ExactReader& in, Model& model, M Layer::* tensor, Index rows, Index cols, const char* what) {
  for (Layer& layer : model.layers) {
    M& m = layer.*tensor;
    m.resize(rows, cols);
    in.read(m.data(), m.size() * Index{sizeof(float)}, what);
  }
}

inline Model read_checkpoint(io::ByteSource& source) {
  require_not_foreign(source, "a llama2.c checkpoint of the legacy format");
  io::ExactReader in(source);
  const CheckpointHeader header = read_checkpoint_header(in);
  const Config& c = header.config;
  const Index expected = header.file_size();
  if (in.size() != expected) {
    in.fail_at(std::min(in.size(), expected),
               (expected >= Index{1} << 60 ? "more than 2^60" : std::to_string(expected)) +
                   " bytes in all, which a llama2.c checkpoint with dim " + std::to_string(c.dim) + ", " +
                   std::to_string(c.layers) + " layers and a vocabulary of " + std::to_string(c.vocab_size) +
                   " has; this file has " + std::to_string(in.size()));
  }

  Model model;
  model.config = c;
  model.embedding.resize(c.vocab_size, c.dim);
  in.read(model.embedding.data(), model.embedding.size() * Index{sizeof(float)}, "the embedding");
  model.layers.resize(static_cast<std::size_t>(c.layers));
  read_layers(in, model, &Layer::attention_norm, 1, c.dim, "an attention norm");
  read_layers(in, model, &Layer::wq, c.dim, c.dim, "wq");
  read_layers(in, model, &Layer::wk, c.kv_dim(), c.dim, "wk");
  read_layers(in, model, &Layer::wv, c.kv_dim(), c.dim, "wv");
  read_layers(in, model, &Layer::wo, c.dim, c.dim, "wo");
  read_layers(in, model, &Layer::ffn_norm, 1, c.dim, "a feed-forward norm");
  read_layers(in, model, &Layer::w_gate, c.hidden_dim, c.dim, "the gate projection");
  read_layers(in, model, &Layer::w_down, c.dim, c.hidden_dim, "the down projection");
  read_layers(in, model, &Layer::w_up, c.hidden_dim, c.dim, "the up projection");
  model.final_norm.resize(c.dim);
  in.read(model.final_norm.data(), c.dim * Index{sizeof(float)}, "the final norm");
  in.skip(c.seq_len * c.head_dim() * Index{sizeof(float)}, "the two tables");
  model.rope = RopeTable(c.seq_len, c.head_dim(), static_cast<double>(c.rope_theta));
  if (header.own_classifier) {
    model.own_classifier.resize(c.vocab_size, c.dim);
    in.read(model.own_classifier.data(), model.own_classifier.size() * Index{sizeof(float)}, "the classifier");
  }
  return model;
}

}  // namespace detail

/// Loads a checkpoint from a source of known size, from a file, or from memory of any alignment, which is copied;
/// `name` stands for the memory in messages. Time and memory are linear in the size of the checkpoint.
///
/// Throws FormatError, which names the source, the offset and what was expected there, if the source cannot be read or
/// is not exactly one checkpoint. A file of a kind that is known (GGUF, PyTorch, safetensors, a Git LFS pointer, …) is
/// called by its name. Nothing has been allocated then but the message.
[[nodiscard]] inline Model load_checkpoint(io::ByteSource& source) { return detail::read_checkpoint(source); }
/// The same from a file.
[[nodiscard]] inline Model load_checkpoint(const std::filesystem::path& path) {
  io::FileSource source = io::FileSource::regular(path);
  return load_checkpoint(source);
}
/// The same from memory, which `name` stands for in messages.
[[nodiscard]] inline Model load_checkpoint(io::ConstByteSpan bytes, std::string name = "checkpoint in memory") {
  io::MemorySource source(bytes, std::move(name));
  return load_checkpoint(source);
}

}  // namespace llama
}  // namespace v0
}  // namespace kvc
