#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# embed.sh [BUILD]: what a newcomer does with the package. Installs it, moves it, copies the examples into a clean folder
# outside this tree, builds them there against the package alone and runs each over a tiny model. BUILD: a build folder to
# go on in; without one, from nothing. Says how long each step took.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build=${1:-$work/build}
began=$SECONDS
said() { echo "embed: $* ($((SECONDS - began)) s)"; }

cmake -S . -B "$build" -G Ninja -DEARNEST_TESTS=ON -DEARNEST_LIBRARY=ON >/dev/null
cmake --build "$build" --target earnest earnest-cli write_tiny_model >/dev/null
cmake --install "$build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/prefix" # nothing in it may know where it was
said "built and installed $(cd "$work/prefix" && find . -type f | sort | tr '\n' ' ')"

"$build/tests/capi/write_tiny_model" "$work/tiny"
{ # a second of noise: RIFF, 16 kHz, one channel, 16 bits
  printf 'RIFF\x24\x7d\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\x3e\x00\x00\x00\x7d\x00\x00\x02\x00\x10\x00data\x00\x7d\x00\x00'
  head -c 32000 /dev/urandom
} >"$work/noise.wav"
cp -r examples "$work/examples"
cd "$work"

prefix=$work/prefix
library=$(dirname "$(find "$prefix" -name 'libearnest.so.*' | head -1)")
export PKG_CONFIG_PATH=$library/pkgconfig CMAKE_PREFIX_PATH=$prefix LD_LIBRARY_PATH=$library
words='(you|sound|tired|glad|and|so|am|I|hear|it)'
reply() { # reply NAME COMMAND...: it ends well and says words
  local name=$1 text
  shift
  text=$("$@" 2>"$work/stderr") || { cat "$work/stderr" && return 1; }
  grep -qE "$words" <<<"$text$(cat "$work/stderr")" || { echo "embed: $name: expected words, got: $text" && return 1; }
  said "$name says: $(head -c 60 <<<"$text" | tr '\n' ' ')"
}
project() { # project FOLDER: built by its CMakeLists.txt
  cmake -S "examples/$1" -B "examples/$1/build" -G Ninja >/dev/null && cmake --build "examples/$1/build" >/dev/null
}

${CC:-cc} -std=c99 -Wall -Wextra -Werror -o hear examples/c/hear.c $(pkg-config --cflags --libs earnest)
reply "examples/c by pkg-config" ./hear tiny noise.wav "How do I sound?"
project c
reply "examples/c by CMake" examples/c/build/hear tiny noise.wav "How do I sound?"
project cpp
reply "examples/cpp" examples/cpp/build/side_by_side tiny
if command -v cargo >/dev/null; then
  (cd examples/rust && cargo build --quiet --release --offline)
  reply "examples/rust" examples/rust/target/release/earnest-tone tiny
else
  said "examples/rust SKIPPED: there is no cargo here"
fi
unset LD_LIBRARY_PATH # the program finds the library from its own place
reply "earnest-cli" "$prefix/bin/earnest-cli" tiny --wav noise.wav --text "How do I sound?" --max-tokens 20 </dev/null

# The same package as a static library: everything in one file.
cd "$source"
cmake -S . -B "$build" -DEARNEST_SHARED=OFF >/dev/null
cmake --build "$build" --target earnest earnest-cli >/dev/null
cmake --install "$build" --prefix "$work/static" >/dev/null
cmake -S . -B "$build" -DEARNEST_SHARED=ON >/dev/null
cd "$work"
library=$(dirname "$(find "$work/static" -name libearnest.a)")
export PKG_CONFIG_PATH=$library/pkgconfig CMAKE_PREFIX_PATH=$work/static
${CC:-cc} -std=c99 -o hear_static examples/c/hear.c $(pkg-config --static --cflags --libs earnest)
reply "examples/c with libearnest.a" ./hear_static tiny noise.wav
rm -rf examples/cpp/build && project cpp
reply "examples/cpp with libearnest.a" examples/cpp/build/side_by_side tiny
