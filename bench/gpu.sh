#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What needs a GPU, all checks and of the measurements what fits into one call of under nine minutes, on a machine that has
# nvcc, cmake, ninja, nanobind and a torch that sees the GPU, and nothing to download from:
#
#   EARNEST_COMMIT=$(git rev-parse HEAD) bench/gpu.sh OUT      # OUT/log.txt summary.json tests.xml results.jsonl resources.*
#   bench/gpu.sh OUT logprob engine                            # these steps alone, where an earlier call has built
#   bench/gpu.sh --dry-run                                     # names the steps, checks that what they name is there
#
# Each step has a time limit of its own, so that one that hangs does not cost the rest. Wheels in .whl/ (soundfile with cffi and
# pycparser, soxr, nanobind, liger-kernel, espeakng-loader, nvidia-cudnn-frontend) are used where they are. Exit code: that of the worst step.
set -uo pipefail
cd "$(dirname "$0")/.."

readonly MOST=530  # seconds in all
export BUILD=build/gpu
export PROGRAMS="test_simt test_mma test_ppo_cuda test_logmel_cuda test_logprob_cuda test_linear_cuda test_quantized_cuda test_attention_cuda test_attention_schedules_cuda test_attention_pieces_cuda test_attention_backward_cuda test_paged_attention_cuda test_rotary_write_cuda test_rowwise test_frames test_draws_cuda test_engine_cuda test_engine_graphs_cuda test_engine_products_cuda"
export CHECKED="test_simt test_mma test_ppo_cuda test_logmel_cuda test_logprob_cuda test_linear_cuda test_quantized_cuda test_attention_cuda test_attention_schedules_cuda test_attention_pieces_cuda test_attention_backward_cuda test_paged_attention_cuda test_rotary_write_cuda test_rowwise test_frames test_draws_cuda"  # by compute-sanitizer
export SYNCED="test_simt test_logprob_cuda test_linear_cuda test_attention_cuda test_attention_schedules_cuda test_attention_pieces_cuda test_attention_backward_cuda test_paged_attention_cuda"  # barriers too
export MEMCHECKED="test_engine_cuda"  # memory alone: the other tools would take minutes with whole models
readonly NAMED="CMakeLists.txt kernels/cuda.cmake tests/cuda python/earnest/__main__.py python/earnest/bench/digest.py
  python/earnest/bench/gpu.py .ci/cuda_resources.py kernels/cuda_resources.json"

usage() { sed -n '3,8p' "$0" | cut -c3- >&2; exit 2; }
[ $# -ge 1 ] || usage
case $1 in
  --dry-run) dry=1 out="" ;;
  -*) usage ;;
  *) dry=0 out=$1; mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2 ;;
esac
readonly ONLY=" ${*:2} "
readonly SUMMARY=summary${2:+-$2}.json  # a call for some steps keeps what the one before it has written
worst=0 planned=0 steps="" known=""

# step NAME LIMIT FUNCTION...: runs it within its limit and what is left of the whole, and notes how it went.
step() {
  local name=$1 limit=$2 began=$SECONDS left=$((MOST - SECONDS)) code=0
  shift 2
  known+="${known:+ }$name"
  [[ $ONLY == "  " || $ONLY == *" $name "* ]] || return 0
  planned=$((planned + limit))
  if ((dry)); then
    printf '%3d s  %-12s %s\n' "$limit" "$name" "$*"
    return 0
  fi
  ((limit < left)) || limit=$left
  echo "::: $name (at most $limit s): $*" | tee -a "$out/log.txt"
  if ((limit < 5)); then
    code=124
  else
    timeout --kill-after=5 "$limit" bash -uo pipefail -c '"$@"' step "$@" >>"$out/log.txt" 2>&1 || code=$?
  fi
  ((code > worst)) && worst=$code
  echo "::: $name: exit code $code after $((SECONDS - began)) s" | tee -a "$out/log.txt"
  steps+="${steps:+,}{\"step\":\"$name\",\"code\":$code,\"seconds\":$((SECONDS - began))}"
  printf '{"commit":"%s","seconds":%d,"worst":%d,"steps":[%s]}\n' \
    "${EARNEST_COMMIT:-unknown}" "$SECONDS" "$worst" "$steps" >"$out/$SUMMARY"
}

# Measurements, and the seconds that they would like.
readonly MEASURED="ppo:45 logmel:22 attention:85 decode:50 logprob:50 linear:35 engine:105 demo:40"
readonly START=10  # of them for Python to start and to end

# shared NAME FUNCTION...: a step of MEASURED, within its part of what is left for it and for those behind it: what is
# late shortens all that follow, and ends none of them unheard. FUNCTION is told how many seconds it may measure.
shared() {
  local name=$1 entry own=0 wanted=0 starts=0 left=$((MOST - SECONDS))
  for entry in $MEASURED; do
    [[ $ONLY == "  " || $ONLY == *" ${entry%:*} "* ]] || continue
    [[ ${entry%:*} == "$name" ]] && own=$((${entry#*:} - START))
    ((own == 0)) || { wanted=$((wanted + ${entry#*:} - START)); starts=$((starts + START)); }
  done
  left=$((left > starts ? left - starts : 0))
  ((dry || left >= wanted)) || own=$((own * left / wanted))
  step "$name" $((own > 0 ? own + START : 0)) "$2" "$own" "${@:3}"
}

environment() {  # packages that the machine may lack, and what it is
  if compgen -G '.whl/*.whl' >/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$BUILD/site" .whl/*.whl
  fi
  local module
  for module in soundfile soxr; do  # of which nothing is called here: no sound is decoded
    python3 -c "import $module" 2>/dev/null || { rm -rf "$BUILD/site/$module"; : >"$BUILD/site/$module.py"; }
  done
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
  nvcc --version | tail -2
  python3 -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())'
}

# In place: the extension goes beside the package's sources. Warnings are the gate's concern: another compiler has others.
build() {
  rm -f python/earnest/_native*.so "$BUILD/whole"
  cmake -S . -B "$BUILD" -G Ninja -DEARNEST_PYTHON=ON -DEARNEST_CUDA=ON -DEARNEST_TESTS=ON \
    -DEARNEST_SM80_TARGETS=90-real -DCMAKE_CXX_FLAGS=-w -DCMAKE_CUDA_FLAGS="-w -Xcompiler=-w -Xptxas=-v" \
    -Dnanobind_DIR="$(python3 -m nanobind --cmake_dir)" -DPython_EXECUTABLE="$(command -v python3)" &&
    cmake --build "$BUILD" --target _native $PROGRAMS 2>&1 | tee "$BUILD/report.txt" |
    grep --line-buffered -vE "^ptxas|bytes stack frame" &&
    cp "$BUILD"/_native*.so python/earnest/ && resources
}

# What ptxas gave the kernels as they run here, and how many blocks of their launches fit (the gate's own reckoning, for
# other targets). What differs from the gate's record is said, and is no failure.
resources() {
  cp kernels/cuda_resources.json "$out/resources.json"
  sed "s/ for 'sm_90'/ for 'sm_90a'/" "$BUILD/report.txt" >"$BUILD/ptxas.txt"
  python3 .ci/cuda_resources.py "$BUILD/ptxas.txt" "$out/resources.json" --write || true
}

programs() {  # the kernels' own tests, on the GPU
  local name failed=0
  for name in $PROGRAMS; do
    timeout --foreground 25 "$BUILD/$name" && echo "$name passed" || { echo "$name FAILED: exit code $?"; failed=1; }
  done
  return $failed
}

sanitizers() {  # all at a time: most of their time is waiting; what takes longest begins first
  local name tool i code failed=0
  # On some virtual machines the tool cannot reach the GPU: nothing is checked then, and the log says so.
  if timeout 30 compute-sanitizer "$BUILD/test_simt" 2>&1 | grep -q "Device not supported"; then
    echo "left out: compute-sanitizer says that it does not support this device"
    return 0
  fi
  local -a all=() ids=()
  for name in $MEMCHECKED; do all+=(memcheck:$name); done
  for name in $CHECKED; do all+=(memcheck:$name racecheck:$name initcheck:$name); done
  for name in $SYNCED; do all+=(synccheck:$name); done
  for name in "${all[@]}"; do
    tool=${name%%:*} name=${name#*:}
    timeout 70 compute-sanitizer --tool "$tool" --error-exitcode 9 "$BUILD/$name" >"$BUILD/$name.$tool" 2>&1 &
    ids+=($!)
  done
  for i in "${!ids[@]}"; do  # by its id: who has ended before it is waited for is not lost
    code=0; wait "${ids[i]}" || code=$?
    ((code == 0)) || { echo "${all[i]} FAILED: exit code $code"; failed=1; }
    ((code != 124)) || echo "${all[i]} had not ended after 70 s"
  done
  tail -n 4 "$BUILD"/*.{memcheck,racecheck,initcheck,synccheck}
  return $failed
}

determinism() {  # two processes, the same bits
  rm -f "$BUILD/whole"
  python3 -m earnest.bench.digest >"$BUILD/first" && python3 -m earnest.bench.digest >"$BUILD/second" &&
    grep -q "attention sm90a" "$BUILD/second" && : >"$BUILD/whole"
  cat "$BUILD/first" && cmp "$BUILD/first" "$BUILD/second" && echo "two runs gave the same bits"
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

# measure SECONDS WORDS... A path that faults or hangs would do so at the cost of all that is measured behind it.
measure() {
  sm90a_ends || export EARNEST_BENCH_WITHOUT=sm90a
  python3 -m earnest bench "${@:2}" --device cuda --peers --json "$out/results.jsonl" --seconds "$1"
}

demo() {  # needs espeakng-loader to speak with
  python3 -c 'import espeakng_loader' 2>/dev/null || { echo "left out: espeakng-loader is not there"; return 0; }
  python3 -m earnest demo --quick --device cuda --run "$BUILD/demo" && cat "$BUILD/demo/seconds.json"
}

tests() {  # a process for each file: a kernel that faults or hangs spoils its own file alone
  python3 -m pytest -v -ra -m gpu tests/cuda -p no:cacheprovider -n 6 --dist loadfile --timeout 60 --timeout-method thread \
    --junitxml "$out/tests.xml"
}

export out EARNEST_COMMIT="${EARNEST_COMMIT:-$(git rev-parse HEAD 2>/dev/null)}"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/python:$PWD/tests:$PWD/$BUILD/site"
export -f environment build resources programs tests sanitizers determinism sm90a_ends hopper measure demo
((dry)) || mkdir -p "$BUILD/site"
((dry)) || [[ $ONLY != "  " ]] || : >"$out/log.txt"

step environment 60 environment
step build 240 build
step programs 75 programs
step tests 110 tests
step sanitizers 80 sanitizers
step determinism 45 determinism
step hopper 40 hopper
shared ppo measure ppo
shared logmel measure logmel
shared attention measure attention/cuda-forward attention/cuda-backward attention/cuda-chunks attention/cuda-schedules
shared decode measure attention/cuda-decode attention/cuda-rotary-write
shared logprob measure logprob
shared linear measure linear
shared engine measure engine
shared demo demo

for name in $ONLY; do
  case " $known " in *" $name "*) ;; *) echo "gpu.sh: expected a step ($known), got $name" >&2; worst=2 ;; esac
done
if ((dry)); then
  for name in $NAMED; do
    [ -e "$name" ] || { echo "gpu.sh: expected $name, got none" >&2; worst=1; }
  done
  for name in $PROGRAMS; do
    compgen -G "tests/cpp/$name.c[cu]" >/dev/null || { echo "gpu.sh: expected tests/cpp/$name.cc or .cu, got none" >&2; worst=1; }
  done
  for name in $CHECKED $SYNCED $MEMCHECKED; do
    case " $PROGRAMS " in *" $name "*) ;; *) echo "gpu.sh: expected $name among the programs, got none" >&2; worst=1 ;; esac
  done
  echo "$planned s planned, at most $MOST s in all"
fi
exit "$worst"
