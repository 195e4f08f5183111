// Loading checkpoints: every field arrives, and nothing but a whole checkpoint is accepted.
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>

#include "catch.hpp"
#include "kvc/llama/checkpoint.hpp"
#include "temp_files.hpp"
#include "tiny_model.hpp"

using kvc::FormatError;
using kvc::Index;
using kvc::llama::load_checkpoint;

namespace {

using Header = std::array<std::int32_t, 7>;

std::vector<std::byte> with_header(const Header& header, std::size_t size = 28) {
  std::vector<std::byte> bytes(size);
  std::memcpy(bytes.data(), header.data(), sizeof header);
  return bytes;
}

void refuse(const std::vector<std::byte>& bytes, Index offset, const std::string& text) {
  CAPTURE(bytes.size());
  try {
    (void)load_checkpoint(bytes, "some file");
    FAIL("loaded");
  } catch (const FormatError& error) {
    CHECK(error.source() == "some file");
    CHECK(error.offset() == offset);
    CHECK_THAT(error.what(), kvc_test::contains("some file") && kvc_test::contains(text));
  }
}

/// A file of these bytes.
kvc_test::TempFile file_of(const std::vector<std::byte>& bytes) {
  return kvc_test::TempFile({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

/// The float at a place of a checkpoint.
float number(const std::vector<std::byte>& bytes, Index index) {
  float value = 0;
  std::memcpy(&value, bytes.data() + 28 + 4 * index, 4);
  return value;
}

}  // namespace

TEST_CASE("a checkpoint arrives tensor by tensor", "[model][checkpoint]") {
  const bool own = GENERATE(false, true);
  const kvc::llama::Config c = kvc_test::tiny_config();
  const auto bytes = kvc_test::tiny_checkpoint(c, own);
  const kvc::llama::Model model = load_checkpoint(bytes);

  CHECK(model.config.dim == c.dim);
  CHECK(model.config.hidden_dim == c.hidden_dim);
  CHECK(model.config.layers == c.layers);
  CHECK(model.config.heads == c.heads);
  CHECK(model.config.kv_heads == c.kv_heads);
  CHECK(model.config.vocab_size == c.vocab_size);
  CHECK(model.config.seq_len == c.seq_len);
  CHECK(model.config.head_dim() == 6);
  CHECK(model.config.kv_dim() == 12);
  CHECK(model.config.cache_shape() == kvc::Shape{.layers = 2, .kv_heads = 2, .key_dim = 6, .value_dim = 6});

  // Where each tensor begins, counted by hand in floats.
  Index at = 0;
  const auto check_next = [&](const auto& tensor, Index layer, Index layers) {
    const Index begin = at + layer * tensor.size();
    CHECK(tensor.data()[0] == number(bytes, begin));
    CHECK(tensor.data()[tensor.size() - 1] == number(bytes, begin + tensor.size() - 1));
    if (layer == layers - 1) at = begin + tensor.size();
  };
  check_next(model.embedding, 0, 1);
  for (auto tensor : {&kvc::llama::Layer::attention_norm}) {
    for (Index l = 0; l < 2; ++l) check_next(model.layers[static_cast<std::size_t>(l)].*tensor, l, 2);
  }
  for (auto tensor : {&kvc::llama::Layer::wq, &kvc::llama::Layer::wk, &kvc::llama::Layer::wv, &kvc::llama::Layer::wo}) {
    for (Index l = 0; l < 2; ++l) check_next(model.layers[static_cast<std::size_t>(l)].*tensor, l, 2);
  }
  for (Index l = 0; l < 2; ++l) check_next(model.layers[static_cast<std::size_t>(l)].ffn_norm, l, 2);
  for (auto tensor : {&kvc::llama::Layer::w_gate, &kvc::llama::Layer::w_down, &kvc::llama::Layer::w_up}) {
    for (Index l = 0; l < 2; ++l) check_next(model.layers[static_cast<std::size_t>(l)].*tensor, l, 2);
  }
  check_next(model.final_norm, 0, 1);
  at += c.seq_len * c.head_dim();
  if (own) {
    CHECK(&model.classifier() == &model.own_classifier);
    check_next(model.own_classifier, 0, 1);
  } else {
    CHECK(&model.classifier() == &model.embedding);
  }
  CHECK(static_cast<Index>(bytes.size()) == 28 + 4 * at);
}

TEST_CASE("a file and its bytes load alike", "[model][checkpoint]") {
  const auto bytes = kvc_test::tiny_checkpoint(kvc_test::tiny_config(), true);
  const kvc_test::TempFile file = file_of(bytes);
  const kvc::llama::Model a = load_checkpoint(file.path());
  const kvc::llama::Model b = load_checkpoint(bytes);
  CHECK(a.embedding == b.embedding);
  CHECK(a.layers[1].w_up == b.layers[1].w_up);
  CHECK(a.own_classifier == b.own_classifier);

  std::vector<std::byte> shifted(bytes.size() + 1);  // no alignment is asked for
  std::copy(bytes.begin(), bytes.end(), shifted.begin() + 1);
  CHECK(load_checkpoint(std::span(shifted).subspan(1)).own_classifier == b.own_classifier);
}

TEST_CASE("a checkpoint cut short anywhere is refused", "[model][checkpoint]") {
  const bool own = GENERATE(false, true);
  auto bytes = kvc_test::tiny_checkpoint(kvc_test::tiny_config(), own);
  const std::size_t whole = bytes.size();
  for (std::size_t size : {0U, 1U, 27U}) {
    bytes.resize(whole);
    bytes.resize(size);
    refuse(bytes, 0, size == 0 ? "found an empty file" : "header of a llama2.c checkpoint");
  }
  for (std::size_t size = 28; size < whole; size += size < 64 ? 1 : 401) {
    bytes = kvc_test::tiny_checkpoint(kvc_test::tiny_config(), own);
    bytes.resize(size);
    refuse(bytes, static_cast<Index>(size), "expected " + std::to_string(whole) + " bytes");
  }
  bytes = kvc_test::tiny_checkpoint(kvc_test::tiny_config(), own);
  bytes.pop_back();
  refuse(bytes, static_cast<Index>(whole - 1), "expected " + std::to_string(whole) + " bytes");
  const kvc_test::TempFile file = file_of(bytes);
  CHECK_THROWS_WITH(load_checkpoint(file.path()), kvc_test::contains(file.path()));
}

TEST_CASE("a checkpoint with bytes after its end is refused", "[model][checkpoint]") {
  auto bytes = kvc_test::tiny_checkpoint(kvc_test::tiny_config());
  const auto whole = static_cast<Index>(bytes.size());
  bytes.push_back(std::byte{0});
  refuse(bytes, whole, "this file has " + std::to_string(whole + 1));
  // A classifier that the header does not announce is too much as well.
  bytes = kvc_test::tiny_checkpoint(kvc_test::tiny_config(), true);
  bytes[23] = std::byte{0};
  bytes[20] = std::byte{61}, bytes[21] = bytes[22] = std::byte{0};
  refuse(bytes, whole, "expected " + std::to_string(whole) + " bytes");
}

TEST_CASE("absurd headers are refused before anything is allocated", "[model][checkpoint]") {
  constexpr auto huge = std::numeric_limits<std::int32_t>::max();
  constexpr auto least = std::numeric_limits<std::int32_t>::min();
  const Header good = {24, 40, 2, 4, 2, 61, 96};
  const std::array names = {"dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "", "seq_len"};
  for (std::size_t field = 0; field < good.size(); ++field) {
    Header header = good;
    header[field] = 0;
    refuse(with_header(header), static_cast<Index>(4 * field), field == 5 ? "vocab_size" : names[field]);
    if (field == 5) continue;
    for (std::int32_t bad : {-1, least}) {
      header[field] = bad;
      refuse(with_header(header), static_cast<Index>(4 * field), names[field]);
    }
  }
  refuse(with_header({24, 40, 2, 4, 3, 61, 96}), 0, "n_kv_heads divides n_heads");
  refuse(with_header({24, 40, 2, 5, 5, 61, 96}), 0, "multiple of n_heads");
  refuse(with_header({12, 40, 2, 4, 2, 61, 96}), 0, "multiple of n_heads");  // head_dim 3
  // Sizes that would overflow 32 or 64 bits.
  refuse(with_header({huge - 1, huge, huge, 1, 1, huge, huge}), 28, "more than 2^60 bytes");
  refuse(with_header({huge - 1, huge, huge, 1, 1, least, huge}), 28, "more than 2^60 bytes");
  refuse(with_header({1 << 30, 1 << 30, 1, 1, 1, 1, 1}), 28, "more than 2^60 bytes");
  refuse(with_header({65536, 65536, 65536, 64, 64, 1, 1}), 28, "bytes in all");
}

TEST_CASE("a file of another kind is called by its name", "[model][checkpoint]") {
  for (const auto& [bytes, kind] : kvc_test::foreign_files()) {
    kvc_test::ByteWriter out;
    out.put_text(bytes);
    const auto file = out.take();
    refuse(file, 0, "a llama2.c checkpoint of the legacy format, found " + kind);
    if (!file.empty()) {
      const kvc_test::TempFile on_disk = file_of(file);
      CHECK_THROWS_WITH(load_checkpoint(on_disk.path()), kvc_test::contains(kind));
    }
  }
  CHECK_THROWS_AS(load_checkpoint(std::filesystem::path("/no/such/file")), FormatError);
  CHECK_THROWS_WITH(load_checkpoint(std::filesystem::path("/no/such/file")), kvc_test::contains("/no/such/file"));
  CHECK_THROWS_WITH(load_checkpoint(std::filesystem::temp_directory_path()),
                    kvc_test::contains("a regular file, found a directory"));
  CHECK_THROWS_WITH(load_checkpoint(std::filesystem::path("/dev/zero")),
                    kvc_test::contains("a regular file, found a character device"));
}

TEST_CASE("no header of a checkpoint is taken for another kind of file", "[model][checkpoint]") {
  std::mt19937_64 random(5);
  for (int round = 0; round < 20'000; ++round) {
    const auto below = [&](std::uint64_t most) { return static_cast<std::int32_t>(1 + random() % most); };
    const std::int32_t heads = below(128);
    const std::int32_t dim = heads * 2 * below(256);
    kvc_test::ByteWriter out;
    for (const std::int32_t field :
         {dim, below(1U << 20U), below(256), heads, heads, below(1U << 18U), below(1U << 17U)}) {
      out.put(field);
    }
    for (int i = 0; i < 130; ++i) out.put(static_cast<float>(random() >> 40U) * 0x1p-23F - 1.0F);
    const auto bytes = out.take();
    REQUIRE(kvc::llama::detail::file_kind({reinterpret_cast<const char*>(bytes.data()), 512}, 1 << 20).empty());
  }
}

TEST_CASE("random bytes are no checkpoint, and take no memory", "[model][checkpoint]") {
  std::mt19937_64 random(6);
  for (int round = 0; round < 5'000; ++round) {
    kvc_test::ByteWriter out;
    const std::uint64_t size = random() % 80;
    const bool small = round % 2 == 0;  // numbers of a plausible size
    while (out.size() < size) {
      if (small) {
        out.put(static_cast<std::int32_t>(random() % 300));
      } else {
        out.put(static_cast<std::uint8_t>(random()));
      }
    }
    CHECK_THROWS_AS(load_checkpoint(out.take()), FormatError);
  }
}
