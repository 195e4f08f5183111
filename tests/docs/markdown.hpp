// The parts of Markdown that the documents of this project use: fenced blocks, code spans, links, headings.
#pragma once

#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace documents {

using Lines = std::vector<std::string>;

inline Lines lines_of(std::istream& in) {
  Lines lines;
  for (std::string line; std::getline(in, line);) {
    lines.push_back(line);
  }
  return lines;
}
inline Lines lines_of_text(const std::string& text) {
  std::istringstream in(text);
  return lines_of(in);
}
inline Lines lines_of_file(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return lines_of(in);
}

/// A fenced block, and the HTML comment on the line before it ("from examples/x.cpp"), if there is one.
struct Block {
  std::size_t line;      ///< of the fence, from 1
  std::string language;  ///< as written behind the fence; may be empty
  std::string mark;
  Lines lines;
};

struct Document {
  std::string name;  ///< path in the source tree
  std::vector<Block> blocks;
  Lines prose;  ///< all lines that are in no block; those of blocks are empty here
};

inline std::string trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) {
    text.remove_prefix(1);
  }
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) {
    text.remove_suffix(1);
  }
  return std::string(text);
}

inline Document read_document(const std::filesystem::path& root, const std::string& name) {
  Document document{name, {}, {}};
  std::string previous;
  bool inside = false;
  for (const std::string& line : lines_of_file(root / name)) {
    const std::string text = trimmed(line);
    if (text.starts_with("```")) {
      inside = !inside;
      if (inside) {
        Block block{document.prose.size() + 1, text.substr(3), {}, {}};
        if (previous.starts_with("<!--") && previous.ends_with("-->")) {
          block.mark = trimmed(std::string_view(previous).substr(4, previous.size() - 7));
        }
        document.blocks.push_back(block);
      }
      document.prose.emplace_back();
    } else if (inside) {
      document.blocks.back().lines.push_back(line);
      document.prose.emplace_back();
    } else {
      document.prose.push_back(line);
    }
    previous = text;
  }
  return document;
}

/// The README, CONTRIBUTING and so on, docs/*.md, and README files of folders.
inline std::vector<Document> all_documents(const std::filesystem::path& root) {
  std::vector<Document> documents;
  for (const char* folder : {"", "docs", "examples/model"}) {
    for (const auto& entry : std::filesystem::directory_iterator(root / folder)) {
      if (entry.path().extension() == ".md") {
        documents.push_back(read_document(root, std::filesystem::relative(entry.path(), root).generic_string()));
      }
    }
  }
  return documents;
}

/// Texts between single backquotes of one line.
inline std::vector<std::string> code_spans(const std::string& line) {
  std::vector<std::string> spans;
  for (std::size_t at = 0; (at = line.find('`', at)) != std::string::npos;) {
    const std::size_t end = line.find('`', at + 1);
    if (end == std::string::npos) {
      break;
    }
    spans.push_back(line.substr(at + 1, end - at - 1));
    at = end + 1;
  }
  return spans;
}

/// Targets of [text](target) in one line, without those that begin with a scheme.
inline std::vector<std::string> local_links(const std::string& line) {
  std::vector<std::string> links;
  for (std::size_t at = 0; (at = line.find("](", at)) != std::string::npos;) {
    const std::size_t end = line.find(')', at);
    if (end == std::string::npos) {
      break;
    }
    const std::string target = line.substr(at + 2, end - at - 2);
    if (target.find("://") == std::string::npos) {
      links.push_back(target);
    }
    at = end;
  }
  return links;
}

/// The anchor that a heading gets: lower case, punctuation removed, blanks as hyphens.
inline std::string anchor_of(const std::string& heading) {
  std::string anchor;
  for (const char c : trimmed(heading.substr(heading.find_first_not_of('#')))) {
    const auto u = static_cast<unsigned char>(c);
    if (std::isalnum(u) != 0 || c == '-' || c == '_') {
      anchor.push_back(static_cast<char>(std::tolower(u)));
    } else if (c == ' ') {
      anchor.push_back('-');
    }
  }
  return anchor;
}

/// The lines without the blanks that all of them begin with, and without empty lines at both ends.
inline Lines dedented(Lines lines) {
  while (!lines.empty() && trimmed(lines.front()).empty()) {
    lines.erase(lines.begin());
  }
  while (!lines.empty() && trimmed(lines.back()).empty()) {
    lines.pop_back();
  }
  std::size_t indent = std::string::npos;
  for (const std::string& line : lines) {
    if (!trimmed(line).empty()) {
      indent = std::min(indent, line.find_first_not_of(' '));
    }
  }
  for (std::string& line : lines) {
    line = trimmed(line).empty() ? std::string{} : line.substr(indent);
    line.erase(line.find_last_not_of(" \t\r") + 1);
  }
  return lines;
}

/// The first line of `piece`, from `begin` on, that does not follow the others in `text`: -1 if the whole piece occurs,
/// as consecutive lines with any one indentation. `begin` becomes the place behind it.
inline int first_missing_line(const Lines& piece, const Lines& text, std::size_t& begin) {
  const Lines wanted = dedented(piece);
  int best = 0;
  for (std::size_t at = begin; at < text.size(); ++at) {
    const std::size_t count = std::min(wanted.size(), text.size() - at);
    const auto first = text.begin() + static_cast<std::ptrdiff_t>(at);
    const Lines there = dedented(Lines(first, first + static_cast<std::ptrdiff_t>(count)));
    if (there == wanted) {
      begin = at + count;
      return -1;
    }
    std::size_t same = 0;
    while (same < std::min(there.size(), wanted.size()) && trimmed(there[same]) == trimmed(wanted[same])) {
      ++same;
    }
    best = std::max(best, static_cast<int>(same));
  }
  return best;
}

/// The pieces of a block between lines that stand for what is left out: "[...]", "// ...", "# ...".
inline std::vector<Lines> pieces_of(const Lines& lines) {
  std::vector<Lines> pieces(1);
  for (const std::string& line : lines) {
    const std::string text = trimmed(line);
    if (text == "[...]" || text == "// ..." || text == "# ...") {
      pieces.emplace_back();
    } else {
      pieces.back().push_back(line);
    }
  }
  std::erase_if(pieces, [](const Lines& piece) { return dedented(piece).empty(); });
  return pieces;
}

/// Empty if all pieces of `shown` occur in `text` in their order; else the first line that does not.
inline std::string not_found(const Lines& shown, const Lines& text) {
  std::size_t at = 0;
  for (const Lines& piece : pieces_of(shown)) {
    const int missing = first_missing_line(piece, text, at);
    if (missing >= 0) {
      const Lines wanted = dedented(piece);
      return wanted[std::min(static_cast<std::size_t>(missing), wanted.size() - 1)];
    }
  }
  return {};
}

}  // namespace documents
