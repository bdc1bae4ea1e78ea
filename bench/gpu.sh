#!/bin/sh
# Build, test, sanitize and measure on this machine's GPU, in a few minutes; one JSON of it all.
#
#   bench/gpu.sh [FILE]     default: bench/results/gpu.json
#
# Takes the python3 on PATH (or $PYTHON) with torch, triton, pytest, pybind11, setuptools,
# nvcc and compute-sanitizer; builds in a copy of the tree; installs nothing, downloads nothing. Each step's outcome and seconds go
# into the file, failures included; the exit status is 1 if a step failed or could not be made.
set -u
python=$(command -v "${PYTHON:-python3}") || { echo "gpu.sh: no ${PYTHON:-python3}" >&2; exit 1; }
out=$(realpath -m "${1:-$(dirname "$0")/results/gpu.json}")
cd "$(dirname "$0")/.." || exit 1
logs=$(mktemp -d)
export PYTHONPATH="$logs/source${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
SDSGSM_CUDA_ARCHITECTURES=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || {
  echo "gpu.sh: $python has no torch, or torch no CUDA device" >&2
  exit 1
}
export SDSGSM_CUDA_ARCHITECTURES

failed=0
step() { # NAME COMMAND...: run it, keep its log, outcome and duration
  name=$1
  shift
  echo "== $name"
  start=$(date +%s.%N)
  ("$@") >"$logs/$name.log" 2>&1
  code=$?
  [ $code -eq 0 ] || failed=1
  tail -n 12 "$logs/$name.log"
  echo "$name $code $start $(date +%s.%N)" >>"$logs/steps"
}

build() { # setuptools before 77 does not know how pyproject.toml states the licence
  mkdir "$logs/source" && cp -R setup.py README.md csrc sdsgsm_fast "$logs/source" &&
    sed '/^license/d' pyproject.toml >"$logs/source/pyproject.toml" &&
    cd "$logs/source" && exec timeout -k 5 180 "$python" setup.py -q build_ext --inplace
}
step build build
step import timeout -k 5 60 "$python" -c "import sdsgsm_fast._native_cpu, sdsgsm_fast._native_cuda"
step tests timeout -k 5 240 "$python" -m pytest -q -p no:cacheprovider tests/kernels/test_gpu.py
if sanitizer=$(command -v compute-sanitizer); then
  for tool in memcheck racecheck; do
    step $tool timeout -k 5 90 "$sanitizer" --tool $tool --error-exitcode 9 "$python" bench/sanitize_gpu.py
  done
else
  echo "== compute-sanitizer was not found"
  echo "compute-sanitizer 127 0 0" >>"$logs/steps"
  failed=1
fi
step update timeout -k 5 150 "$python" bench/update.py --json "$logs/update.json"
step occlude timeout -k 5 100 "$python" bench/occlude.py --json "$logs/occlude.json"
step occlusion timeout -k 5 150 "$python" bench/occlusion.py --json "$logs/occlusion.json"
step attack timeout -k 5 200 "$python" bench/attack.py --quick --json "$logs/attack.json"
"$python" bench/gather.py "$logs" "$out" || failed=1
exit $failed
