// The contract of Layout as a suite: testing::layout_conformance<MyLayout>().
#pragma once

#include <string>
#include <utility>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/layout/verify.hpp"
#include "kvc/testing/contract.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

/// Checks all laws of Layout on every row of some 200 small pools. Throws ContractError for the first that does not
/// hold. Takes milliseconds.
template <Layout L>
void layout_conformance() {
  const std::string subject = kvc::detail::concat({"layout ", L::name});
  for (const Index blocks : {1, 3}) {
    for (const Index block_tokens : {1, 2, 5}) {
      for (const Index layers : {1, 3}) {
        for (const Index heads : {1, 2, 3}) {
          for (const auto& [key_row, value_row] :
               {std::pair<Index, Index>{1, 1}, {4, 4}, {5, 3}, {2, 7}, {3, 0}, {0, 0}}) {
            PoolExtents extents{blocks, block_tokens, layers, heads, key_row, value_row};
            if constexpr (ScalePlaneLayout<L>) {
              extents.key_scales = key_row % 3 * 4;
              extents.value_scales = value_row % 4 * 4;
            }
            const L layout(extents);
            expect(layout.extents() == extents, subject, {"extents() differs from the extents of its constructor"});
            const Index least =
                layers * heads * block_tokens * (key_row + value_row + extents.key_scales + extents.value_scales);
            expect(layout.block_size() >= least, subject,
                   {"block_size() is ", std::to_string(layout.block_size()), " for rows of ", std::to_string(least)});
            expect(layout.size() >= blocks * layout.block_size(), subject,
                   {"size() is ", std::to_string(layout.size()), " for ", std::to_string(blocks), " blocks of ",
                    std::to_string(layout.block_size())});
#if KVC_HAS_EXCEPTIONS
            try {
              kvc::layout::verify(layout, kvc::layout::Sample::all);
            } catch (const InvariantError& error) {
              expect(false, subject, {error.what()});
            }
#else
            kvc::layout::verify(layout, kvc::layout::Sample::all);
#endif
            const L copy = layout;
            const auto last = static_cast<BlockId>(blocks - 1);
            expect(copy.k(last, 0, 0, 0) == layout.k(last, 0, 0, 0) && copy.v(last, 0, 0, 0) == layout.v(last, 0, 0, 0),
                   subject, {"a copy maps to other offsets"});
          }
        }
      }
    }
  }
}

}  // namespace testing
}  // namespace v0
}  // namespace kvc
