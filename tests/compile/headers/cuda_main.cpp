// Beside one translation unit for each .cuh: they link together.
int main() { return 0; }
