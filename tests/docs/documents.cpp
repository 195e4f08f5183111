// Everything that the documents show exists: code is text of files that are compiled, output is printed by the
// programs, commands name programs with such options, and links and paths lead somewhere.
#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "catch.hpp"
#include "markdown.hpp"
#include "run_program.hpp"

using namespace documents;
namespace fs = std::filesystem;

namespace {

const fs::path root = KVC_SOURCE_DIR;
const fs::path build = KVC_BUILD_DIR;

const std::vector<Document>& all() {
  static const std::vector<Document> documents = all_documents(root);
  return documents;
}

std::string place(const Document& document, const Block& block) {
  return document.name + ":" + std::to_string(block.line);
}

/// The words of a command line, of which quotes are removed and what stands behind # is dropped.
std::vector<std::string> words_of(const std::string& line) {
  std::vector<std::string> words;
  std::string word;
  char quote = 0;
  for (const char c : line) {
    if (quote != 0) {
      quote == c ? quote = 0 : (word.push_back(c), 0);
    } else if (c == '\'' || c == '"') {
      quote = c;
    } else if (c == '#' && word.empty()) {
      break;
    } else if (c == ' ') {
      if (!word.empty()) {
        words.push_back(std::move(word));
      }
      word.clear();
    } else {
      word.push_back(c);
    }
  }
  if (!word.empty()) {
    words.push_back(std::move(word));
  }
  return words;
}

/// Commands of the blocks without a language or with that of a shell, and of code spans; continued lines are one.
std::vector<std::string> commands_of(const Document& document) {
  std::vector<std::string> commands;
  for (const Block& block : document.blocks) {
    if (!block.language.empty() && block.language != "sh") {
      continue;
    }
    std::string command;
    for (const std::string& line : block.lines) {
      command += trimmed(line);
      if (command.ends_with('\\')) {
        command.back() = ' ';
      } else {
        commands.push_back(std::exchange(command, {}));
      }
    }
  }
  for (const std::string& line : document.prose) {
    for (const std::string& span : code_spans(line)) {
      commands.push_back(span);
    }
  }
  return commands;
}

constexpr std::string_view built = "build/release/";

/// Where the sources of a program of a build folder lie; empty if there are none.
fs::path source_of(const std::string& program) {
  const std::string rest = program.substr(built.size());
  const std::size_t slash = rest.find('/');
  const std::string folder = rest.substr(0, slash);
  const std::string name = slash == std::string::npos ? "" : rest.substr(slash + 1);
  std::vector<fs::path> candidates = {root / folder / (name + ".cpp"), root / folder / name};
  if (folder == "tests") {
    candidates = {root / "tests" / (name.starts_with("kvc_") ? name.substr(4) : name)};
  }
  const std::map<std::string, fs::path> elsewhere = {
      {"benchmarks/replay", "benchmarks/workbench/replay"},
      {"benchmarks/serve-bench", "benchmarks/workbench/serving"},
      {"benchmarks/simd", "benchmarks/peers/simd.cpp"},
      {"benchmarks/transfer_mpi", "benchmarks/mpi/transfer.cpp"},
      {"examples/generate", "examples/applications/generate"},
      {"examples/disaggregated", "examples/applications/disaggregated"},
  };
  if (const auto found = elsewhere.find(rest); found != elsewhere.end()) {
    candidates = {root / found->second};
  }
  for (const fs::path& candidate : candidates) {
    if (fs::exists(candidate)) {
      return candidate;
    }
  }
  return {};
}

/// The output of a program for --help; empty where it was not built.
const std::string& help_of(const std::string& program) {
  static std::map<std::string, std::string> known;
  const auto [at, is_new] = known.try_emplace(program);
  const fs::path file = build / program.substr(built.size());
  if (is_new && fs::is_regular_file(file)) {
    at->second = kvc_test::run_program(file.string(), "--help 2>&1").output;
  }
  return at->second;
}

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

/// The option that a text begins with, without its value.
std::string option_of(const std::string& text) {
  const auto end = std::find_if(text.begin(), text.end(), [](char c) { return !is_word(c) && c != '-'; });
  return {text.begin(), end};
}

/// Names of a text that are of this project whatever stands around them: parts of kvc::..., and KVC_...
std::vector<std::string> names_of_project(const std::string& text) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t end = i;
    while (end < text.size() && is_word(text[end])) {
      ++end;
    }
    const std::string word = text.substr(i, end - i);
    const bool is_macro = word.starts_with("KVC_") && text.compare(end, 1, "*") != 0;
    const bool is_part = !names.empty() && text.substr(0, i).ends_with(names.back() + "::");
    if (is_macro || is_part || (word == "kvc" && text.compare(end, 2, "::") == 0)) {
      names.push_back(word);
    }
    i = std::max(end, i + 1);
  }
  return names;
}

/// All words and all options in the files of this project, but for its documents and this folder.
const std::set<std::string>& words_of_sources() {
  static const std::set<std::string> words = [] {
    std::set<std::string> found;
    const auto add_file = [&](const fs::path& file) {
      for (const std::string& line : lines_of_file(file)) {
        for (std::size_t i = 0; i < line.size();) {
          std::size_t end = i;
          while (end < line.size() && (is_word(line[end]) || (line[end] == '-' && line.compare(i, 2, "--") == 0))) {
            ++end;
          }
          if (end > i) {
            found.insert(line.substr(i, end - i));
          }
          i = std::max(end, i + 1);
        }
      }
    };
    for (const char* folder : {"include", "examples", "benchmarks", "tests", "tools", "cmake"}) {
      for (auto at = fs::recursive_directory_iterator(root / folder); at != fs::recursive_directory_iterator(); ++at) {
        if (at->path() == root / "tests/docs" || at->path() == root / "tests/fuzz/corpus") {
          at.disable_recursion_pending();
        } else if (at->is_regular_file() && at->path().extension() != ".md" && at->path().extension() != ".bin") {
          add_file(at->path());
        }
      }
    }
    add_file(root / "CMakeLists.txt");
    add_file(root / "CMakePresets.json");
    return found;
  }();
  return words;
}

/// The names of the presets of CMake.
std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const std::string& line : lines_of_file(root / "CMakePresets.json")) {
    constexpr std::string_view key = "\"name\": \"";
    const std::size_t at = line.find(key);
    const std::string name = at == std::string::npos ? "" : line.substr(at + key.size());
    if (!name.empty() && std::find(names.begin(), names.end(), name.substr(0, name.find('"'))) == names.end()) {
      names.push_back(name.substr(0, name.find('"')));
    }
  }
  return names;
}

/// Columns of a line in UTF-8.
std::size_t columns_of(const std::string& line) {
  return static_cast<std::size_t>(
      std::count_if(line.begin(), line.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }));
}

}  // namespace

TEST_CASE("code in the documents is text of files that are compiled") {
  const std::set<std::string> compiled = {"cpp", "cmake"};
  const std::set<std::string> others = {"", "sh", "json", "text"};
  int count = 0;
  for (const Document& document : all()) {
    for (const Block& block : document.blocks) {
      INFO(place(document, block));
      CHECK(compiled.count(block.language) + others.count(block.language) == 1);
      if (compiled.count(block.language) == 0) {
        continue;
      }
      ++count;
      INFO("the line before the block is <!-- from FILE -->: " << block.mark);
      CHECK(block.mark.starts_with("from "));
      if (!block.mark.starts_with("from ")) {
        continue;
      }
      const std::string file = block.mark.substr(5);
      INFO(file);
      CHECK(fs::exists(root / file));
      CHECK(not_found(block.lines, lines_of_file(root / file)) == "");
    }
  }
  CHECK(count >= 10);
}

TEST_CASE("outputs in the documents are what programs print") {
  int count = 0;
  int unbuilt = 0;
  for (const Document& document : all()) {
    for (const Block& block : document.blocks) {
      if (!block.mark.starts_with("output of ")) {
        continue;
      }
      INFO(place(document, block));
      const std::string command = block.mark.substr(10);
      const std::string program = command.substr(0, command.find(' '));
      const std::string arguments = command.substr(program.size());
      CHECK(!source_of(std::string(built) + program).empty());
      if (!fs::exists(build / program)) {
        ++unbuilt;
        continue;
      }
      ++count;
      const kvc_test::Run run = kvc_test::run_program((build / program).string(), arguments + " 2>&1");
      INFO(run.output);
      CHECK(run.status == 0);
      CHECK(not_found(block.lines, lines_of_text(run.output)) == "");
    }
  }
  if (count == 0) {
    KVC_SKIP("none of " << unbuilt << " programs was built");
  }
}

TEST_CASE("commands in the documents name programs that exist, and options that these have") {
  int count = 0;
  for (const Document& document : all()) {
    for (const std::string& command : commands_of(document)) {
      std::string program;
      for (const std::string& word : words_of(command)) {
        INFO(document.name << ": " << command);
        if (word.starts_with(built)) {
          program = word;
          ++count;
          CHECK(!source_of(program).empty());
        } else if (program.empty() && (word.starts_with("tools/") || word.starts_with("benchmarks/")) &&
                   word.find_first_of("*<{,") == std::string::npos) {
          CHECK(fs::exists(root / word));
        } else if (!program.empty() && word.starts_with("--") && !word.starts_with("--benchmark_")) {
          const std::string& help = help_of(program);
          const std::string option = word.substr(0, word.find('='));
          CHECK((help.empty() || help.find(option) != std::string::npos));
        }
      }
    }
  }
  CHECK(count >= 10);
}

TEST_CASE("links and paths in the documents lead somewhere") {
  std::map<std::string, std::set<std::string>> anchors;
  for (const Document& document : all()) {
    for (const std::string& line : document.prose) {
      if (line.starts_with('#')) {
        anchors[document.name].insert(anchor_of(line));
      }
    }
  }
  for (const Document& document : all()) {
    const fs::path folder = fs::path(document.name).parent_path();
    for (std::size_t i = 0; i < document.prose.size(); ++i) {
      const std::string& line = document.prose[i];
      INFO(document.name << ":" << i + 1 << ": " << line);
      for (const std::string& link : local_links(line)) {
        INFO(link);
        const std::size_t hash = link.find('#');
        const std::string file =
            hash == 0 ? document.name : (folder / link.substr(0, hash)).lexically_normal().generic_string();
        CHECK(fs::exists(root / file));
        if (hash != std::string::npos) {
          CHECK(anchors[file].count(link.substr(hash + 1)) == 1);
        }
      }
      for (const std::string& span : code_spans(line)) {
        // A path of this project: it has a folder, a known extension, and no placeholder.
        const std::string extension = fs::path(span).extension().string();
        const std::set<std::string> known = {".hpp", ".cpp", ".cuh", ".cu", ".md", ".cmake", ".json"};
        if (span.find('/') == std::string::npos || known.count(extension) == 0 ||
            span.find_first_of(" *<>{}()$:") != std::string::npos || span.starts_with("../") ||
            span.starts_with("build/")) {
          continue;
        }
        INFO(span);
        const bool exists = fs::exists(root / span) || fs::exists(root / "include" / span) ||
                            fs::exists(root / "include/kvc" / span) || fs::exists(root / "tests" / span) ||
                            fs::exists(root / folder / span);
        CHECK(exists);
      }
    }
  }
}

TEST_CASE("the version is the same in the header, the changelog and the citation") {
  std::string version;
  for (const char* part : {"MAJOR ", "MINOR ", "PATCH "}) {
    for (const std::string& line : lines_of_file(root / "include/kvc/version.hpp")) {
      if (line.starts_with(std::string("#define KVC_VERSION_") + part)) {
        version += (version.empty() ? "" : ".") + line.substr(line.rfind(' ') + 1);
      }
    }
  }
  INFO(version);
  const auto has = [](const std::string& file, const std::string& wanted) {
    const Lines lines = lines_of_file(root / file);
    return std::any_of(lines.begin(), lines.end(), [&](const auto& line) { return line.starts_with(wanted); });
  };
  const bool released = has("CHANGELOG.md", "## [" + version + "]");
  CHECK((released || has("CHANGELOG.md", "This will be " + version + ",")));
  CHECK(has("CITATION.cff", "version: " + version + (released ? "" : "-dev")));
}

TEST_CASE("the glossary has each word once, and names types and calls that exist") {
  std::string headers;
  for (const auto& entry : fs::recursive_directory_iterator(root / "include")) {
    for (const std::string& line : entry.is_regular_file() ? lines_of_file(entry.path()) : Lines{}) {
      headers += line + '\n';
    }
  }
  std::set<std::string> words;
  for (const std::string& line : lines_of_file(root / "docs/glossary.md")) {
    if (!line.starts_with("| **")) {
      continue;
    }
    INFO(line);
    CHECK(words.insert(line.substr(4, line.find("**", 4) - 4)).second);
    const std::size_t last = line.rfind("| ", line.size() - 2);
    for (const std::string& span : code_spans(line.substr(last))) {
      std::string name;
      for (const char c : span.find('/') == std::string::npos ? span + " " : std::string()) {
        if (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_') {
          name.push_back(c);
        } else if (!name.empty()) {
          INFO(name);
          CHECK(headers.find(name) != std::string::npos);
          name.clear();
        }
      }
    }
  }
  CHECK(words.size() > 70);
}

TEST_CASE("names and options and presets in the documents exist in the sources") {
  const std::set<std::string>& sources = words_of_sources();
  const std::vector<std::string> presets = preset_names();
  CHECK(presets.size() > 5);
  int count = 0;
  for (const Document& document : all()) {
    if (document.name == "CHANGELOG.md") {
      continue;  // has names of before
    }
    for (const std::string& command : commands_of(document)) {
      INFO(document.name << ": " << command);
      for (const std::string& name : names_of_project(command)) {
        INFO(name);
        ++count;
        CHECK(sources.count(name) == 1);
      }
      const std::vector<std::string> words = words_of(command);
      for (std::size_t i = 0; i < words.size(); ++i) {
        if (words[i] == "--preset" && i + 1 < words.size()) {
          INFO(words[i + 1]);
          CHECK(std::count(presets.begin(), presets.end(), words[i + 1]) == 1);
        }
      }
      if (command.starts_with("--") && !command.starts_with("--benchmark_")) {  // an option alone
        INFO(option_of(command));
        ++count;
        CHECK(sources.count(option_of(command)) == 1);
      }
    }
  }
  CHECK(count > 150);
}

TEST_CASE("lines of the documents have at most 120 columns but for tables, figures and code") {
  for (const Document& document : all()) {
    for (std::size_t i = 0; i < document.prose.size(); ++i) {
      const std::string text = trimmed(document.prose[i]);
      const bool may_be_long = text.starts_with('|') || text.starts_with("![") || text.starts_with("`build/");
      INFO(document.name << ":" << i + 1);
      CHECK((may_be_long || columns_of(document.prose[i]) <= 120));
    }
  }
}

TEST_CASE("a document with a wrong block, output or link is found") {
  const Lines text = {"int f() {", "  return 1;", "}", "", "int g();"};
  CHECK(not_found({"  int f() {", "    return 1;", "  }"}, text) == "");
  CHECK(not_found({"int f() {", "  return 2;", "}"}, text) == "  return 2;");
  CHECK(not_found({"int f() {", "// ...", "int g();"}, text) == "");
  CHECK(not_found({"int g();", "// ...", "int f() {"}, text) == "int f() {");
  CHECK(anchor_of("## Tenants are kept apart, `always`") == "tenants-are-kept-apart-always");
  CHECK(local_links("[a](b.md#c), [d](https://e.f)") == std::vector<std::string>{"b.md#c"});
  CHECK(words_of("a 'b c' # d") == std::vector<std::string>{"a", "b c"});
  CHECK(names_of_project("f<kvc::tier::Tiers>(std::move(x), KVC_SALT, KVC_*, kvc::Lru)") ==
        std::vector<std::string>{"kvc", "tier", "Tiers", "KVC_SALT", "kvc", "Lru"});
  CHECK(option_of("--load-rule=all") == "--load-rule");
  CHECK(words_of_sources().count("--load-rule") == 1);
  CHECK(words_of_sources().count("--load-ruler") == 0);
  CHECK(words_of_sources().count("no_such_name") == 0);
  CHECK(columns_of("\u00b5s") == 2);
}
