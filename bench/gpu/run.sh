#!/bin/sh
# Check and measure on this machine's GPU, in two parts of a few minutes each.
#
#   bench/gpu/run.sh kernels OUT     import or build, microbenchmarks, tests, memcheck, profiles: 270 s at most
#   bench/gpu/run.sh programs OUT    attacks, maps and sweeps beside other libraries: 330 s at most
#
# OUT gets JSON that is rewritten after every row, and the log of each step; `bench/gpu/gather.py OUT FILE` puts them
# together. Takes the python3 on PATH (or $PYTHON) with torch, triton, pytest and pytest-xdist. $PREPARED is a folder
# made by `bench/gpu/prepare.py` on a machine without a GPU; without it the kernels are built here (pybind11, setuptools,
# nvcc), and networks have random weights. Installs nothing but the wheels in $PREPARED, for itself; downloads nothing.
# SMALL=1 takes tiny sizes, to try all this without a GPU.
set -u
part=${1:-} out=${2:-}
case $part in kernels | programs) ;; *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
[ -n "$out" ] || { echo "run.sh: where to put the results" >&2; exit 2; }
python=$(command -v "${PYTHON:-python3}") || { echo "run.sh: no ${PYTHON:-python3}" >&2; exit 1; }
mkdir -p "$out" && out=$(realpath "$out") && root=$(realpath "$(dirname "$0")/../..") || exit 1
prepared=${PREPARED:+$(realpath "$PREPARED")}
work=$(mktemp -d)
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GIT_PYTHON_REFRESH=quiet

failed=0
step() { # NAME SECONDS COMMAND...: run it, keep its log, outcome and duration
  name=$1 limit=$2
  shift 2
  echo "== $name"
  start=$(date +%s.%N)
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  [ $code -eq 0 ] || failed=1
  tail -n 40 "$out/$name.log"
  echo "$name $code $start $(date +%s.%N)" >>"$out/$part.steps"
}

# Everything runs in a copy with the compiled modules in it.
mkdir "$work/source" && cd "$root" && cp -R bench csrc scripts sdsgsm_fast tests *.md *.py *.toml LICENSE "$work/source" &&
  cd "$work/source" && rm -f sdsgsm_fast/_native_*.so || exit 1
export PYTHONPATH="$work/source${PYTHONPATH:+:$PYTHONPATH}"
build() { # setuptools before 77 does not know how pyproject.toml states the licence
  sed -i '/^license/d' pyproject.toml
  SDSGSM_CUDA_ARCHITECTURES=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
  export SDSGSM_CUDA_ARCHITECTURES
  "$python" setup.py -q build_ext --inplace
}
modules() { "$python" -c "import sdsgsm_fast._native_cpu, sdsgsm_fast._native_cuda"; }
if [ -n "$prepared" ] && [ "$(cat "$prepared/modules/sources.sha256")" = "$("$python" bench/gpu/prepare.py --digest)" ]; then
  cp "$prepared"/modules/_* sdsgsm_fast/
elif [ -n "$prepared" ]; then
  echo "the prepared modules are of other sources; building" >&2
fi
if ! modules 2>/dev/null; then
  echo "== build"
  rm -f sdsgsm_fast/_native_*.so
  start=$(date +%s.%N)
  (build) >"$out/build.log" 2>&1
  echo "build $? $start $(date +%s.%N)" >>"$out/$part.steps"
  tail -n 5 "$out/build.log"
fi
if [ -n "$prepared" ] && ls "$prepared"/wheels/*.whl >/dev/null 2>&1; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$prepared"/wheels/*.whl
  export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
step "$part-import" 15 "$python" -c "import sdsgsm_fast._native_cuda, sdsgsm_fast as s; print(s.__file__)"

if [ "$part" = kernels ]; then
  step kernels 85 "$python" bench/gpu/kernels.py --seconds 70 ${SMALL:+--small} --json "$out/kernels.json"
  step tests 90 "$python" -m pytest -v --tb=short --durations=5 -p no:cacheprovider \
    -n "${WORKERS:-14}" --dist worksteal tests/kernels/test_gpu.py
  if command -v compute-sanitizer >/dev/null; then
    step memcheck 40 compute-sanitizer --tool memcheck --error-exitcode 9 "$python" bench/gpu/sanitize.py native
  else
    echo "memcheck 127 0 0" >>"$out/$part.steps"
  fi
  if command -v ncu >/dev/null; then # what holds four kernels up: registers, throughput, stalls
    step profile 40 ncu --clock-control none --csv --launch-count 12 --kernel-name-base demangled \
      --kernel-name 'regex:sdsgsm|update_' --section LaunchStats --section Occupancy --section SpeedOfLight \
      --section MemoryWorkloadAnalysis --section WarpStateStats "$python" bench/gpu/sanitize.py --profile
  else
    echo "profile 127 0 0" >>"$out/$part.steps"
  fi
else
  step programs 315 "$python" bench/gpu/programs.py --seconds 290 ${SMALL:+--small} --json "$out/programs.json" \
    ${prepared:+--prepared "$prepared"}
fi
rm -rf "$work"
exit $failed
