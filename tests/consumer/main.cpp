#include <kvc/version.hpp>

#include <iostream>

int main() { std::cout << "kvc " << KVC_VERSION_STRING << '\n'; }
