# pkg_config.sh COMPILER PREFIX OUTPUT: compiles and runs the consumer with the flags of kvc.pc alone.
set -eu
if ! command -v pkg-config >/dev/null; then
  echo "skipped: consumer/pkg_config: there is no pkg-config" >&2
  exit 4
fi
PKG_CONFIG_PATH="$2/share/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
export PKG_CONFIG_PATH
# The flags are words, so they are not quoted.
"$1" -std=c++20 $(pkg-config --cflags kvc) "$(dirname "$0")/main.cpp" $(pkg-config --libs kvc) -o "$3"
"$3"
