// generate --model FILE.gguf, run as a user runs it.

#include <string>

#include "gemma.hpp"
#include "run_program.hpp"
#include "temp_files.hpp"

namespace {

kvc_test::Run generate(const std::string& arguments) { return kvc_test::run_program(KVC_GENERATE, arguments); }

}  // namespace

TEST_CASE("generate continues prompts with a GGUF file", "[gguf]") {
  const std::string common = "--model " + kvc_test::gemma_file() + " --new-tokens 48 ";
  const kvc_test::Golden short_one = kvc_test::golden("short");
  const kvc_test::Golden french = kvc_test::golden("french");
  const kvc_test::TempFile file(french.prompt);
  const std::string prompts = "--prompt '" + short_one.prompt + "' --prompt-file " + file.path();
  std::string expected;
  for (const kvc_test::Golden* golden : {&short_one, &french}) {
    kvc_test::EngineRun run({.max_tokens = 100});
    for (const kvc::Token token : run.continue_greedily(golden->prompt_tokens, 48)) {
      expected += kvc_test::gemma().vocabulary->decode(token);
    }
    expected += '\n';
  }
  for (const char* how : {"--policy prefix-shared --prefill-chunk 3", "--policy contiguous --threads 2",
                          "--policy paged --block-tokens 64 --together"}) {
    CAPTURE(how);
    const kvc_test::Run run = generate(common + prompts + " " + how + " --quiet");
    REQUIRE(run.status == 0);
    REQUIRE(run.output == expected);
  }
  const kvc_test::Run profile = generate(common + prompts + " --profile 2>&1");
  REQUIRE(profile.status == 0);
  REQUIRE_THAT(profile.output, kvc_test::contains("attention (kvc)") && kvc_test::contains("decode: 94 tokens"));
}

TEST_CASE("generate finds prompts of an earlier run in its cache file", "[gguf]") {
  const std::string model = kvc_test::gemma_file();
  const kvc_test::TempFolder folder;
  folder.write("prompt.txt", kvc_test::golden("window").prompt.substr(0, 600));  // shorter than the window
  const std::string arguments = "--model " + model + " --new-tokens 8 --policy prefix-shared --prompt-file " +
                                folder.file("prompt.txt") + " --cache-file " + folder.file("cache.kvc") + " 2>&1";
  const kvc_test::Run first = generate(arguments);
  REQUIRE(first.status == 0);
  REQUIRE_THAT(first.output, kvc_test::contains(" 0 of them found"));
  const kvc_test::Run second = generate(arguments);
  REQUIRE(second.status == 0);
  REQUIRE_THAT(second.output, !kvc_test::contains(" 0 of them found"));
  folder.write("cache.kvc", "no snapshot");
  const kvc_test::Run third = generate(arguments);
  REQUIRE(third.status == 1);
  REQUIRE_THAT(third.output, kvc_test::contains("cache.kvc"));
}

TEST_CASE("generate names what is wrong with a GGUF file or an option for one", "[gguf]") {
  const kvc_test::TempFolder folder;
  const auto require_refused = [](const std::string& arguments, int status, const std::string& name) {
    CAPTURE(arguments);
    const kvc_test::Run run = generate(arguments + " 2>&1");
    REQUIRE(run.status == status);
    REQUIRE_THAT(run.output, kvc_test::contains(name));
  };
  REQUIRE(generate("--model x.gguf --help").status == 0);
  require_refused("--model /nowhere.gguf --prompt a", 1, "/nowhere.gguf");
  require_refused("--model " + folder.write("broken", "GGUF and no more") + " --prompt a", 1, "complete GGUF file");
  require_refused("--model x.gguf --policy lifo", 2, "lifo");
  require_refused("--model x.gguf --new-tokens 0", 2, "--new-tokens");
  require_refused("--model x.gguf --prompt a --cache-file c", 2, "--policy prefix-shared");
  const std::string model = "--model " + kvc_test::gemma_file();
  require_refused(model, 2, "--prompt");
  require_refused(model + " --prompt-file /nowhere.txt", 2, "/nowhere.txt");
  require_refused(model + " --prompt a --new-tokens 1000000", 2, "positions of the model");
}
