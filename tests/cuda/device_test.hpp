// Tests on a device, without a test framework: the machine with the GPU may have nothing but CUDA.
//
//   TEST(name) { CHECK(condition) << "what" << value; }
//
// A program of these runs all of them; with arguments those whose names contain one of them, or after --others those
// whose names contain none. It names each test before it runs, so that a hang can be told, and exits with 0, with 1 if
// a test failed or none ran, and with 4 if there is no GPU. An exception fails its test.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace kvc_test {

struct DeviceTest {
  const char* name;
  void (*run)();
};
inline std::vector<DeviceTest>& device_tests() {
  static std::vector<DeviceTest> all;
  return all;
}
struct RegisterDeviceTest {
  RegisterDeviceTest(const char* name, void (*run)()) { device_tests().push_back({name, run}); }
};
inline int& failures() {
  static int count = 0;
  return count;
}

/// Reports a failed check with what was streamed to it.
class Check {
 public:
  Check(bool ok, const char* condition, const char* file, int line) : ok_(ok) {
    text_ << file << ':' << line << ": " << condition;
  }
  ~Check() {
    if (!ok_) {
      ++failures();
      std::printf("  FAILED %s\n", text_.str().c_str());
    }
  }
  Check(const Check&) = delete;
  Check& operator=(const Check&) = delete;
  template <class V>
  Check& operator<<(const V& value) {
    if (!ok_) {
      text_ << ' ' << value;
    }
    return *this;
  }

 private:
  bool ok_;
  std::ostringstream text_;
};

/// Whether the arguments of the program select a test.
inline bool is_selected(const char* name, int argc, char** argv) {
  const bool others = argc > 1 && std::strcmp(argv[1], "--others") == 0;
  bool named = false;
  for (int i = others ? 2 : 1; i < argc; ++i) {
    named = named || std::strstr(name, argv[i]) != nullptr;
  }
  return others ? !named : argc == 1 || named;
}

inline int run_device_tests(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what was printed before a crash is not lost
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU: %s\n", status == cudaSuccess ? "no device" : cudaGetErrorString(status));
    return 4;
  }
  int failed = 0, run = 0;
  for (const DeviceTest& test : device_tests()) {
    if (!is_selected(test.name, argc, argv)) {
      continue;
    }
    std::printf("%s ...\n", test.name);
    const int before = failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failures();
      std::printf("  FAILED %s: %s\n", test.name, error.what());
    }
    if (const cudaError_t after = cudaDeviceSynchronize(); after != cudaSuccess) {
      ++failures();
      std::printf("  FAILED %s: afterwards: %s\n", test.name, cudaGetErrorString(after));
    }
    ++run;
    failed += failures() > before ? 1 : 0;
    std::printf("%s %s\n", failures() > before ? "failed" : "passed", test.name);
  }
  std::printf("%d passed, %d failed\n", run - failed, failed);
  return failed == 0 && run > 0 ? 0 : 1;
}

}  // namespace kvc_test

#define TEST(name)                                                               \
  static void name();                                                            \
  static const ::kvc_test::RegisterDeviceTest kvc_register_##name{#name, &name}; \
  static void name()
#define CHECK(condition) ::kvc_test::Check((condition), #condition, __FILE__, __LINE__)
