#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What keeps CUDA honest on a machine without a GPU: nvcc compiles every kernel for every target and its report of
# registers, spills and stack frames is held against kernels/cuda_resources.json (--write: writes that file instead);
# and the same sources run in the emulator, under the address and undefined-behaviour sanitizers. Where nvcc is missing
# the first half is left out, and that is said.
set -euo pipefail
cd "$(dirname "$0")/.."

bin="$(cd "${VENV:-.venv}/bin" && pwd)"
build="${CUDA_BUILD:-build}"
options=(-S . -G Ninja "-DCMAKE_MAKE_PROGRAM=$bin/ninja" -DEARNEST_TESTS=ON)

compile_kernels() {
  "$bin/cmake" "${options[@]}" -B "$build/cuda" -DEARNEST_CUDA=ON "-DCMAKE_CUDA_FLAGS=-Xptxas=-v" > /dev/null
  # From nothing: only what is compiled is reported.
  "$bin/cmake" --build "$build/cuda" --target cuda_kernels -- -t clean > /dev/null
  "$bin/cmake" --build "$build/cuda" --target cuda_kernels > "$build/cuda/report.txt" || { cat "$build/cuda/report.txt"; exit 1; }
  "$bin/python" .ci/cuda_resources.py "$build/cuda/report.txt" kernels/cuda_resources.json "$@"
}

if command -v nvcc > /dev/null; then
  began=$SECONDS
  compile_kernels "$@"
  echo "cuda: every kernel compiled by nvcc in $((SECONDS - began)) s"
else
  echo "cuda: no nvcc here: that the kernels compile, and their registers and spills, have NOT been checked"
fi
[ "${1:-}" != "--write" ] || exit 0

began=$SECONDS
"$bin/cmake" "${options[@]}" -B "$build/emulated" -DEARNEST_CUDA=EMULATED -DEARNEST_SANITIZE=address,undefined \
  "-DCMAKE_CXX_FLAGS_RELEASE=-O1" > /dev/null
"$bin/cmake" --build "$build/emulated" --target cuda_tests
"$bin/ctest" --test-dir "$build/emulated" -L cuda --output-on-failure -j 2
echo "cuda: the kernels' own source has passed its tests in the emulator, in $((SECONDS - began)) s"
