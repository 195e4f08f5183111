// The reader of request traces: accepted input, and the errors for everything else.
#include "catch.hpp"

#if defined(KVC_HAVE_TRACE)

#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "temp_files.hpp"
#include "trace_reader.hpp"

namespace {
using namespace kvc_bench;
using enum TraceFormat;

/// Compresses `text` into a file.
void compress(const kvc_test::TempFile& to, const std::string& text) {
  gzFile file = gzopen(to.path().c_str(), "wb");
  REQUIRE(gzwrite(file, text.data(), static_cast<unsigned>(text.size())) == static_cast<int>(text.size()));
  REQUIRE(gzclose(file) == Z_OK);
}

const std::string mooncake_line =
    R"({"timestamp": 27, "input_length": 1025, "output_length": 52, "hash_ids": [0, 5, 2147483648]})";
const std::string weka_line =
    R"({"timestamp":19000,"input_length":455,"output_length":0,"agent":"main","hash_runs":[[0,3],[40,4]]})";
const std::string azure_lines =
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,4808,10\n"
    "2023-11-16 18:17:04.0319600,17,8\n";

/// One line, of a trace that has no other.
TraceRequest parse_line(TraceFormat format, const std::string& line, const ReadOptions& options = {}) {
  return LineParser(format, options).parse(line);
}

/// The problem of a bad line: all after the place.
std::string problem(TraceFormat format, const std::string& line, const ReadOptions& options = {}) {
  try {
    (void)LineParser(format, options).parse(line, {"file", 3});
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
  const TraceRequest chat = parse_line(mooncake, mooncake_line);
  REQUIRE(chat.arrival == 27'000'000);
  REQUIRE(chat.input_tokens == 1025);
  REQUIRE(chat.output_tokens == 52);
  REQUIRE(chat.blocks == std::vector<std::uint64_t>{0, 5, 2147483648});
  Request request;
  request.input_tokens = 1025;
  REQUIRE(request.tokens_in_first(0, 512) == 0);
  REQUIRE(request.tokens_in_first(2, 512) == 1024);
  REQUIRE(request.tokens_in_first(3, 512) == 1025);

  const TraceRequest agent = parse_line(weka, weka_line);
  REQUIRE(agent.arrival == 19'000'000'000);
  REQUIRE(agent.input_tokens == 455);
  REQUIRE(agent.output_tokens == 0);
  REQUIRE(agent.blocks == std::vector<std::uint64_t>{0, 1, 2, 40, 41, 42, 43});
  REQUIRE(weka_problem("63", "[]") == "none");

  const TraceRequest service = parse_line(azure, "2023-11-16 18:17:03.9799600,4808,10");
  REQUIRE(service.arrival == 1'700'158'623'979'960'000);
  REQUIRE(service.input_tokens == 4808);
  REQUIRE(service.output_tokens == 10);
  REQUIRE(service.blocks.empty());
  REQUIRE(parse_line(azure, "1970-01-01 00:00:01,1,0").arrival == 1'000'000'000);
  REQUIRE(parse_line(azure, "1970-01-02 00:00:00.5+00:00,1,0").arrival == 86'400'500'000'000);
  REQUIRE(parse_line(azure, " 2115-12-31 23:59:60 ,\t17, 8 ").input_tokens == 17);
}

TEST_CASE("Errors of a JSON trace name field, value and allowed values", "[trace]") {
  REQUIRE(mooncake_problem("0", "5", "1", "[0, 1]") ==
          "\"hash_ids\": has 2 entries, must have 0 or 1 (= input_length 5 / 512, rounded down or up); "
          "blocks of 2 tokens would fit: --block-tokens");
  REQUIRE(mooncake_problem("0", "1024", "1", "[0]") ==
          "\"hash_ids\": has 1 entries, must have 2 (= input_length 1024 / 512)");
  REQUIRE(mooncake_problem("0", "5", "1", "7") == "\"hash_ids\": is 7, must be an array");
  for (const char* id : {"-1", "18446744073709551616", "1.5", "\"a\"", "null", "1e17", "99999999999999999999"}) {
    CAPTURE(id);
    const std::string ids = std::string("[3, ") + id + "]";
    REQUIRE_THAT(mooncake_problem("0", "513", "1", ids),
                 kvc_test::contains("\"hash_ids/1\": is ") && kvc_test::contains("from 0 to 18446744073709551615"));
  }
  REQUIRE(mooncake_problem("0", "0", "1", "[]") == "\"input_length\": is 0, must be a whole number from 1 to 16777216");
  REQUIRE(mooncake_problem("0", "-5", "1", "[]") ==
          "\"input_length\": is -5, must be a whole number from 1 to 16777216");
  REQUIRE_THAT(mooncake_problem("0", "16777217", "1", "[]"), kvc_test::contains("\"input_length\": is 16777217"));
  REQUIRE_THAT(mooncake_problem("0", "\"5\"", "1", "[]"), kvc_test::contains("\"input_length\": is \"5\""));
  REQUIRE_THAT(mooncake_problem("0", "5", "-1", "[0]"), kvc_test::contains("\"output_length\": is -1"));
  REQUIRE_THAT(mooncake_problem("0", "5", "true", "[0]"), kvc_test::contains("\"output_length\": is true"));
  REQUIRE_THAT(mooncake_problem("-1", "5", "1", "[0]"), kvc_test::contains("\"timestamp\": is -1"));
  REQUIRE_THAT(mooncake_problem("0", "5.5", "1", "[0]"), kvc_test::contains("\"input_length\": is 5.5"));
  REQUIRE_THAT(mooncake_problem("[0]", "5", "1", "[0]"), kvc_test::contains("\"timestamp\": is an array"));
  REQUIRE(problem(mooncake, R"({"timestamp": 0, "input_length": 3, "hash_ids": [0]})") ==
          "\"output_length\": is missing");
  REQUIRE(problem(mooncake, weka_line) == "\"hash_ids\": is missing");

  REQUIRE_THAT(problem(mooncake, ""), kvc_test::contains("is not JSON"));
  REQUIRE_THAT(problem(mooncake, mooncake_line.substr(0, 50)), kvc_test::contains("is not JSON: error at byte 50"));
  REQUIRE_THAT(problem(mooncake, mooncake_line + "{}"), kvc_test::contains("is not JSON"));
  REQUIRE_THAT(problem(mooncake, "{\"timestamp\": 1e999}"), kvc_test::contains("is not JSON: a number is too large"));
  REQUIRE_THAT(problem(mooncake, "{\"timestamp\": \"\xFF\"}"), kvc_test::contains("is not JSON"));
  REQUIRE(problem(mooncake, "[1]") == "is an array of 1, must be a JSON object");
  REQUIRE(problem(mooncake, "12") == "is 12, must be a JSON object");
}

TEST_CASE("Errors show values in short and without control characters", "[trace]") {
  const std::string text = mooncake_problem("\"\\u001b[2J\xC3\xA9" + std::string(100'000, 'x') + "\"", "5", "1", "[0]");
  REQUIRE(text.size() < 150);
  REQUIRE(std::ranges::all_of(text, [](char c) { return ' ' <= c && c <= '~'; }));

  // A recursion over values nested so deep would exhaust the stack.
  const std::size_t depth = 1'000'000;
  const std::string nested = std::string(depth, '[') + std::string(depth, ']');
  REQUIRE_THAT(mooncake_problem(nested, "5", "1", "[0]"), kvc_test::contains("is an array"));
}

TEST_CASE("Runs of blocks are checked before they are expanded", "[trace]") {
  REQUIRE(weka_problem("128", "[[0, 1]]") == "\"hash_runs\": has 1 ids, must have 2 (= input_length 128 / 64)");
  REQUIRE_THAT(weka_problem("128", "[[0, 16777216]]"), kvc_test::contains("has 16777216 ids, must have 2"));
  REQUIRE_THAT(weka_problem("128", "[[0, 1000000000000]]"),
               kvc_test::contains("\"hash_runs/0/1\": is 1000000000000, must be a whole number from 1 to 16777216"));
  REQUIRE_THAT(weka_problem("128", "[[5, 1], [18446744073709551615, 2]]"),
               kvc_test::contains("\"hash_runs/1/1\": is 2, must be at most 1,"));
  REQUIRE_THAT(weka_problem("128", "[[-3, 2]]"), kvc_test::contains("\"hash_runs/0/0\": is -3, must be"));
  REQUIRE_THAT(weka_problem("128", "[[0, 0]]"), kvc_test::contains("\"hash_runs/0/1\": is 0, must be"));
  REQUIRE_THAT(weka_problem("128", "[[0, -2]]"), kvc_test::contains("\"hash_runs/0/1\": is -2, must be"));
  REQUIRE_THAT(weka_problem("128", "[[0, 2, 4]]"),
               kvc_test::contains("\"hash_runs/0\": is an array of 3, must be [first id, count]"));
  REQUIRE_THAT(weka_problem("128", "[0, 2]"), kvc_test::contains("\"hash_runs/0\": is 0, must be [first id, count]"));
  REQUIRE_THAT(weka_problem("128", "{\"0\": 2}"), kvc_test::contains("is an object, must be an array"));
}

TEST_CASE("Errors of a CSV trace name column, value and allowed values", "[trace]") {
  const std::string time = "2023-11-16 18:17:03.9799600";
  REQUIRE_THAT(problem(azure, time + ",5"), kvc_test::contains("has 2 columns, must have the 3 of"));
  REQUIRE_THAT(problem(azure, time + ",5,6,7"), kvc_test::contains("has 4 columns, must have the 3 of"));
  REQUIRE(problem(azure, time + ",0,6") == "\"ContextTokens\": is \"0\", must be a whole number from 1 to 16777216");
  for (const char* bad : {"", "+5", "-5", "5.0", "0x5", "99999999999999999999"}) {
    CAPTURE(bad);
    REQUIRE_THAT(problem(azure, time + "," + bad + ",6"), kvc_test::contains("\"ContextTokens\": is "));
    REQUIRE_THAT(problem(azure, time + ",6," + bad), kvc_test::contains("\"GeneratedTokens\": is "));
  }
  for (const char* bad : {"", "0", "2023-11-16", "2023-11-16T18:17:03", "2023-02-30 18:17:03", "2023-13-01 18:17:03",
                          "1969-12-31 18:17:03", "2116-01-01 00:00:00", "2023-11-16 24:17:03", "2023-11-16 18:60:03",
                          "2023-11-16 18:17:61", "2023-11-16 18:17:03.", "2023-11-16 18:17:03.x",
                          "2023-11-16 18:17:03.1234567890", "2023-11-16 18:17:03 PM", "+023-11-16 18:17:03"}) {
    CAPTURE(bad);
    REQUIRE_THAT(problem(azure, std::string(bad) + ",5,6"), kvc_test::contains("\"TIMESTAMP\": is \""));
  }
}

TEST_CASE("A trace may have any line ends, compressed or not", "[trace]") {
  const std::string second = R"({"timestamp": 28, "input_length": 3, "output_length": 1, "hash_ids": [9]})";
  for (const std::string& end : {std::string("\n"), std::string("\r\n"), std::string("\n\n \r\n")}) {
    for (const std::string& last : {std::string(), end}) {
      const kvc_test::TempFile file(mooncake_line + end + second + last);
      const std::string text = mooncake_line + end + second + last;
      for (const bool compressed : {false, true}) {
        CAPTURE(end, last, compressed);
        if (compressed) {
          compress(file, text);
        }
        const Trace trace = read_trace(file.path());
        REQUIRE(trace.name == file.path());
        REQUIRE(trace.format == mooncake);
        REQUIRE(trace.block_tokens == 512);
        REQUIRE(trace.skipped_lines == 0);
        REQUIRE(trace.requests.size() == 2);
        REQUIRE(trace.requests[1].blocks == std::vector<std::int32_t>{3});  // numbered as they appear
        REQUIRE(trace.blocks() == 4);
        REQUIRE(trace.input_tokens() == 1028);
      }
    }
  }
  const kvc_test::TempFile marked("\xEF\xBB\xBF" + weka_line);
  REQUIRE(read_trace(marked.path()).format == weka);
}

TEST_CASE("Requests of a trace without block ids share nothing, and arrive from 0 on", "[trace]") {
  const kvc_test::TempFile file(azure_lines);
  const Trace trace = read_trace(file.path());
  REQUIRE(trace.format == azure);
  REQUIRE(trace.block_tokens == 16);
  REQUIRE(trace.requests.size() == 2);
  REQUIRE(trace.requests[0].arrival == 0);
  REQUIRE(trace.requests[1].arrival == 52'000'000);
  REQUIRE(trace.requests[0].blocks.size() == 301);  // ceil(4808 / 16)
  REQUIRE(trace.requests[1].blocks == std::vector<std::int32_t>{301, 302});
}

TEST_CASE("The first bad line is an error, or skipped and counted", "[trace]") {
  const kvc_test::TempFile file(mooncake_line + "\n\n{\"timestamp\": -1}\n" + mooncake_line + "\nnonsense\n");
  REQUIRE(message_of(file.path()) ==
          file.path() + ":3: \"timestamp\": is -1, must be a number of milliseconds from 0 to 4611686018427");
  ReadOptions skip;
  skip.skip_bad = true;
  const Trace trace = read_trace(file.path(), skip);
  REQUIRE(trace.requests.size() == 2);
  REQUIRE(trace.skipped_lines == 2);
  REQUIRE(trace.first_skipped == message_of(file.path()));

  const kvc_test::TempFile all_bad("{\"hash_ids\": 1}\n");
  REQUIRE_THAT(message_of(all_bad.path(), skip), kvc_test::contains("holds no good request; the first bad line: "));
}

TEST_CASE("A file that is not a trace is an error", "[trace]") {
  REQUIRE_THAT(message_of("/nowhere/t.jsonl"), kvc_test::contains("/nowhere/t.jsonl: cannot be opened: No such file"));
  const kvc_test::TempFile empty("");
  REQUIRE(message_of(empty.path()) == empty.path() + ": holds no request");
  const kvc_test::TempFile blank("\n\r\n");
  REQUIRE(message_of(blank.path()) == blank.path() + ": holds no request");
  const kvc_test::TempFile header("TIMESTAMP,ContextTokens,GeneratedTokens\n");
  REQUIRE(message_of(header.path()) == header.path() + ": holds no request");

  ReadOptions skip;
  skip.skip_bad = true;
  const kvc_test::TempFile other("\n{\"id\": 1}\n");
  REQUIRE_THAT(message_of(other.path(), skip), kvc_test::contains(other.path() + ":2: begins like no known trace"));
  const kvc_test::TempFile other_columns("TIMESTAMP,Tokens\n");
  REQUIRE_THAT(message_of(other_columns.path(), skip), kvc_test::contains(":1: must be the header TIMESTAMP,Con"));
  ReadOptions as_azure;
  as_azure.format = azure;
  const kvc_test::TempFile chat(mooncake_line);
  REQUIRE_THAT(message_of(chat.path(), as_azure), kvc_test::contains(":1: must be the header TIMESTAMP,Con"));
}

TEST_CASE("A truncated gzip file is an error wherever it ends", "[trace]") {
  std::string text;
  for (int i = 0; i < 50; ++i) {
    text += mooncake_line + "\n";
  }
  ReadOptions skip;
  skip.skip_bad = true;
  const kvc_test::TempFile file("");
  compress(file, text);
  const std::uintmax_t whole = std::filesystem::file_size(file.path());
  for (std::uintmax_t bytes = 2; bytes < whole; ++bytes) {
    CAPTURE(bytes);
    compress(file, text);
    std::filesystem::resize_file(file.path(), bytes);
    REQUIRE_THAT(message_of(file.path(), skip), kvc_test::contains("the file is truncated"));
    REQUIRE_THAT(message_of(file.path(), skip), kvc_test::contains(": byte " + std::to_string(bytes) + ": "));
  }

  compress(file, text);
  std::fstream(file.path(), std::ios::binary | std::ios::in | std::ios::out).seekp(40) << "\xFF\x13\xFF\x77";
  REQUIRE_THAT(message_of(file.path(), skip), kvc_test::contains(file.path() + ":"));
}

TEST_CASE("A small file cannot ask for much memory", "[trace]") {
  std::string many = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  for (int i = 0; i < 300; ++i) {
    many += "2023-11-16 18:17:03,16777216,1\n";  // 2^20 blocks
  }
  const kvc_test::TempFile lines(many);
  REQUIRE_THAT(message_of(lines.path()), kvc_test::contains(":258: is one line too many: more than 268435456 blocks"));

  const kvc_test::TempFile file("");
  compress(file, std::string(max_line_bytes + (std::size_t{1} << 20), 'x'));
  REQUIRE_THAT(message_of(file.path()), kvc_test::contains(":1: is longer than"));
}

namespace {
std::string gzip(const std::string& text) {
  const kvc_test::TempFile file("");
  compress(file, text);
  return kvc_test::file_text(file.path());
}
/// The number of requests in a file of these bytes, or its error.
std::string outcome_of(const std::string& bytes, const ReadOptions& options = {}) {
  try {
    return std::to_string(read_trace(TraceInput::memory("t", bytes), options).requests.size());
  } catch (const TraceError& error) {
    return error.what();
  }
}
std::string line_at(const std::string& timestamp) {
  return R"({"timestamp": )" + timestamp + R"(, "input_length": 3, "output_length": 1, "hash_ids": [9]})" + "\n";
}
std::string line_of(Pos input, const std::string& ids) {
  return R"({"timestamp": 0, "input_length": )" + std::to_string(input) + R"(, "output_length": 1, "hash_ids": )" +
         ids + "}\n";
}
ReadOptions blocks_of(Pos tokens) {
  ReadOptions options;
  options.block_tokens = tokens;
  return options;
}
}  // namespace

TEST_CASE("All gzip members are read, zeros pad them, and anything else is an error with its offset", "[trace]") {
  const std::string one = line_at("1");
  const std::string member = gzip(one + one);
  const std::string at = "t: byte " + std::to_string(member.size()) + ": ";
  REQUIRE(outcome_of(member) == "2");
  REQUIRE(outcome_of(member + gzip(one)) == "3");
  REQUIRE(outcome_of(member + gzip("") + gzip(one)) == "3");
  REQUIRE(outcome_of(member + std::string(1, '\0')) == "2");
  REQUIRE(outcome_of(member + std::string(1'000'000, '\0')) == "2");
  REQUIRE(outcome_of(member + std::string(512, '\0') + gzip(one)) == "3");
  // A line may go on in the next member.
  REQUIRE(outcome_of(gzip(one.substr(0, 20)) + gzip(one.substr(20))) == "1");
  for (const std::string& rest : {one, std::string("x"), std::string("\n"), std::string("\x8b")}) {
    REQUIRE(outcome_of(member + rest) == at + "neither zeros nor another gzip member follow the compressed data");
  }
  REQUIRE_THAT(outcome_of(member + std::string(7, '\0') + "x"),
               kvc_test::contains("byte " + std::to_string(member.size() + 7) + ": neither zeros"));
  REQUIRE_THAT(outcome_of(member + "\x1f\x8c garbage"), kvc_test::contains("damaged"));
  REQUIRE_THAT(outcome_of(member + member.substr(0, 9)), kvc_test::contains("truncated"));
  REQUIRE_THAT(outcome_of(member + "\x1f"), kvc_test::contains("truncated"));
  for (const std::size_t from_end : {std::size_t{1}, std::size_t{4}, std::size_t{5}, std::size_t{8}}) {
    std::string damaged = member;  // its length, or its check sum
    damaged[damaged.size() - from_end] = static_cast<char>(damaged[damaged.size() - from_end] ^ 1);
    REQUIRE_THAT(outcome_of(damaged), kvc_test::contains("t: byte ") && kvc_test::contains("damaged"));
  }
}

TEST_CASE("A NUL byte does not end a line", "[trace]") {
  const std::string nul(1, '\0');
  const std::string good = line_at("1");
  const std::string line = good.substr(0, good.size() - 1);
  REQUIRE(outcome_of(good + line + nul + "\n") == "t:2: is not JSON: byte " + std::to_string(line.size()) + " is NUL");
  REQUIRE_THAT(outcome_of(good + line + nul + " and more\n"), kvc_test::contains("is NUL"));
  REQUIRE_THAT(outcome_of(good + nul), kvc_test::contains("t:2: is not JSON: byte 0 is NUL"));
  REQUIRE_THAT(outcome_of(azure_lines + "2023-11-16 18:17:04,17,8" + nul + "\n"),
               kvc_test::contains("t:4: \"GeneratedTokens\": is \"8\\u0000\""));
}

TEST_CASE("Numbers may be written with a fraction or an exponent, and times may have one", "[trace]") {
  const TraceRequest request = parse_line(
      mooncake, R"({"timestamp": 1.5, "input_length": 600.0, "output_length": 1e3, "hash_ids": [3.0, 4e0]})");
  REQUIRE(request.arrival == 1'500'000);
  REQUIRE(request.input_tokens == 600);
  REQUIRE(request.output_tokens == 1000);
  REQUIRE(request.blocks == std::vector<std::uint64_t>{3, 4});
  REQUIRE(
      parse_line(weka, R"({"timestamp": 1e3, "input_length": 1.28e2, "output_length": 0.0, "hash_runs": [[5.0, 2.0]]})")
          .blocks == std::vector<std::uint64_t>{5, 6});
  // Beyond 2^53 floating point is rounded already: two ids would become one.
  REQUIRE(parse_line(mooncake, line_of(600, "[9007199254740993, 18446744073709551615]")).blocks ==
          std::vector<std::uint64_t>{9007199254740993U, 18446744073709551615U});
  REQUIRE_THAT(problem(mooncake, line_of(600, "[0, 9007199254740994.0]")), kvc_test::contains("\"hash_ids/1\": is 9"));
}

TEST_CASE("Times are accepted as far as their arithmetic goes", "[trace]") {
  struct Case {
    TimeUnit unit;
    std::string most, more;
  };
  for (const Case& c : {Case{TimeUnit::seconds, "4611686018", "4611686019"},
                        Case{TimeUnit::milliseconds, "4611686018427", "4611686018428"},
                        Case{TimeUnit::microseconds, "4611686018427387", "4611686018427388"}}) {
    ReadOptions options;
    options.time_unit = c.unit;
    CAPTURE(c.most);
    REQUIRE(parse_line(mooncake, line_at(c.most), options).arrival == std::stoll(c.most) * nanoseconds_in(c.unit));
    for (const std::string& text : {c.more, c.more + ".5", std::string("1e300"), std::string("18446744073709551615"),
                                    std::string("-0.5"), std::string("\"1\"")}) {
      CAPTURE(text);
      REQUIRE_THAT(problem(mooncake, line_at(text), options),
                   kvc_test::contains("\"timestamp\": is ") &&
                       kvc_test::contains("must be a number of " + std::string(name(c.unit)) + " from 0 to " + c.most));
    }
  }
  ReadOptions short_patience;
  short_patience.max_abort_after = 2'000'000;
  const std::string own_line = R"({"timestamp": 0, "input_length": 1, "output_length": 1, "abort_after": )";
  REQUIRE(parse_line(own, own_line + "2}", short_patience).abort_after == 2'000'000);
  REQUIRE_THAT(problem(own, own_line + "2.5}", short_patience),
               kvc_test::contains("\"abort_after\": is 2.5, must be a number of milliseconds from 0 to 2"));
  ReadOptions order;
  order.in_order = true;
  REQUIRE(outcome_of(line_at("0") + line_at("4e12"), order) == "2");
  REQUIRE_THAT(outcome_of(line_at("5") + line_at("4.5"), order),
               kvc_test::contains("t:2: \"timestamp\": is 500 us before the request of the line above"));
  REQUIRE(outcome_of(line_at("5") + line_at("4.5")) == "2");
  ReadOptions with_unit;
  with_unit.time_unit = TimeUnit::seconds;
  REQUIRE_THAT(outcome_of(azure_lines, with_unit), kvc_test::contains("a time unit has no meaning for azure"));
}

TEST_CASE("Blocks may have any size, and the data show whether a last block is partly filled", "[trace]") {
  const auto last_block = [](const std::string& text, Pos tokens) {
    const Trace trace = read_trace(TraceInput::memory("t", text), blocks_of(tokens));
    REQUIRE(trace.block_tokens == tokens);
    return trace.last_block;
  };
  REQUIRE(last_block(line_of(33, "[1, 2]"), 16) == LastBlock::full);
  REQUIRE(last_block(line_of(33, "[1, 2, 3]"), 16) == LastBlock::partial);
  REQUIRE(last_block(line_of(32, "[1, 2]"), 16) == LastBlock::unknown);
  REQUIRE(last_block(line_of(32, "[1, 2]") + line_of(5, "[]"), 16) == LastBlock::full);
  REQUIRE(last_block(line_of(2048, "[1, 2]") + line_of(2047, "[1, 2]"), 1024) == LastBlock::partial);
  REQUIRE(last_block(line_of(7, "[1, 2, 3, 4, 5, 6, 7]"), 1) == LastBlock::unknown);
  REQUIRE(last_block(line_of(300, "[1, 2, 3]"), 100) == LastBlock::unknown);
  REQUIRE(outcome_of(line_of(33, "[1, 2]") + line_of(40, "[1, 2, 3]"), blocks_of(16)) ==
          "t:2: \"hash_ids\": has 3 entries, must have 2 (= floor(input_length 40 / 16), as in the lines above)");
  REQUIRE(outcome_of(line_of(33, "[1, 2, 3]") + line_of(40, "[1, 2]"), blocks_of(16)) ==
          "t:2: \"hash_ids\": has 2 entries, must have 3 (= ceil(input_length 40 / 16), as in the lines above)");
  // Without the option: the usual size of the format, and a size that would fit.
  REQUIRE_THAT(outcome_of(line_of(7331, "[0, 1, 2, 3, 4, 5, 6]")),
               kvc_test::contains("must have 14 or 15") && kvc_test::contains("blocks of 1024 tokens would fit"));
  for (const Pos bad : {Pos{0}, Pos{-5}, max_request_tokens + 1}) {
    REQUIRE_THAT(outcome_of(line_of(33, "[1]"), blocks_of(bad)), kvc_test::contains("block_tokens is "));
  }
  REQUIRE(note_on_blocks(mooncake, 512, LastBlock::partial).empty());
  REQUIRE(note_on_blocks(weka, 64, LastBlock::full).empty());
  REQUIRE(note_on_blocks(mooncake, 1024, LastBlock::full) ==
          "Blocks of 1024 tokens; the trace names full blocks only.");
}

TEST_CASE("The names of the fields decide the format, not their values", "[trace]") {
  const auto format_of = [](const std::string& line) { return detect_format(line); };
  REQUIRE(format_of(mooncake_line) == mooncake);
  REQUIRE(format_of(weka_line) == weka);
  REQUIRE(format_of("TIMESTAMP , ContextTokens,\tGeneratedTokens") == azure);
  REQUIRE(format_of(R"({"requests": []})") == session);
  for (const char* line : {R"({"timestamp": 0, "input_length": 3, "output_length": 1})",
                           R"({"timestamp": 0, "tokens": [1], "output_length": 1})",
                           R"({"timestamp": 0, "input_length": 3})",  // what it lacks, its reader says
                           R"({"prefix": [["hash_ids", 3]], "input_length": 3, "tenant": "hash_runs"})",
                           R"({"tenant": "requests", "output_length": 3})"}) {
    CAPTURE(line);
    REQUIRE(format_of(line) == own);
  }
  REQUIRE(outcome_of(R"({"timestamp": 0, "input_length": 3})") == "t:1: \"output_length\": is missing");
  for (const char* line : {"nonsense", R"({"id": 1})", "[1]", R"("hash_ids")", "17", "2023-11-16 18:17:03.97,48,10"}) {
    CAPTURE(line);
    for (const TraceFormat format : all_formats) {
      REQUIRE_THAT(outcome_of(line), kvc_test::contains("t:1: begins like no known trace") &&
                                         kvc_test::contains(std::string(name(format))));
    }
  }
  REQUIRE_THAT(outcome_of(R"({"hash_ids": [], "hash_runs": []})"), kvc_test::contains("has both"));
  // Columns in another order are not read as if they were in this one.
  ReadOptions as_azure;
  as_azure.format = azure;
  for (const ReadOptions& options : {ReadOptions{}, as_azure}) {
    REQUIRE_THAT(outcome_of("TIMESTAMP,GeneratedTokens,ContextTokens\n2023-11-16 18:17:03.97,48,10\n", options),
                 kvc_test::contains("t:1: must be the header TIMESTAMP,ContextTokens,GeneratedTokens"));
  }
  REQUIRE_THAT(outcome_of("2023-11-16 18:17:03.97,48,10\n", as_azure), kvc_test::contains("t:1: must be the header"));
  REQUIRE(outcome_of("TIMESTAMP, ContextTokens, GeneratedTokens\n2023-11-16 18:17:03.97, 48, 10\n") == "1");
}

TEST_CASE("The own format describes every property of a request, and rejects contradictions", "[trace]") {
  const TraceRequest request = parse_line(
      own, R"({"timestamp": 2, "input_length": 40, "output_length": 0, "prefix": [["system", 20], ["tools", 10]],)"
           R"( "samples": 2, "abort_after": 7.5, "tenant": "a", "max_output_length": 9})");
  REQUIRE(request.output_tokens == 0);
  REQUIRE(request.max_output_tokens == 9);
  REQUIRE(request.samples == 2);
  REQUIRE(request.abort_after == 7'500'000);
  REQUIRE(request.tenant == "a");
  REQUIRE(request.prefix.size() == 2);
  REQUIRE(request.prefix[1].name == "tools");
  REQUIRE(request.prefix[1].tokens == 10);
  const auto with = [](const std::string& fields) { return R"({"timestamp": 0, "output_length": 1, )" + fields + "}"; };
  REQUIRE(parse_line(own, with(R"("tokens": [5, 6])")).input_tokens == 2);
  REQUIRE(parse_line(own, with(R"("tokens": [5, 6], "input_length": 2)")).tokens == std::vector<kvc::Token>{5, 6});
  REQUIRE_THAT(problem(own, with(R"("tokens": [5, 6], "input_length": 3)")),
               kvc_test::contains("\"input_length\": is 3, must be 2, as many as \"tokens\""));
  REQUIRE_THAT(problem(own, with(R"("tokens": [5, 6], "prefix": [["a", 1]])")),
               kvc_test::contains("\"prefix\": contradicts \"tokens\""));
  REQUIRE_THAT(problem(own, with(R"("tokens": [])")), kvc_test::contains("\"tokens\": has 0 entries"));
  REQUIRE_THAT(problem(own, with(R"("tokens": [1, -2])")), kvc_test::contains("\"tokens/1\": is -2"));
  REQUIRE_THAT(problem(own, with(R"("input_length": 3, "prefix": [["a", 2], ["b", 2]])")),
               kvc_test::contains("\"prefix/1/1\": is 2, must be at most what is left of input_length, 1"));
  REQUIRE_THAT(problem(own, with(R"("input_length": 3, "hash": 1)")), kvc_test::contains("\"hash\": is not known"));
}

TEST_CASE("Prompts of the own format share blocks where their tokens are equal", "[trace]") {
  const auto line = [](const std::string& fields) {
    return R"({"timestamp": 0, "output_length": 1, )" + fields + "}\n";
  };
  const std::string text = line(R"("input_length": 40, "prefix": [["a", 32]])") +                 // 0 1 2
                           line(R"("input_length": 40, "prefix": [["a", 20], ["b", 12]])") +      // 0 3 4
                           line(R"("input_length": 33, "prefix": [["a", 33]])") +                 // 0 1 5
                           line(R"("input_length": 16, "prefix": [["a", 16]], "tenant": "x")") +  // 6
                           line(R"("tokens": [1, 2])") + line(R"("tokens": [1, 2])") +            // 7, 7
                           line(R"("tokens": [1, 3])") + line(R"("input_length": 2)") + line(R"("input_length": 2)");
  const Trace trace = read_trace(TraceInput::memory("t", text));
  std::vector<std::vector<std::int32_t>> blocks;
  for (const Request& request : trace.requests) {
    blocks.push_back(request.blocks);
  }
  REQUIRE(blocks ==
          std::vector<std::vector<std::int32_t>>{{0, 1, 2}, {0, 3, 4}, {0, 1, 5}, {6}, {7}, {7}, {8}, {9}, {10}});
}

namespace {
const std::string session_a = R"({"id": "a", "block_size": 64, "models": ["m"], "requests": [
  {"t": 0.0, "type": "n", "in": 130, "out": 5, "hash_ids": [1, 2]},
  {"t": 7.25, "in": 200, "out": 0, "hash_ids": [1, 2, 3], "stop": "end"}
]})";
const std::string session_b =
    R"({"requests": [{"t": 1, "in": 64, "out": 2, "hash_ids": [1]}, {"t": 6, "in": 64, "out": 2, "hash_ids": [1]}]})";
}  // namespace

TEST_CASE("Sessions are read one by one, line by line, and from a folder", "[trace]") {
  // One document over several lines, and on one.
  for (const std::string& text : {session_a, gzip(session_a), "\xEF\xBB\xBF\n" + session_a + "\n"}) {
    const Trace one = read_trace(TraceInput::memory("t", text));
    REQUIRE(one.format == session);
    REQUIRE(one.block_tokens == 64);
    REQUIRE(one.last_block == LastBlock::full);
    REQUIRE(one.requests.size() == 2);
    REQUIRE(one.requests[1].arrival == 7'250'000'000);
    REQUIRE(one.requests[1].output_tokens == 0);
    REQUIRE(one.requests[1].blocks == std::vector<std::int32_t>{0, 1, 2});
  }
  const kvc_test::TempFolder folder;
  folder.write("b.json", session_b);
  folder.write("a.json.gz", gzip(session_a));
  folder.write("README.md", "not a session");
  ReadOptions options;
  options.session_gap = 3'000'000'000;
  const auto check = [&](const Trace& trace) {
    // The first session at 0 and 7.25 s, the second one at 3 + 1 and 3 + 6 s; equal ids of two sessions differ.
    std::vector<Nanoseconds> arrivals;
    for (const Request& request : trace.requests) {
      arrivals.push_back(request.arrival / 10'000'000);
    }
    REQUIRE(arrivals == std::vector<Nanoseconds>{0, 400, 725, 900});
    REQUIRE(trace.requests[1].blocks == std::vector<std::int32_t>{2});
    REQUIRE(trace.requests[2].blocks == std::vector<std::int32_t>{0, 1, 3});
    REQUIRE(trace.requests[3].blocks == std::vector<std::int32_t>{2});
  };
  check(read_trace(folder.path(), options));
  std::string on_one_line = session_a;
  std::ranges::replace(on_one_line, '\n', ' ');
  check(read_trace(TraceInput::memory("t", on_one_line + "\n\n" + session_b + "\n"), options));
  // Read again from the beginning, also by a second reader, which parses nothing.
  const auto cache = std::make_shared<SessionCache>();
  TraceReader reader(TraceInput::open(folder.path()), options, cache);
  const auto count = [](TraceReader& of) {
    int requests = 0;
    while (of.next()) {
      ++requests;
    }
    return requests;
  };
  for (int round = 0; round < 2; ++round) {
    REQUIRE(count(reader) == 4);
    reader.rewind();
  }
  folder.write("a.json.gz", "no session any more");
  TraceReader second(TraceInput::open(folder.path()), options, cache);
  REQUIRE(count(second) == 4);
  REQUIRE(second.block_tokens() == 64);
  TraceReader other(TraceInput::open(folder.path()), options);
  REQUIRE_THROWS_AS(other.next(), TraceError);
}

TEST_CASE("Sessions may share ids, and hold sub-agents", "[trace]") {
  const std::string shared =
      R"({"hash_id_scope": "global", "requests": [{"t": 0, "in": 64, "out": 1, "hash_ids": [7]}]})";
  const Trace both = read_trace(TraceInput::memory("t", shared + "\n" + shared + "\n"));
  REQUIRE(both.requests[1].blocks == both.requests[0].blocks);
  // The times of a sub-agent count from its start, or like those around it.
  const auto arrivals = [](const std::string& inner) {
    const Trace trace = read_trace(TraceInput::memory(
        "t", R"({"requests": [{"t": 0, "in": 64, "out": 1, "hash_ids": [1]}, {"t": 10, "requests": [)" + inner +
                 R"(]}, {"t": 11, "in": 64, "out": 1, "hash_ids": [1]}]})"));
    std::vector<Nanoseconds> seconds;
    for (const Request& request : trace.requests) {
      seconds.push_back(request.arrival / 1'000'000'000);
    }
    return seconds;
  };
  const auto request_at = [](int t) {
    return R"({"t": )" + std::to_string(t) + R"(, "in": 64, "out": 1, "hash_ids": [2]})";
  };
  REQUIRE(arrivals(request_at(0) + "," + request_at(4)) == std::vector<Nanoseconds>{0, 10, 11, 14});
  REQUIRE(arrivals(request_at(10) + "," + request_at(14)) == std::vector<Nanoseconds>{0, 10, 11, 14});
}

TEST_CASE("A bad session is named with its file and field", "[trace]") {
  const kvc_test::TempFolder folder;
  REQUIRE_THAT(message_of(folder.path()), kvc_test::contains("is a folder without a file *.json"));
  folder.write("a.json", session_a);
  folder.write("c.json", R"({"requests": [{"t": 0, "in": 64, "out": 1, "hash_ids": [1, 2]}]})");
  REQUIRE(message_of(folder.path()) ==
          folder.path() + "/c.json: \"requests/0/hash_ids\": has 2 entries, must have 1 (= in 64 / 64)");
  folder.write("c.json", R"({"requests": [{"t": 0, "in": 64, "out": -1, "hash_ids": [1]}]})");
  REQUIRE_THAT(message_of(folder.path()), kvc_test::contains("c.json: \"requests/0/out\": is -1, must be"));
  ReadOptions skip;
  skip.skip_bad = true;
  REQUIRE(read_trace(folder.path(), skip).requests.size() == 2);
  REQUIRE(read_trace(folder.path(), skip).skipped_lines == 1);
  folder.write("c.json", R"({"requests": 5})");
  REQUIRE_THAT(message_of(folder.path()), kvc_test::contains("c.json: \"requests\": is 5, must be an array"));
  folder.write("c.json", R"({"block_size": 16, "requests": []})");
  REQUIRE_THAT(message_of(folder.path()), kvc_test::contains("\"block_size\": is 16, must be 64"));
  folder.write("c.json", "{");
  REQUIRE_THAT(message_of(folder.path()), kvc_test::contains("c.json: is not JSON"));
  ReadOptions as_weka;
  as_weka.format = weka;
  REQUIRE_THAT(message_of(folder.path(), as_weka), kvc_test::contains("is a folder, which holds sessions"));
  std::string nested;
  for (int i = 0; i < 40; ++i) {
    nested += R"({"t": 0, "requests": [)";
  }
  for (int i = 0; i < 40; ++i) {
    nested += "]}";
  }
  REQUIRE_THAT(outcome_of(nested), kvc_test::contains("is nested more than 16 deep"));
  ReadOptions far;
  far.session_gap = max_time;
  REQUIRE_THAT(outcome_of(session_b + "\n" + session_b + "\n", far),
               kvc_test::contains("t:2: is session 2, which would"));
  REQUIRE_THAT(outcome_of(R"({"requests": [{"t": 4611686019, "in": 1, "out": 1, "hash_ids": []}]})"),
               kvc_test::contains("\"requests/0/t\": is 4611686019, must be a number of seconds from 0 to 4611686018"));
}

#else

TEST_CASE("A line of each trace format gives its request", "[trace]") {
  KVC_SKIP("built without zlib or nlohmann_json, which the readers of traces need");
}

#endif
