# Installs what a build needs. Sourced by the scripts beside it, never run by itself.
# shellcheck shell=bash

# Debian and Ubuntu packages, each with the reason that the user is shown.
KVC_BUILD_PACKAGES=(
  "g++=the compiler"
  "cmake=configures the build"
  "ninja-build=runs the build"
  "libeigen3-dev=Eigen, the one library that kvc itself needs"
)
KVC_DEMO_PACKAGES=(
  "libcli11-dev=the demo's command line"
  "nlohmann-json3-dev=the demo's JSON output"
)
KVC_TEST_PACKAGES=(
  "catch2=the test framework"
  "pkg-config=the test of a pkg-config user"
  "python3=reads the headers for the test of their comments"
  "universal-ctags=the test that an editor finds the definitions"
  "libbenchmark-dev=the benchmarks"
  "libxxhash-dev=the checksums of snapshots and of stored blocks, optional"
  "libsodium-dev=the keys of stored blocks, optional"
  "libhiredis-dev=blocks in a Redis server, optional"
  "liburing-dev=blocks in files by io_uring, optional"
  "redis-server=the server that tests of this start, optional"
  "libopenmpi-dev=the transport between processes, optional"
  "openmpi-bin=runs the tests of that transport, optional"
  "zlib1g-dev=reads compressed traces, for the benchmark replay"
  "gnuplot-nox=draws the plots of the benchmark programs"
  "libjs-chart.js=draws the plots of a page of serve-bench, optional"
  "chromium=opens that page in a test, optional"
  "libtbb-dev=the oneTBB executor, optional"
  "g++-aarch64-linux-gnu=compiles the vector code for NEON, optional"
  "qemu-user=runs what was compiled for another processor, optional"
  "libprotobuf-dev=reads the ONNX test vectors, optional"
  "protobuf-compiler=reads the ONNX test vectors, optional"
)
KVC_CLANG_PACKAGES=(
  "clang=the second compiler"
  "libclang-rt-dev=the sanitizers of clang"
  "libomp-dev=OpenMP for clang, optional"
  "llvm=names functions in what a sanitizer of clang reports"
)
KVC_GGUF_PACKAGES=(
  "python3-pip=fetches ggml and a model for it"
  "libxxhash-dev=the checksums of snapshots"
)

# ensure_packages NAME=WHY...: installs those that are missing. Elsewhere than on Debian it names
# them and goes on: the configure step then says what it cannot find. Checks that run beside others wait for each other
# here, as apt-get serves one at a time.
ensure_packages() {
  if ! command -v flock >/dev/null; then
    install_packages "$@"
    return
  fi
  (
    flock 9
    install_packages "$@" 9>&-  # not for a server that a package starts
  ) 9>"${TMPDIR:-/tmp}/kvc-packages.$(id -u).lock"
}

# install_packages NAME=WHY...: as ensure_packages, for a caller that is alone.
install_packages() {
  local entry name missing=()
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "This system has no apt-get; these packages (by their Debian names) are assumed to be installed:"
    for entry in "$@"; do echo "  ${entry%%=*}: ${entry#*=}"; done
    return 0
  fi
  for entry in "$@"; do
    name=${entry%%=*}
    if [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" != installed ]; then
      [ ${#missing[@]} -gt 0 ] || echo "Installing with apt-get:"
      echo "  $name: ${entry#*=}"
      missing+=("$name")
    fi
  done
  [ ${#missing[@]} -gt 0 ] || return 0

  local as_root=(env DEBIAN_FRONTEND=noninteractive)
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "error: these packages are missing, and neither root nor sudo is here to install them; as root, run:" >&2
      echo "  apt-get update && apt-get install --no-install-recommends ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo "${as_root[@]}")
  fi
  "${as_root[@]}" apt-get update -q &&
    "${as_root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}" || {
    echo "error: apt-get could not install: ${missing[*]}" >&2
    return 1
  }
}
