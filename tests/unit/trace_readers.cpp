// The readers of request traces: what they take, and how they name what they do not.
#include "catch.hpp"

#if defined(KVC_HAVE_TRACE)

#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "trace.hpp"

namespace {
using namespace kvc_bench;
using enum TraceFormat;

/// A file that goes away with the object.
class TempFile {
 public:
  explicit TempFile(const std::string& text) : path_(new_path()) { std::ofstream(path_, std::ios::binary) << text; }
  ~TempFile() { std::filesystem::remove(path_); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

  void compress(const std::string& text) const {
    gzFile file = gzopen(path_.c_str(), "wb");
    REQUIRE(gzwrite(file, text.data(), static_cast<unsigned>(text.size())) == static_cast<int>(text.size()));
    REQUIRE(gzclose(file) == Z_OK);
  }
  void cut_to(std::uintmax_t bytes) const { std::filesystem::resize_file(path_, bytes); }

 private:
  static std::string new_path() {
    static int count = 0;
    return std::filesystem::temp_directory_path() /
           ("kvc_trace_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
  }
  std::string path_;
};

const std::string mooncake_line =
    R"({"timestamp": 27, "input_length": 1025, "output_length": 52, "hash_ids": [0, 5, 2147483647]})";
const std::string weka_line =
    R"({"timestamp":19000,"input_length":455,"output_length":0,"agent":"main","hash_runs":[[0,3],[40,4]]})";
const std::string azure_lines =
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,4808,10\n"
    "2023-11-16 18:17:04.0319600,17,8\n";

/// What is said about a bad line: all after the place.
std::string problem(TraceFormat format, const std::string& line) {
  try {
    (void)parse_line(format, line, {"file", 3});
  } catch (const TraceError& error) {
    REQUIRE(error.file() == "file");
    REQUIRE(error.line() == 3);
    const std::string text = error.what();
    REQUIRE(text.starts_with("file:3: " + (error.field().empty() ? "" : "\"" + error.field() + "\": ")));
    return text.substr(8);
  }
  return "none";
}
std::string mooncake_problem(const std::string& timestamp, const std::string& input, const std::string& output,
                             const std::string& ids) {
  return problem(mooncake, R"({"timestamp": )" + timestamp + R"(, "input_length": )" + input +
                               R"(, "output_length": )" + output + R"(, "hash_ids": )" + ids + "}");
}
std::string weka_problem(const std::string& input, const std::string& runs) {
  return problem(
      weka, R"({"timestamp": 0, "output_length": 1, "input_length": )" + input + R"(, "hash_runs": )" + runs + "}");
}

std::string message_of(const std::string& path, const ReadOptions& options = {}) {
  try {
    (void)read_trace(path, options);
  } catch (const TraceError& error) {
    return error.what();
  }
  return "none";
}

}  // namespace

TEST_CASE("A line of each trace format gives its request", "[trace]") {
  const Request chat = parse_line(mooncake, mooncake_line);
  REQUIRE(chat.arrival_us == 27'000);
  REQUIRE(chat.input_tokens == 1025);
  REQUIRE(chat.output_tokens == 52);
  REQUIRE(chat.blocks == std::vector<std::int32_t>{0, 5, 2147483647});
  REQUIRE(chat.tokens_in_first(0, 512) == 0);
  REQUIRE(chat.tokens_in_first(2, 512) == 1024);
  REQUIRE(chat.tokens_in_first(3, 512) == 1025);

  const Request agent = parse_line(weka, weka_line);
  REQUIRE(agent.arrival_us == 19'000'000);
  REQUIRE(agent.input_tokens == 455);
  REQUIRE(agent.output_tokens == 0);
  REQUIRE(agent.blocks == std::vector<std::int32_t>{0, 1, 2, 40, 41, 42, 43});
  REQUIRE(weka_problem("63", "[]") == "none");

  const Request service = parse_line(azure, "2023-11-16 18:17:03.9799600,4808,10");
  REQUIRE(service.arrival_us == 1'700'158'623'979'960);
  REQUIRE(service.input_tokens == 4808);
  REQUIRE(service.output_tokens == 10);
  REQUIRE(service.blocks.empty());
  REQUIRE(parse_line(azure, "1970-01-01 00:00:01,1,0").arrival_us == 1'000'000);
  REQUIRE(parse_line(azure, "1970-01-02 00:00:00.5+00:00,1,0").arrival_us == 86'400'500'000);
}

TEST_CASE("A bad line of a JSON trace is named with its field and what it must be", "[trace]") {
  REQUIRE(mooncake_problem("0", "6758", "1", "[0,1,2,3,4,5,6,7,8,9,10,11,12]") ==
          "\"hash_ids\": has 13 entries, must have 14 (= ceil(input_length 6758 / 512))");
  REQUIRE(mooncake_problem("0", "5", "1", "[0, 1]") ==
          "\"hash_ids\": has 2 entries, must have 1 (= ceil(input_length 5 / 512))");
  REQUIRE(mooncake_problem("0", "5", "1", "7") == "\"hash_ids\": is 7, must be an array");
  for (const char* id : {"-1", "2147483648", "1.5", "\"a\"", "null", "18446744073709551615", "99999999999999999999"}) {
    CAPTURE(id);
    const std::string ids = std::string("[3, ") + id + "]";
    REQUIRE_THAT(mooncake_problem("0", "513", "1", ids),
                 kvc_test::contains("\"hash_ids\": entry 1 is ") && kvc_test::contains("from 0 to 2147483647"));
  }
  REQUIRE(mooncake_problem("0", "0", "1", "[]") == "\"input_length\": is 0, must be a whole number from 1 to 16777216");
  REQUIRE(mooncake_problem("0", "-5", "1", "[]") ==
          "\"input_length\": is -5, must be a whole number from 1 to 16777216");
  REQUIRE_THAT(mooncake_problem("0", "16777217", "1", "[]"), kvc_test::contains("\"input_length\": is 16777217"));
  REQUIRE_THAT(mooncake_problem("0", "\"5\"", "1", "[]"), kvc_test::contains("\"input_length\": is \"5\""));
  REQUIRE_THAT(mooncake_problem("0", "5", "-1", "[0]"), kvc_test::contains("\"output_length\": is -1"));
  REQUIRE_THAT(mooncake_problem("0", "5", "true", "[0]"), kvc_test::contains("\"output_length\": is true"));
  REQUIRE_THAT(mooncake_problem("-1", "5", "1", "[0]"), kvc_test::contains("\"timestamp\": is -1"));
  REQUIRE_THAT(mooncake_problem("1e3", "5", "1", "[0]"), kvc_test::contains("\"timestamp\": is 1000.0"));
  REQUIRE_THAT(mooncake_problem("[0]", "5", "1", "[0]"), kvc_test::contains("\"timestamp\": is an array"));
  REQUIRE(problem(mooncake, R"({"timestamp": 0, "input_length": 3, "hash_ids": [0]})") ==
          "\"output_length\": is missing");
  REQUIRE(problem(mooncake, weka_line) == "\"hash_ids\": is missing");

  REQUIRE_THAT(problem(mooncake, ""), kvc_test::contains("is not JSON"));
  REQUIRE_THAT(problem(mooncake, mooncake_line.substr(0, 50)), kvc_test::contains("is not JSON: error at byte 51"));
  REQUIRE_THAT(problem(mooncake, mooncake_line + "{}"), kvc_test::contains("is not JSON"));
  REQUIRE_THAT(problem(mooncake, "{\"timestamp\": 1e999}"), kvc_test::contains("is not JSON: a number is too large"));
  REQUIRE_THAT(problem(mooncake, "{\"timestamp\": \"\xFF\"}"), kvc_test::contains("is not JSON"));
  REQUIRE(problem(mooncake, "[1]") == "is an array, must be a JSON object");
  REQUIRE(problem(mooncake, "12") == "is 12, must be a JSON object");
}

TEST_CASE("What a bad line holds is shown short, and without what a terminal would obey", "[trace]") {
  const std::string text = mooncake_problem("\"\\u001b[2J\xC3\xA9" + std::string(100'000, 'x') + "\"", "5", "1", "[0]");
  REQUIRE(text.size() < 150);
  REQUIRE(std::ranges::all_of(text, [](char c) { return ' ' <= c && c <= '~'; }));

  // Values nested so deep that a recursion over them would run out of stack.
  const std::size_t depth = 1'000'000;
  const std::string nested = std::string(depth, '[') + std::string(depth, ']');
  REQUIRE_THAT(mooncake_problem(nested, "5", "1", "[0]"), kvc_test::contains("is an array"));
}

TEST_CASE("Runs of blocks are checked before they are written out", "[trace]") {
  REQUIRE(weka_problem("128", "[[0, 1]]") == "\"hash_runs\": has 1 ids, must have 2 (= floor(input_length 128 / 64))");
  REQUIRE_THAT(weka_problem("128", "[[0, 2147483648]]"), kvc_test::contains("has 2147483648 ids, must have 2"));
  REQUIRE_THAT(weka_problem("128", "[[0, 1000000000000]]"),
               kvc_test::contains("entry 0 has a count that is 1000000000000, must be"));
  REQUIRE_THAT(weka_problem("128", "[[5, 1], [2147483647, 2]]"),
               kvc_test::contains("entry 1 has a count that is 2, must be a whole number from 1 to 1"));
  REQUIRE_THAT(weka_problem("128", "[[-3, 2]]"), kvc_test::contains("entry 0 begins with an id that is -3, must be"));
  REQUIRE_THAT(weka_problem("128", "[[0, 0]]"), kvc_test::contains("entry 0 has a count that is 0, must be"));
  REQUIRE_THAT(weka_problem("128", "[[0, -2]]"), kvc_test::contains("entry 0 has a count that is -2, must be"));
  REQUIRE_THAT(weka_problem("128", "[[0, 2, 4]]"),
               kvc_test::contains("entry 0 is an array of 3, must be [first id, count]"));
  REQUIRE_THAT(weka_problem("128", "[0, 2]"), kvc_test::contains("entry 0 is 0, must be [first id, count]"));
  REQUIRE_THAT(weka_problem("128", "{\"0\": 2}"), kvc_test::contains("is an object, must be an array"));
}

TEST_CASE("A bad line of a CSV trace is named with its column and what it must be", "[trace]") {
  const std::string time = "2023-11-16 18:17:03.9799600";
  REQUIRE_THAT(problem(azure, time + ",5"), kvc_test::contains("has 2 columns, must have the 3 of"));
  REQUIRE_THAT(problem(azure, time + ",5,6,7"), kvc_test::contains("has 4 columns, must have the 3 of"));
  REQUIRE(problem(azure, time + ",0,6") == "\"ContextTokens\": is \"0\", must be a whole number from 1 to 16777216");
  for (const char* bad : {"", " 5", "5 ", "+5", "-5", "5.0", "0x5", "99999999999999999999"}) {
    CAPTURE(bad);
    REQUIRE_THAT(problem(azure, time + "," + bad + ",6"), kvc_test::contains("\"ContextTokens\": is "));
    REQUIRE_THAT(problem(azure, time + ",6," + bad), kvc_test::contains("\"GeneratedTokens\": is "));
  }
  for (const char* bad : {"", "0", "2023-11-16", "2023-11-16T18:17:03", "2023-02-30 18:17:03", "2023-13-01 18:17:03",
                          "1969-12-31 18:17:03", "2023-11-16 24:17:03", "2023-11-16 18:60:03", "2023-11-16 18:17:61",
                          "2023-11-16 18:17:03.", "2023-11-16 18:17:03.x", "2023-11-16 18:17:03.1234567890",
                          "2023-11-16 18:17:03 PM", "+023-11-16 18:17:03"}) {
    CAPTURE(bad);
    REQUIRE_THAT(problem(azure, std::string(bad) + ",5,6"), kvc_test::contains("\"TIMESTAMP\": is \""));
  }
}

TEST_CASE("A trace is read whatever its line ends, compressed or not", "[trace]") {
  const std::string second = R"({"timestamp": 28, "input_length": 3, "output_length": 1, "hash_ids": [9]})";
  for (const std::string& end : {std::string("\n"), std::string("\r\n"), std::string("\n\n \r\n")}) {
    for (const std::string& last : {std::string(), end}) {
      const TempFile file(mooncake_line + end + second + last);
      const std::string text = mooncake_line + end + second + last;
      for (const bool compressed : {false, true}) {
        CAPTURE(end, last, compressed);
        if (compressed) {
          file.compress(text);
        }
        const Trace trace = read_trace(file.path());
        REQUIRE(trace.name == file.path());
        REQUIRE(trace.format == mooncake);
        REQUIRE(trace.block_tokens == 512);
        REQUIRE(trace.skipped_lines == 0);
        REQUIRE(trace.requests.size() == 2);
        REQUIRE(trace.requests[1].blocks == std::vector<std::int32_t>{9});
        REQUIRE(trace.blocks() == 4);
        REQUIRE(trace.input_tokens() == 1028);
      }
    }
  }
  const TempFile marked("\xEF\xBB\xBF" + weka_line);
  REQUIRE(read_trace(marked.path()).format == weka);
}

TEST_CASE("Requests of a trace without block ids share nothing, and arrive from 0 on", "[trace]") {
  const TempFile file(azure_lines);
  const Trace trace = read_trace(file.path());
  REQUIRE(trace.format == azure);
  REQUIRE(trace.block_tokens == 16);
  REQUIRE(trace.requests.size() == 2);
  REQUIRE(trace.requests[0].arrival_us == 0);
  REQUIRE(trace.requests[1].arrival_us == 52'000);
  REQUIRE(trace.requests[0].blocks.size() == 301);  // ceil(4808 / 16)
  REQUIRE(trace.requests[1].blocks == std::vector<std::int32_t>{301, 302});
}

TEST_CASE("The first bad line ends the reading, or is counted", "[trace]") {
  const TempFile file(mooncake_line + "\n\n{\"timestamp\": -1}\n" + mooncake_line + "\nnonsense\n");
  REQUIRE(message_of(file.path()) ==
          file.path() + ":3: \"timestamp\": is -1, must be a whole number from 0 to 10000000000000");
  ReadOptions skip;
  skip.skip_bad = true;
  const Trace trace = read_trace(file.path(), skip);
  REQUIRE(trace.requests.size() == 2);
  REQUIRE(trace.skipped_lines == 2);
  REQUIRE(trace.first_skipped == message_of(file.path()));

  const TempFile all_bad("{\"hash_ids\": 1}\n");
  REQUIRE_THAT(message_of(all_bad.path(), skip), kvc_test::contains("holds no good request; the first bad line: "));
}

TEST_CASE("A file that is no trace is named", "[trace]") {
  REQUIRE_THAT(message_of("/nowhere/t.jsonl"), kvc_test::contains("/nowhere/t.jsonl: cannot be opened: No such file"));
  const std::string folder = std::filesystem::temp_directory_path();
  REQUIRE(message_of(folder) == folder + ": is a directory, must be a file");
  const TempFile empty("");
  REQUIRE(message_of(empty.path()) == empty.path() + ": holds no request");
  const TempFile blank("\n\r\n");
  REQUIRE(message_of(blank.path()) == blank.path() + ": holds no request");
  const TempFile header("TIMESTAMP,ContextTokens,GeneratedTokens\n");
  REQUIRE(message_of(header.path()) == header.path() + ": holds no request");

  ReadOptions skip;
  skip.skip_bad = true;
  const TempFile other("\n{\"id\": 1}\n");
  REQUIRE_THAT(message_of(other.path(), skip), kvc_test::contains(other.path() + ":2: begins like no known trace"));
  const TempFile other_columns("TIMESTAMP,Tokens\n");
  REQUIRE_THAT(message_of(other_columns.path(), skip), kvc_test::contains(":1: must be the header TIMESTAMP,Con"));
  ReadOptions as_azure;
  as_azure.detect = false;
  as_azure.format = azure;
  const TempFile chat(mooncake_line);
  REQUIRE_THAT(message_of(chat.path(), as_azure), kvc_test::contains(":1: must be the header TIMESTAMP,Con"));
}

TEST_CASE("A compressed trace that ends in the middle is an error wherever it ends", "[trace]") {
  std::string text;
  for (int i = 0; i < 50; ++i) {
    text += mooncake_line + "\n";
  }
  ReadOptions skip;
  skip.skip_bad = true;
  const TempFile file("");
  file.compress(text);
  const std::uintmax_t whole = std::filesystem::file_size(file.path());
  for (std::uintmax_t bytes = 2; bytes < whole; ++bytes) {
    CAPTURE(bytes);
    file.compress(text);
    file.cut_to(bytes);
    REQUIRE_THAT(message_of(file.path(), skip), kvc_test::contains("the file is truncated"));
  }

  file.compress(text);
  std::fstream(file.path(), std::ios::binary | std::ios::in | std::ios::out).seekp(40) << "\xFF\x13\xFF\x77";
  REQUIRE_THAT(message_of(file.path(), skip), kvc_test::contains(file.path() + ":"));
}

TEST_CASE("A file that asks for much more memory than it has bytes is given up", "[trace]") {
  std::string many = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  for (int i = 0; i < 300; ++i) {
    many += "2023-11-16 18:17:03,16777216,1\n";  // 2^20 blocks
  }
  const TempFile lines(many);
  REQUIRE_THAT(message_of(lines.path()), kvc_test::contains(":258: is one line too many: more than 268435456 blocks"));

  const TempFile file("");
  file.compress(std::string(max_line_bytes + (std::size_t{1} << 20), 'x'));
  REQUIRE_THAT(message_of(file.path()), kvc_test::contains(":1: is longer than"));
}

#else

TEST_CASE("A line of each trace format gives its request", "[trace]") {
  KVC_SKIP("built without zlib or nlohmann_json, which the readers of traces need");
}

#endif
