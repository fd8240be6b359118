#!/usr/bin/env bash
# What docs/performance.md lacks for want of a GPU, in one run of about 10 minutes: the tests marked gpu, decoding with and
# without CUDA graphs, stepping, an iteration beside TRL's, growth. JSON and logs go to $OUT/results.tgz, step by step.
#
#   bash benchmarks/on_gpu.sh prepare    where there is a network: wheels and TRL's benchmark into .gpu/
#   OUT=out bash benchmarks/on_gpu.sh    where the GPU is, from the checkout with .gpu/ in it; PyTorch must be there
#   DEVICE=cpu SHAPE="--layers 2 --hidden 64" REPS=1 OUT=out bash benchmarks/on_gpu.sh     a rehearsal
#
# PY: the Python whose PyTorch is used (python3), into which the wheels and the checkout go; with PY=.venv/bin/python
# TRL_PY=… (a Python that has TRL) nothing is installed.
set -u
cd "$(dirname "$0")/.."
PY=${PY:-python3} DEVICE=${DEVICE:-cuda} SHAPE=${SHAPE:---layers 12 --hidden 768} REPS=${REPS:-3}

if [ "${1:-}" = prepare ]; then
  set -e
  version=${PYTHON_VERSION:-3.12}
  fetch() { python3 -m pip download --quiet --no-deps --only-binary :all: --python-version "$version" --dest "$@"; }
  mkdir -p .gpu
  fetch .gpu/wheels -c constraints.txt gymnasium farama-notifications datasets multiprocess dill vaderSentiment tyro \
    typeguard docstring-parser transformers trl setuptools wheel
  python3 -m pip install --quiet --no-deps --target .gpu/trl112 trl==1.12.0
  cp -r ../shared/bench .gpu/
  sed -i 's/use_cpu=True/use_cpu=False/; s/bf16=False/bf16=True/; s/CUDA_VISIBLE_DEVICES="", //' .gpu/bench/trl_baseline.py
  grep -c 'use_cpu=False' .gpu/bench/trl_baseline.py
  du -sh .gpu
  exit
fi

OUT=$(mkdir -p "${OUT:-out}" && cd "${OUT:-out}" && pwd)
found=$(mktemp -d)
mkdir "$found/iteration"
if [ -z "${TRL_PY:-}" ]; then
  TRL_PY=$PY # a machine that is thrown away afterwards: straight into the Python that has PyTorch
  "$PY" -m pip install --quiet --no-index --no-deps .gpu/wheels/*.whl
  "$PY" -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .
  mkdir -p ../shared && cp -r .gpu/bench ../shared/
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
run() { # seconds name command…: its end is printed
  echo "== $2"
  timeout "$1" "${@:3}" >"$found/$2.log" 2>&1 || echo "$2 ended with $?"
  tail -n "${LINES_SHOWN:-12}" "$found/$2.log" | cut -c 1-600
  tar -C "$found" -czf "$OUT/results.tgz" .
}
"$PY" -c 'import torch, transformers; print(torch.__version__, transformers.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())'
[ "$DEVICE" = cpu ] || run 120 tests "$PY" -m pytest -q -m gpu tests/test_devices.py
bench=.gpu/bench
[ "$DEVICE" = cpu ] && bench=../shared/bench # as it is: TRL on a CPU, in float32
on="--device $DEVICE --dtype bfloat16 $SHAPE"
run 150 decoding "$PY" benchmarks/decoding.py $on --rounds "$REPS" --json "$found/decoding.json"
run 150 stepping "$PY" benchmarks/stepping.py $on --rounds "$REPS" --no-uncached --json "$found/stepping.json"
LINES_SHOWN=1
for rep in $(seq 0 $((REPS - 1))); do
  for kind in "ppo" "graphs --cuda-graphs" "frozen --set frozen_layers=6" "grpo --algo grpo"; do
    [[ $DEVICE = cpu && $kind = graphs* ]] && continue
    [ "$DEVICE" = cpu ] && kind=${kind/=6/=1}
    run 60 "ours-${kind%% *}.$rep" "$PY" benchmarks/iteration.py $on --threads 8 ${kind#"${kind%% *}"} --json "$found/iteration/ours-${kind%% *}.$rep.json"
  done
  assets="${TMPDIR:-/tmp}/lm_bench_assets_$(echo "$SHAPE" | sed 's/[^0-9]*\([0-9]*\)[^0-9]*\([0-9]*\).*/\1x\2/')"
  run 60 "ppo.$rep" "$TRL_PY" "$bench/trl_baseline.py" --algo ppo --trl-path .gpu/trl112 --assets "$assets" --threads 8 --json "$found/iteration/ppo.$rep.json"
  run 60 "grpo.$rep" "$TRL_PY" "$bench/trl_baseline.py" --algo grpo --assets "$assets" --threads 8 --json "$found/iteration/grpo.$rep.json"
done
LINES_SHOWN=20
run 30 ratios "$PY" benchmarks/iteration.py --ratios "$found/iteration"
[ "$DEVICE" = cpu ] || run 150 growth "$PY" benchmarks/growth.py --device cuda --results "$found/growth-cuda.jsonl" --figure "$found/growth-cuda.svg"
