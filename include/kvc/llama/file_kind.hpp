// The kind of a file by its first bytes, so that a loader can say what it was given in place of its own format.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/io/exact_reader.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {
namespace detail {

/// Bytes that `file_kind` wants to see, or the whole file if it is shorter.
inline constexpr std::size_t file_kind_bytes = 512;

[[nodiscard]] constexpr bool is_printable(char c) noexcept {
  const auto u = static_cast<unsigned char>(c);
  return u >= 0x20U ? u != 0x7fU : c == '\n' || c == '\r' || c == '\t' || c == '\f';
}

/// Names the kind of a file that begins with `head` and has `size` bytes, or returns an empty text if it is none of the
/// kinds that are mistaken for a llama2.c file. No checkpoint of the legacy format and no tokenizer is taken for one of
/// them: their first number is below 2^24, so that the fourth byte is 0, and gzip and safetensors, which may have that
/// byte, would mean an odd dim and no feed-forward network.
[[nodiscard]] inline std::string file_kind(std::string_view head, Index size) {
  using namespace std::string_view_literals;
  struct Signature {
    std::string_view bytes;
    const char* kind;
  };
  static constexpr std::array signatures = {
      Signature{"GGUF"sv, "a GGUF file (llama.cpp)"},
      Signature{"lmgg"sv, "a GGML file (llama.cpp before GGUF)"},
      Signature{"fmgg"sv, "a GGMF file (llama.cpp before GGUF)"},
      Signature{"tjgg"sv, "a GGJT file (llama.cpp before GGUF)"},
      Signature{"PK\x03\x04"sv, "a ZIP archive, as PyTorch writes its checkpoints"},
      Signature{"\x1f\x8b\x08"sv, "a gzip file; decompress it first"},
      Signature{"\x28\xb5\x2f\xfd"sv, "a Zstandard file; decompress it first"},
      Signature{"\xfd"
                "7zXZ\x00"sv,
                "an xz file; decompress it first"},
      Signature{"BZh"sv, "a bzip2 file; decompress it first"},
      Signature{"\x93NUMPY"sv, "a NumPy array"},
      Signature{"\x89HDF\r\n\x1a\n"sv, "an HDF5 file"},
      Signature{"\x89KVC\r\n\x1a\n"sv, "a kvc snapshot"},
      Signature{"\x7f"
                "ELF"sv,
                "an ELF program"},
      Signature{"%PDF"sv, "a PDF document"},
      Signature{"version https://git-lfs"sv, "a Git LFS pointer, not the file that it stands for: run git lfs pull"},
      Signature{"/annex/objects/"sv, "a git-annex pointer, not the file that it stands for"},
  };
  if (size == 0) {
    return "an empty file";
  }
  for (const Signature& s : signatures) {
    if (head.starts_with(s.bytes)) {
      return s.kind;
    }
  }
  if (head.starts_with("24ka") && head.size() >= 8) {  // 0x616b3432, "ak42", little-endian
    std::int32_t version = 0;
    std::memcpy(&version, head.data() + 4, sizeof version);
    return "a llama2.c checkpoint of format version " + std::to_string(version) + " (\"ak42\"); export it as version 0";
  }
  if (head.size() > 3 && head[0] == '\x80' && '\x02' <= head[1] && head[1] <= '\x05' &&
      "\x8a\x95}]c("sv.find(head[2]) != std::string_view::npos) {
    return "a Python pickle, as old versions of PyTorch write";
  }
  if (head.size() > 8 && head[8] == '{') {
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, head.data(), sizeof header_bytes);
    if (header_bytes < std::uint64_t{1} << 32) {
      return "a safetensors file";
    }
  }
  if (head.size() > 16 && head[0] == '\n' && head.substr(0, 16).find("<unk>") != std::string_view::npos) {
    return "a SentencePiece model";
  }
  if (head.size() > 17 && head.substr(12, 5) == "<unk>") {
    return "a llama2.c tokenizer";
  }
  if (head.size() > 262 && head.substr(257, 5) == "ustar") {
    return "a tar archive; unpack it first";
  }
  if (head.size() >= 4 && std::all_of(head.begin(), head.end(), is_printable)) {
    std::string_view text = head.starts_with("\xef\xbb\xbf") ? head.substr(3) : head;
    text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n\f"), text.size()));
    std::string lower(text.substr(0, 14));
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](char c) { return 'A' <= c && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
    if (lower.starts_with("<!doctype html") || lower.starts_with("<html") || lower.starts_with("<head")) {
      return "an HTML page";
    }
    return kvc::detail::concat(
        {"text that begins with \"", text.substr(0, std::min(text.find('\n'), std::size_t{32})), "\""});
  }
  return {};
}

/// Throws FormatError if the source, which has not been read yet, is of a kind that `file_kind` knows. `expected` names
/// the format that the loader reads, `own` the kind of its files. A source that cannot rewind is not examined.
inline void require_not_foreign(io::ByteSource& source, const char* expected, std::string_view own = {}) {
  if (!source.can_rewind()) {
    return;
  }
  const auto size = static_cast<Index>(source.left().value_or(0));
  std::array<char, file_kind_bytes> head;
  const io::ByteSpan span = std::as_writable_bytes(std::span(head));
  const std::size_t count = source.read(std::span(&span, 1));
  source.rewind(count);
  if (const std::string kind = file_kind({head.data(), count}, size); !kind.empty() && kind != own) {
    throw_error(FormatError(source.name(), 0, kvc::detail::concat({expected, ", found ", kind})));
  }
}

}  // namespace detail
}  // namespace llama
}  // namespace v0
}  // namespace kvc
