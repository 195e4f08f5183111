#include "device_test.hpp"

int main(int argc, char** argv) { return kvc_test::run_device_tests(argc, argv); }
