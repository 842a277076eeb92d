#!/usr/bin/env bash
# All that needs a graphics card, in ten minutes at most, without a network:
#
#     benchmarks/gpu.sh [--tiny]
#
# The tests marked gpu; results against those of the CPU; views and steps a second, `fit`
# against a bare loop and the largest rate of operations; FixMatch with WRN-28-2 on CIFAR-10
# (if SKLABEL_DATA holds it), 40 labels by USL and at random. Without a GPU it runs on the
# CPU, with the least sizes. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0
if "$python" -c "import pytest, hypothesis" 2>/dev/null; then
    files=$(grep -rl "^@pytest.mark.gpu" tests --include="test_*.py")
    # shellcheck disable=SC2086
    timeout 150 "$python" -m pytest -q -m gpu --durations=0 $files || failed=1
else
    echo "pytest and hypothesis are not installed: the tests marked gpu are left out"
fi
timeout 180 "$python" benchmarks/bench_device.py --seconds 160 "$@" || failed=1
weights="${SKLABEL_DATA:-}/mobilenet_v2-imagenet.safetensors"
[ -f "$weights" ] && set -- --weights "$weights" "$@"
"$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())" || set -- --tiny "$@"
timeout 260 "$python" benchmarks/bench_wrn.py --seconds 100 "$@" || failed=1
exit $failed
