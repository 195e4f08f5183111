// Engine: runs a Model on ggml, with the keys and values in a Cache of kvc.
#pragma once

#include <ggml-alloc.h>

#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "cache.hpp"
#include "gguf_file.hpp"
#include "kvc/parallel/spmd.hpp"
#include "model.hpp"

namespace ggml_engine {

/// Rows of logits, one after the other, in memory of the engine: valid until its next pass.  [rows, columns]
struct Logits {
  Index columns = 0;
  std::span<const float> values;

  [[nodiscard]] Index rows() const noexcept { return columns == 0 ? 0 : std::ssize(values) / columns; }
  [[nodiscard]] std::span<const float> row(Index i) const {
    return values.subspan(static_cast<std::size_t>(i * columns), static_cast<std::size_t>(columns));
  }
};

/// The rows of a pass whose logits are wanted.
enum class Wanted { none, last, all };  // last: of each chunk

/// Where the time of passes went, in seconds.
struct Profile {
  double total = 0;
  double attention = 0;  ///< in kvc: rows stored, and attention computed
};

/// Computes passes: the next tokens of any number of sequences together, chunks of prompts and single tokens side by
/// side. ggml computes everything but attention, which is a custom operator; see build_graph in engine.cpp.
class Engine {
 public:
  /// The model and the cache must outlive the engine. Throws std::invalid_argument unless threads >= 1.
  Engine(const Model& model, Cache& cache, int threads);
  ~Engine();

  /// Computes the chunks, and makes them part of their sequences. Returns the logits that are wanted, in the order of
  /// the chunks. Throws std::invalid_argument for a token that the vocabulary does not have, for no tokens, and what
  /// Cache::begin and attention throw; the cache is then as before.
  [[nodiscard]] Logits pass(std::span<const Chunk> chunks, Wanted wanted);

  [[nodiscard]] const Profile& profile() const noexcept { return profile_; }

 private:
  struct Graph;
  struct AttentionOfLayer;

  [[nodiscard]] Graph build_graph(Index rows, Index outputs);
  void prepare_graph(Index rows, Index outputs);
  static void attend(ggml_tensor* out, int ith, int nth, void* layer);

  const Model* model_;
  Cache* cache_;
  kvc::Spmd threads_;
  Backend backend_;
  std::unique_ptr<ggml_gallocr, FreeBy<ggml_gallocr_free>> memory_;
  std::unique_ptr<Graph> graph_;  // of the last pass: the next one of as many rows and outputs computes it again
  std::vector<AttentionOfLayer> attention_;
  std::exception_ptr error_;  // of attention: exceptions must not cross ggml
  Profile profile_;
};

}  // namespace ggml_engine
