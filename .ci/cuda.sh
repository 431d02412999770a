#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What keeps CUDA honest on a machine without a GPU: nvcc compiles every kernel for every target and its report of
# registers, spills, stack frames and shared memory is held against kernels/cuda_resources.json; and the same sources run
# in the emulator, under the address and undefined-behaviour sanitizers, where every launch is held against that file, too.
#
#   .ci/cuda.sh [--compile] [--write]
#
# --compile: the first half alone; .ci/run does the second within its sanitizer build. --write: writes what it finds to the
# file and to its table, cuda_resources.md, instead. Where nvcc is missing the first half is left out, and that is said.
set -euo pipefail
cd "$(dirname "$0")/.."

bin="$(cd "${VENV:-.venv}/bin" && pwd)"
build="${CUDA_BUILD:-build}"
record=kernels/cuda_resources.json
options=(-S . -G Ninja "-DCMAKE_MAKE_PROGRAM=$bin/ninja" -DEARNEST_TESTS=ON)
half=both write=()
for option in "$@"; do
  case $option in
    --compile) half=first ;;
    --write) write=(--write) ;;
    *) echo "[cuda.sh] option: expected --compile or --write, got $option" >&2; exit 2 ;;
  esac
done

compile_kernels() {
  "$bin/cmake" "${options[@]}" -B "$build/cuda" -DEARNEST_CUDA=ON "-DCMAKE_CUDA_FLAGS=-Xptxas=-v" > /dev/null
  # From nothing: only what is compiled is reported.
  "$bin/cmake" --build "$build/cuda" --target cuda_kernels -- -t clean > /dev/null
  "$bin/cmake" --build "$build/cuda" --target cuda_kernels > "$build/cuda/report.txt" || { cat "$build/cuda/report.txt"; exit 1; }
  "$bin/python" .ci/cuda_resources.py "$build/cuda/report.txt" $record "${write[@]}"
  # Tests with kernels of their own, which a GPU runs: compiled, not linked.
  local name objects=()
  for name in $(basename -s .cu tests/cpp/test_*.cu | grep -v _emulator); do
    objects+=("CMakeFiles/$name.dir/tests/cpp/$name.cu.o")
  done
  "$bin/cmake" --build "$build/cuda" --target "${objects[@]}" > "$build/cuda/tests.txt" || { cat "$build/cuda/tests.txt"; exit 1; }
}

run_emulated() {
  "$bin/cmake" "${options[@]}" -B "$build/emulated" -DEARNEST_CUDA=EMULATED -DEARNEST_SANITIZE=address,undefined \
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1" > /dev/null
  "$bin/cmake" --build "$build/emulated" --target cuda_tests
  rm -f "$build/emulated/launches.txt"
  "$bin/ctest" --test-dir "$build/emulated" -L cuda --output-on-failure -j 2
  "$bin/python" .ci/cuda_launches.py "$build/emulated/launches.txt" $record "${write[@]}"
}

if command -v nvcc > /dev/null; then
  began=$SECONDS
  compile_kernels
  echo "cuda: every kernel compiled by nvcc in $((SECONDS - began)) s"
else
  echo "cuda: no nvcc here: that the kernels compile, and their registers and spills, have NOT been checked"
fi
[ $half = both ] || exit 0

began=$SECONDS
run_emulated
echo "cuda: the kernels' own source has passed its tests in the emulator, in $((SECONDS - began)) s"
