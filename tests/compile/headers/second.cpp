#include <kvc/version.hpp>
