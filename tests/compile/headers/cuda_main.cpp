// Beside translation units that nvcc compiles: they link together.
int main() { return 0; }
