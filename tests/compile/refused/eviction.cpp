// says: first argument of PrefixShared is not an eviction policy
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

kvc::PrefixShared<kvc::Paged> policy({.blocks = 2});
