// says: first argument of PrefixShared is not an eviction policy
#include "kvc/kvc.hpp"

kvc::PrefixShared<kvc::Paged> policy({.blocks = 2});
