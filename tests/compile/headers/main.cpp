#include <kvc/version.hpp>
int main() {}
