// generate --model FILE.gguf, run as a user runs it: with small models of random weights that the test writes, and with
// Gemma 3.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "gemma.hpp"
#include "random_model.hpp"
#include "random_source.hpp"
#include "run_program.hpp"
#include "temp_files.hpp"
#include "text.hpp"

namespace {

kvc_test::Run generate(const std::string& arguments) { return kvc_test::run_program(KVC_GENERATE, arguments); }

constexpr int small_vocab = 291;  // of SmallVocabulary

const kvc_test::Family small_llama{.architecture = "llama", .vocab = small_vocab};
const kvc_test::Family small_gemma{.architecture = "gemma3",
                                   .turns_halves = true,
                                   .head_norms = true,
                                   .post_norms = true,
                                   .window = 7,
                                   .layers = 7,
                                   .vocab = small_vocab,
                                   .positions = 64};

/// Writes a model of random weights, and returns its path.
std::string write_model(const kvc_test::Family& family, const kvc_test::TempFolder& folder, const std::string& name,
                        std::uint64_t seed = 1, bool has_vocabulary = true) {
  kvc_test::Random random(seed);
  const kvc_test::SmallVocabulary vocabulary;
  REQUIRE(vocabulary.size() == small_vocab);
  kvc_test::Weights(family, random)
      .write(family, folder.file(name), GGML_TYPE_F32, has_vocabulary ? &vocabulary : nullptr);
  return folder.file(name);
}

/// The text that the engine in this process gives after a prompt, and the tokens of the prompt.
struct Expected {
  std::string text;
  std::size_t prompt_tokens = 0;
};
Expected continued(const ggml_engine::Model& model, const std::string& prompt, std::size_t count,
                   const std::string& element) {
  kvc_test::EngineRun run({.element = element, .max_tokens = 64}, 1, model);
  const kvc_test::Tokens tokens = model.vocabulary->encode(prompt);
  Expected expected{{}, tokens.size()};
  for (const kvc::Token token : run.continue_greedily(tokens, count)) {
    expected.text += text::printable(model.vocabulary->decode(token));
  }
  return expected;
}

}  // namespace

TEST_CASE("generate continues prompts with a small model in every cache", "[gguf]") {
  const kvc_test::TempFolder folder;
  const std::string prompt = "the thin hen in a tin";
  const std::string other = "a net\nand \xC3\xA9\xFF";  // some bytes that are no characters of the vocabulary
  const std::string prompts = "--prompt '" + prompt + "' --prompt-file " + folder.write("prompt.txt", other);
  for (const kvc_test::Family& family : {small_llama, small_gemma}) {
    const std::string file = write_model(family, folder, family.architecture + ".gguf");
    const ggml_engine::Model model = ggml_engine::Model::load(file);
    for (const std::string element : {"f32", "bf16", "int8"}) {
      const Expected first = continued(model, prompt, 20, element);
      const Expected second = continued(model, other, 20, element);
      REQUIRE(first.text.size() > 10);
      REQUIRE(first.text != second.text);
      for (const char* how : {"--policy contiguous --threads 2", "--policy paged --block-tokens 5 --prefill-chunk 3",
                              "--policy prefix-shared --together", "--policy contiguous --together --threads 2"}) {
        CAPTURE(family.architecture, element, how);
        const kvc_test::Run run =
            generate("--model " + file + " " + prompts + " --new-tokens 20 --ignore-end --element " + element + " " +
                     how + " --quiet");
        REQUIRE(run.status == 0);
        REQUIRE(run.output == first.text + '\n' + second.text + '\n');
      }
    }
    const Expected first = continued(model, prompt, 1, "f32");
    const Expected second = continued(model, other, 1, "f32");
    const kvc_test::Run run =
        generate("--model " + file + " " + prompts + " --new-tokens 20 --ignore-end --profile 2>&1");
    REQUIRE(run.status == 0);
    REQUIRE_THAT(run.output,
                 kvc_test::contains("prompts: " + std::to_string(first.prompt_tokens + second.prompt_tokens) +
                                    " tokens, 0 of them found"));
    REQUIRE_THAT(run.output, kvc_test::contains("decode: 38 tokens"));  // the first ones come with the prompts
    REQUIRE_THAT(run.output, kvc_test::contains("in passes; attention (kvc)"));
  }
}

TEST_CASE("generate finds in its cache file the prompts of earlier runs of the same model alone", "[gguf]") {
  const kvc_test::TempFolder folder;
  const std::string model = write_model(small_llama, folder, "model.gguf");
  const auto run_with = [&](const std::string& file, const std::string& more) {
    return generate("--model " + file + " --new-tokens 9 --ignore-end --block-tokens 4 --policy prefix-shared " +
                    "--cache-file " + folder.file("cache.kvc") + " --prompt 'the thin hen in a tin' " + more + " 2>&1");
  };
  const auto text_of = [](const kvc_test::Run& run) {  // between the lines that come before and after it
    const std::size_t begin = run.output.find("\n\n") + 2;
    return run.output.substr(begin, run.output.find("\n\nprompts:") - begin);
  };
  const kvc_test::Run first = run_with(model, "");
  REQUIRE(first.status == 0);
  REQUIRE_THAT(first.output, kvc_test::contains(" 0 of them found"));
  const kvc_test::Run second = run_with(model, "");
  REQUIRE(second.status == 0);
  REQUIRE_THAT(second.output, !kvc_test::contains(" 0 of them found"));
  REQUIRE(text_of(second) == text_of(first));
  REQUIRE(text_of(second).size() > 3);

  // Rows of another model of the same extents are none of this one's.
  const std::string other = write_model(small_llama, folder, "other.gguf", 2);
  const kvc_test::Run of_other = run_with(other, "");
  REQUIRE(of_other.status == 0);
  REQUIRE_THAT(of_other.output, kvc_test::contains(" 0 of them found"));
  REQUIRE(text_of(of_other) != text_of(first));
  REQUIRE_THAT(run_with(model, "").output, !kvc_test::contains(" 0 of them found"));  // both are in the file

  // Nor are those of the same model with one bit of a weight changed.
  std::string bytes = kvc_test::file_text(model);
  char& changed = bytes[bytes.size() / 2];
  changed = static_cast<char>(changed ^ 1);
  const kvc_test::Run of_changed = run_with(folder.write("changed.gguf", bytes), "");
  REQUIRE(of_changed.status == 0);
  REQUIRE_THAT(of_changed.output, kvc_test::contains(" 0 of them found"));

  // A shorter prompt needs a smaller pool than what is in the file.
  const kvc_test::Run shorter = generate("--model " + model + " --new-tokens 1 --policy prefix-shared --cache-file " +
                                         folder.file("cache.kvc") + " --prompt a 2>&1");
  CAPTURE(shorter.output);
  REQUIRE(shorter.status == 0);

  const auto require_refused = [&](const kvc_test::Run& run, const std::string& name) {
    CAPTURE(run.output);
    REQUIRE(run.status == 1);
    REQUIRE_THAT(run.output, kvc_test::contains(name));
  };
  require_refused(run_with(model, "--element bf16"), "cache.kvc");
  require_refused(run_with(write_model(small_gemma, folder, "gemma.gguf"), ""), "cache.kvc");
  require_refused(generate("--model " + model + " --policy prefix-shared --prompt a --new-tokens 1 --cache-file " +
                           folder.file("no/folder/cache.kvc") + " 2>&1"),
                  "no/folder");
  folder.write("cache.kvc", "no snapshot");
  require_refused(run_with(model, ""), "cache.kvc");
}

TEST_CASE("generate names what is wrong with a small model, a prompt or an option", "[gguf]") {
  const kvc_test::TempFolder folder;
  const auto require_refused = [](const std::string& arguments, int status, const std::string& name) {
    CAPTURE(arguments);
    const kvc_test::Run run = generate(arguments + " 2>&1");
    CAPTURE(run.output);
    REQUIRE(run.status == status);
    REQUIRE_THAT(run.output, kvc_test::contains(name));
  };
  REQUIRE(generate("--model x.gguf --help").status == 0);
  require_refused("--model /nowhere.gguf --prompt a", 1, "/nowhere.gguf");
  require_refused("--model " + folder.write("broken", "GGUF and no more") + " --prompt a", 1, "complete GGUF file");
  require_refused("--model x.gguf --policy lifo", 2, "lifo");
  require_refused("--model x.gguf --element f8", 2, "f8");
  require_refused("--model x.gguf --new-tokens 0", 2, "--new-tokens");
  require_refused("--model x.gguf --threads 0", 2, "--threads");
  require_refused("--model x.gguf --block-tokens 0", 2, "--block-tokens");
  require_refused("--model x.gguf --prefill-chunk -1", 2, "--prefill-chunk");
  require_refused("--model x.gguf --steps 3", 2, "--steps");
  require_refused("--model x.gguf --prompt a --cache-file c", 2, "--policy prefix-shared");

  const std::string file = write_model(small_gemma, folder, "model.gguf");
  const std::string model = "--model " + file;
  require_refused(model, 2, "--prompt");
  require_refused(model + " --prompt-file /nowhere.txt", 2, "/nowhere.txt");
  require_refused(model + " --prompt-file " + folder.path(), 2, "--prompt-file");
  require_refused(model + " --prompt a --new-tokens 1000000", 2, "the 64 positions of the model");
  require_refused(model + " --new-tokens 8 --prompt a --prompt " + std::string(70, 'q'), 2, "prompt 2 has");
  REQUIRE(generate(model + " --prompt a --new-tokens 62 --ignore-end --quiet").status == 0);  // with <s> and " a": 64
  REQUIRE(generate(model + " --prompt a --new-tokens 63 --ignore-end --quiet 2>&1").status == 2);
  require_refused("--model " + write_model(small_gemma, folder, "mute.gguf", 1, false) + " --prompt a", 1,
                  "vocabulary of the kind");
  const std::string bytes = kvc_test::file_text(file);
  require_refused("--model " + folder.write("cut.gguf", bytes.substr(0, bytes.size() / 2)) + " --prompt a", 1,
                  "cut.gguf");
}

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
  // The passes of the prompts are the same in all of them: goldens.cpp says what depends on these.
  for (const char* how : {"--policy prefix-shared", "--policy contiguous --threads 2"}) {
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
