#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs a GPU, in one call of under nine minutes, on a machine that has nvcc, cmake, ninja, nanobind and a
# torch that sees the GPU, and nothing to download from:
#
#   EARNEST_COMMIT=<hash> bench/gpu.sh OUT      # OUT/log.txt summary.json tests.xml results.jsonl resources.*
#   CASES="logprob engine" bench/gpu.sh OUT measure    # these steps, these cases alone, where an earlier call has built
#   bench/gpu.sh --dry-run                      # names the steps, checks that what they name is there
#
# bench/steps.py carries out the plan below: checks run side by side, as none of them takes a time; what is timed runs alone.
# Wheels in .whl/ (soundfile with cffi and pycparser, soxr, nanobind, liger-kernel, espeakng-loader, nvidia-cudnn-frontend) are
# used where they are. Exit code: that of the worst step.
# shellcheck disable=SC2016,SC2086,SC2329  # lists are words; what is exported is called by steps.py
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

readonly MOST=530  # seconds in all
export START=16    # of them for the bench to start and to end
export BUILD=build/gpu
export PROGRAMS="test_simt test_mma test_hopper_sm90a test_ppo_cuda test_logmel_cuda test_logprob_cuda test_linear_cuda test_quantized_cuda test_attention_cuda test_attention_schedules_cuda test_attention_pieces_cuda test_attention_backward_cuda test_paged_attention_cuda test_rotary_write_cuda test_rowwise test_frames test_draws_cuda test_engine_cuda test_engine_graphs_cuda test_engine_products_cuda test_engine_hearing_cuda"
export CHECKED="test_simt test_mma test_hopper_sm90a test_ppo_cuda test_logmel_cuda test_logprob_cuda test_linear_cuda test_quantized_cuda test_attention_cuda test_attention_schedules_cuda test_attention_pieces_cuda test_attention_backward_cuda test_paged_attention_cuda test_rotary_write_cuda test_rowwise test_frames test_draws_cuda"  # by compute-sanitizer
export SYNCED="test_simt test_hopper_sm90a test_logprob_cuda test_linear_cuda test_attention_cuda test_attention_schedules_cuda test_attention_pieces_cuda test_attention_backward_cuda test_paged_attention_cuda"  # barriers too
export MEMCHECKED="test_engine_cuda test_engine_hearing_cuda"  # memory alone: the other tools would take minutes with whole models
export COMPILED="ppo/cuda-losses ppo/cuda-whiten ppo/cuda-groups logprob/cuda-16384 logprob/cuda-2048 logmel/cuda attention/cuda-rotary"  # by torch, ahead
readonly NAMED="CMakeLists.txt kernels/cuda.cmake tests/cuda python/earnest/__main__.py python/earnest/bench/digest.py
  python/earnest/bench/gpu.py python/earnest/bench/gpu_compile.py .ci/cuda_resources.py kernels/cuda_resources.json bench/steps.py"

# FORECAST: guesses, with what runs beside them, and meant to be high; of measure by python/earnest/bench/gpu_forecast.py.
plan() {
  cat <<'PLAN'
# NAME        LIMIT  FORECAST  AFTER                                                    COMMAND
wheels           40         5  -                                                        wheels
environment      60        15  wheels                                                   environment
build           200        75  wheels                                                   build
determinism     100        60  build                                                    determinism
compile         110        80  build                                                    compile
programs         90        50  build                                                    programs
tests           130       100  build                                                    tests
sanitizers      120       110  build                                                    sanitizers
hopper           50        30  determinism                                              hopper
measure        rest       255  environment,compile,programs,tests,sanitizers,hopper     measure
demo             45        30  measure                                                  demo
PLAN
}

usage() { sed -n '3,8p' "$0" | cut -c3- >&2; exit 2; }

wheels() {  # packages that the machine may lack
  if compgen -G '.whl/*.whl' >/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$BUILD/site" .whl/*.whl
  fi
  local module
  for module in soundfile soxr; do  # of which nothing is called here: no sound is decoded
    python3 -c "import $module" 2>/dev/null || { rm -rf "$BUILD/site/$module"; : >"$BUILD/site/$module.py"; }
  done
}

environment() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
  nvcc --version | tail -2
  python3 -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())'
  grep -E "^Mem(Total|Available)" /proc/meminfo
}

# In place: the extension goes beside the package's sources. Warnings are the gate's concern: another compiler has others.
build() {
  rm -f python/earnest/_native*.so "$BUILD/whole"
  cmake -S . -B "$BUILD" -G Ninja -DEARNEST_PYTHON=ON -DEARNEST_CUDA=ON -DEARNEST_TESTS=ON \
    -DEARNEST_SM80_TARGETS=90-real -DCMAKE_CXX_FLAGS=-w -DCMAKE_CUDA_FLAGS="-w -Xcompiler=-w -Xptxas=-v" \
    -Dnanobind_DIR="$(python3 -m nanobind --cmake_dir)" -DPython_EXECUTABLE="$(command -v python3)" || return 1
  local code=0  # a program that does not compile costs itself
  cmake --build "$BUILD" --target _native $PROGRAMS -- -k 0 2>&1 | tee "$BUILD/report.txt" |
    grep --line-buffered -vE "^ptxas|bytes stack frame" || code=$?
  cp "$BUILD"/_native*.so python/earnest/ && resources && return $code
}

# What ptxas gave the kernels as they run here, and how many blocks of their launches fit (the gate's own reckoning, for
# other targets). What differs from the gate's record is said, and is no failure.
resources() {
  cp kernels/cuda_resources.json "$out/resources.json"
  sed "s/ for 'sm_90'/ for 'sm_90a'/" "$BUILD/report.txt" >"$BUILD/ptxas.txt"
  python3 .ci/cuda_resources.py "$BUILD/ptxas.txt" "$out/resources.json" --write || true
}

seconds_left() { echo $((ENDS - $(date +%s) - $1)); }  # of the step, when so many are kept for its last words

programs() {  # the kernels' own tests, on the GPU
  local name failed=0 vendors
  # In Python torch has loaded the vendor's products; programs have to be told where they are.
  vendors=$(python3 -c 'import nvidia.cu13 as n; print(list(n.__path__)[0])' 2>/dev/null)/lib
  export LD_LIBRARY_PATH="$vendors${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  printf '%s\n' $PROGRAMS | xargs -P 6 -n 1 bash -c 'program "$1"' program || failed=1
  for name in $PROGRAMS; do cat "$BUILD/$name.said"; done
  return $failed
}

program() {
  local code=0 left
  left=$(seconds_left 8)
  ((left > 0)) || { echo "$1 FAILED: no time was left to begin" >"$BUILD/$1.said"; return 1; }
  timeout --kill-after=2 "$left" "$BUILD/$1" >"$BUILD/$1.said" 2>&1 || code=$?
  if ((code)); then echo "$1 FAILED: exit code $code"; else echo "$1 passed"; fi >>"$BUILD/$1.said"
  return $((code != 0))
}

sanitizers() {  # many at a time: most of their time is waiting; what takes longest begins first
  local name said failed=0
  # On some virtual machines the tool cannot reach the GPU: nothing is checked then, and the log says so.
  said=$(timeout 30 compute-sanitizer "$BUILD/test_simt" 2>&1) || true
  if [[ $said == *"Device not supported"* ]]; then
    echo "left out: compute-sanitizer says that it does not support this device"
    return 0
  fi
  {
    for name in $MEMCHECKED; do echo memcheck:$name; done
    for name in $CHECKED; do printf '%s\n' memcheck:$name racecheck:$name initcheck:$name; done
    for name in $SYNCED; do echo synccheck:$name; done
  } | xargs -P 32 -n 1 bash -c 'sanitizer "$1"' sanitizer || failed=1
  tail -n 4 "$BUILD"/*.{memcheck,racecheck,initcheck,synccheck}
  return $failed
}

sanitizer() {  # TOOL:PROGRAM, in what the step has left: whoever does not end is said to before the step does
  local tool=${1%%:*} name=${1#*:} code=0 left
  left=$(seconds_left 10)
  : >"$BUILD/$name.$tool"
  ((left > 0)) || { echo "$1 FAILED: no time was left to begin"; return 1; }
  local -a options=(--tool "$tool" --error-exitcode 9 --max-connections 128 --launch-timeout 60)  # many at a time
  [[ $tool != racecheck ]] || options+=(--racecheck-num-workers 1)  # else it takes all cores
  timeout --kill-after=2 "$left" compute-sanitizer "${options[@]}" "$BUILD/$name" >"$BUILD/$name.$tool" 2>&1 || code=$?
  case $code in
    0) return 0 ;;
    124 | 137) echo "$1 FAILED: had not ended after $left s" ;;
    *) echo "$1 FAILED: exit code $code" ;;
  esac
  return 1
}

determinism() {  # two processes, the same bits
  rm -f "$BUILD/whole"
  local first code=0
  python3 -m earnest.bench.digest >"$BUILD/first" & first=$!
  python3 -m earnest.bench.digest >"$BUILD/second" || code=$?
  wait "$first" || code=$?
  cat "$BUILD/first"
  ((code == 0)) && grep -q "attention sm90a" "$BUILD/second" && : >"$BUILD/whole"
  cmp "$BUILD/first" "$BUILD/second" || return 1
  ((code)) || echo "two runs gave the same bits"
  return $code
}

# The digests end with path sm90a. Where they came to their end, whole models go by it too.
sm90a_ends() { [ -e "$BUILD/whole" ]; }
hopper() {
  sm90a_ends || { echo "left out: path sm90a did not come to its end"; return 0; }
  local name failed=0
  for name in test_engine_cuda test_engine_graphs_cuda; do
    EARNEST_CUDA_TIER=sm90a "$BUILD/$name" || { echo "$name by sm90a FAILED: exit code $?"; failed=1; }
  done
  EARNEST_CUDA_TIER=sm90a python3 -m pytest -q -m gpu -p no:cacheprovider --timeout 30 tests/cuda/test_model_cuda.py || failed=1
  return $failed
}

compile() {  # what torch compiles for peers, into the cache from which they load it; each by one core
  printf '%s\n' $COMPILED | xargs -P 7 -n 1 python3 -m earnest.bench.gpu_compile
}

# A path that faults or hangs costs its case, and leaves its family: but it may do so at the cost of minutes.
measure() {
  sm90a_ends || export EARNEST_BENCH_WITHOUT=sm90a
  # Of tile sizes chosen by their times while others were at work: chosen again.
  [ ! -d "$TORCHINDUCTOR_CACHE_DIR" ] || find "$TORCHINDUCTOR_CACHE_DIR" -name '*.best_config' -delete
  python3 -m earnest bench ${CASES:-} --device cuda --peers --json "$out/results.jsonl" --seconds "$(seconds_left "$START")"
}

demo() {  # needs espeakng-loader to speak with
  python3 -c 'import espeakng_loader' 2>/dev/null || { echo "left out: espeakng-loader is not there"; return 0; }
  python3 -m earnest demo --quick --device cuda --run "$BUILD/demo" && cat "$BUILD/demo/seconds.json"
}

tests() {  # a process for each file: a kernel that faults or hangs spoils its own file alone
  python3 -m pytest -v -ra -m gpu tests/cuda -p no:cacheprovider -n 6 --dist loadfile --timeout 110 --timeout-method thread \
    --junitxml "$out/tests.xml"
}

[ $# -ge 1 ] || usage
case $1 in
  --dry-run) out="" ;;
  -*) usage ;;
  *) mkdir -p "$1" "$BUILD/site" && out=$(cd "$1" && pwd) || exit 2 ;;
esac
export out EARNEST_COMMIT="${EARNEST_COMMIT:-$(git rev-parse HEAD 2>/dev/null)}"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/python:$PWD/tests:$PWD/$BUILD/site"
export TORCHINDUCTOR_CACHE_DIR="$PWD/$BUILD/inductor" TORCHINDUCTOR_COMPILE_THREADS=1  # processes of its own would be in the way
export -f wheels environment build resources seconds_left programs program tests sanitizers sanitizer determinism sm90a_ends
export -f hopper compile measure demo

plan | python3 bench/steps.py --most "$MOST" ${out:+--out "$out"} -- "${@:2}"
worst=$?
if [ -z "$out" ]; then
  for name in $NAMED; do
    [ -e "$name" ] || { echo "gpu.sh: expected $name, got none" >&2; worst=1; }
  done
  for name in $PROGRAMS; do
    compgen -G "tests/cpp/$name.c[cu]" >/dev/null || { echo "gpu.sh: expected tests/cpp/$name.cc or .cu, got none" >&2; worst=1; }
  done
  for name in $CHECKED $SYNCED $MEMCHECKED; do
    case " $PROGRAMS " in *" $name "*) ;; *) echo "gpu.sh: expected $name among the programs, got none" >&2; worst=1 ;; esac
  done
fi
exit "$worst"
