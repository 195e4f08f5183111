// The program examples/generate, run as a user runs it.

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "catch.hpp"
#include "kvc/core/types.hpp"
#include "run_program.hpp"
#include "temp_files.hpp"
#include "test_data.hpp"

namespace {

kvc_test::Run generate(const std::string& arguments) { return kvc_test::run_program(KVC_GENERATE, arguments); }

constexpr const char* block_sizes[] = {"1", "7", "16", "64"};

}  // namespace

TEST_CASE("generate prints the golden text with every policy, block size, chunk and number of threads",
          "[golden][generate]") {
  const std::string folder = kvc_test::data_file("stories260k");
  // The file holds the text of 256 steps. That of 200 is its beginning.
  const std::string golden = kvc_test::file_text(folder + "/golden/stories260K_greedy_200_steps.txt");
  const std::string common = "--model " + folder + "/stories260K.bin --tokenizer " + folder +
                             "/tok512.bin --prompt '' --temperature 0 --quiet ";
  const auto require_golden = [&](const std::string& options) {
    CAPTURE(options);
    const kvc_test::Run whole = generate(common + options + " --steps 256 2>/dev/null");
    REQUIRE(whole.status == 0);
    REQUIRE(whole.output == golden);
  };
  for (const char* blocks : block_sizes) {
    for (const char* work : {"--chunk 0 --threads 1", "--chunk 3 --threads 2"}) {
      // All policies compute the text, and the program fails where they do not agree.
      require_golden(std::string("--policy all --block-tokens ") + blocks + " " + work);
    }
  }
  for (const char* policy : {"contiguous", "paged", "prefix-shared"}) {
    require_golden(std::string("--policy ") + policy + " --block-tokens 7 --chunk 3 --threads 2");
  }
  const kvc_test::Run part = generate(common + "--steps 200 2>/dev/null");
  REQUIRE(part.status == 0);
  REQUIRE(part.output == golden.substr(0, 464));
}

TEST_CASE("generate names what is wrong with an option or a file", "[generate]") {
  REQUIRE(generate("--help").status == 0);
  const kvc_test::Run bad_policy = generate("--policy lifo 2>&1");
  REQUIRE(bad_policy.status == 2);
  REQUIRE_THAT(bad_policy.output, kvc_test::contains("--policy") && kvc_test::contains("lifo"));
  const kvc_test::Run bad_number = generate("--block-tokens 0 2>&1");
  REQUIRE(bad_number.status == 2);
  REQUIRE_THAT(bad_number.output, kvc_test::contains("--block-tokens"));
  const kvc_test::Run missing = generate("--model /nowhere.bin --tokenizer /nowhere.tok 2>&1");
  REQUIRE(missing.status != 0);
  REQUIRE_THAT(missing.output, kvc_test::contains("/nowhere."));
  const std::string model = KVC_SOURCE_DIR "/examples/model/shakespeare.bin";
  const std::string tokenizer = KVC_SOURCE_DIR "/examples/model/shakespeare.tok";
  const kvc_test::Run foreign = generate("--model " + tokenizer + " --tokenizer " + tokenizer + " 2>&1");
  REQUIRE(foreign.status == 1);
  REQUIRE_THAT(foreign.output, kvc_test::contains("shakespeare.tok") && kvc_test::contains("expected"));
  const kvc_test::Run swapped = generate("--model " + model + " --tokenizer " + model + " 2>&1");
  REQUIRE(swapped.status == 1);
  REQUIRE_THAT(swapped.output, kvc_test::contains("shakespeare.bin") && kvc_test::contains("expected"));
}

TEST_CASE("generate reads GGUF files where it was built with ggml and says how to get it elsewhere", "[generate]") {
  const kvc_test::Run run = generate("--model /nowhere.gguf --prompt A 2>&1");
  CAPTURE(run.output);
  if (run.status == 2) {
    REQUIRE_THAT(run.output, kvc_test::contains("--model: ") && kvc_test::contains("tools/get-ggml"));
  } else {
    REQUIRE(run.status == 1);
    REQUIRE_THAT(run.output, kvc_test::contains("/nowhere.gguf"));
  }
  const kvc_test::TempFolder folder;  // the first bytes tell, whatever the name
  const kvc_test::Run unnamed = generate("--model=" + folder.write("model", "GGUF and no more") + " --prompt A 2>&1");
  REQUIRE(unnamed.status == run.status);
  REQUIRE_THAT(unnamed.output, kvc_test::contains(run.status == 2 ? "tools/get-ggml" : "complete GGUF file"));
}

TEST_CASE("generate says that a prompt is too long, and truncates it only on request", "[generate]") {
  std::string words;
  for (int i = 0; i < 600; ++i) words += "word ";
  const auto too_long = [](const std::string& arguments, const char* what) {
    CAPTURE(arguments);
    const kvc_test::Run refused = generate(arguments + " --quiet 2>&1 >/dev/null");
    CHECK(refused.status == 2);
    CHECK_THAT(refused.output, kvc_test::contains("--prompt: prompt ") && kvc_test::contains(what) &&
                                   kvc_test::contains("--truncate-prompt keeps the first"));
    CHECK(generate(arguments + " --quiet 2>/dev/null").output.empty());  // nothing of it was computed
  };
  too_long("--prompt '" + words + "' --steps 0", "positions of the model");
  too_long("--prompt '" + words + "'", "--steps 256");
  too_long("--prompt 'ROMEO: what light' --steps 3", "--steps 3");
  too_long("--prompt A --prompt 'ROMEO: what light' --steps 3", "prompt 2 has ");
  too_long("--steps 100", "--steps 100");  // the program's own prompts

  const std::string cut = "--policy paged --temperature 0 --truncate-prompt --prompt 'ROMEO: what light' --steps 3";
  const kvc_test::Run truncated = generate(cut + " --quiet 2>&1 >/dev/null");
  CHECK(truncated.status == 0);
  CHECK_THAT(truncated.output, kvc_test::contains("more than --steps 3; only the first 3 are used"));
  CHECK(generate("--policy paged --truncate-prompt --prompt A --steps 20 --quiet 2>&1 >/dev/null").output.empty());

  const kvc_test::Run beyond = generate("--steps 100000 2>&1");
  CHECK(beyond.status == 2);
  CHECK_THAT(beyond.output, kvc_test::contains("--steps: 100000 is not allowed, the model has "));
}

TEST_CASE("generate stores keys and values in every element type", "[generate]") {
  std::string of_f32;
  for (const std::string element : {"f32", "f16", "bf16", "int8", "fp8", "int4"}) {
    CAPTURE(element);
    // All policies compute the text, and have to agree.
    const kvc_test::Run run = generate("--prompt 'ROMEO:' --steps 40 --temperature 0 --quiet --element " + element);
    CHECK(run.status == 0);
    CHECK(run.output.starts_with("ROMEO:"));
    if (element == "f32") of_f32 = run.output;
    if (element == "f16" || element == "bf16") CHECK(run.output.substr(0, 12) == of_f32.substr(0, 12));
  }
  const kvc_test::Run unknown = generate("--element f8 2>&1");
  CHECK(unknown.status == 2);
  CHECK_THAT(unknown.output, kvc_test::contains("f32, f16, bf16, int8, fp8, int4"));
}

TEST_CASE("generate shows that only prefix-shared skips the prefill of what two prompts share", "[generate]") {
  const kvc_test::TempFolder folder;
  const std::string json = folder.file("report.json");
  const kvc_test::Run run = generate("--steps 170 --quiet --json " + json + " 2>&1");
  REQUIRE(run.status == 0);
  REQUIRE_THAT(run.output, kvc_test::contains("The night is long"));
  const auto report = nlohmann::json::parse(kvc_test::file_text(json));
  REQUIRE(report.at("prompts").size() == 2);
  for (const auto& policy : report["prompts"][0].at("policies")) {
    REQUIRE(policy.at("reused_tokens") == 0);
  }
  for (const auto& policy : report["prompts"][1].at("policies")) {
    const int reused = policy.at("reused_tokens");
    REQUIRE((reused > 100) == (policy.at("policy") == "prefix-shared"));
    REQUIRE(reused + policy.at("computed_tokens").get<int>() == policy.at("prompt_tokens"));
  }
}
