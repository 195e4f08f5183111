// Which law of a contract something breaks.
#pragma once

#include <string>
#include <utility>

#include "kvc/testing/contract.hpp"

namespace kvc_test {

/// The law that the suite finds broken, as it says it; empty if it finds none.
template <class Suite>
std::string broken_law(Suite&& suite) {
  try {
    std::forward<Suite>(suite)();
  } catch (const kvc::testing::ContractError& error) {
    return error.what();
  }
  return "";
}

}  // namespace kvc_test
