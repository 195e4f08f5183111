// generate --model FILE.gguf: the program generate for models that ggml runs.
#pragma once

namespace ggml_engine {

/// The whole program: parses the arguments, runs, and returns the exit code.
[[nodiscard]] int run(int argc, char** argv);

}  // namespace ggml_engine
