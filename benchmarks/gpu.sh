#!/usr/bin/env bash
# All that needs a graphics card, in ten minutes at most, without a network:
#
#     benchmarks/gpu.sh [--tiny]
#
# The tests marked gpu; results against those of the CPU; views and steps a second, `fit`
# against a bare loop. Without a card it runs on the CPU, with the least sizes. PYTHON names
# the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0
if "$python" -c "import pytest, hypothesis" 2>/dev/null; then
    files=$(grep -rl "^@pytest.mark.gpu" tests --include="test_*.py")
    # shellcheck disable=SC2086
    timeout 240 "$python" -m pytest -q -m gpu --durations=0 $files || failed=1
else
    echo "pytest and hypothesis are not installed: the tests marked gpu are left out"
fi
timeout 340 "$python" benchmarks/bench_device.py --seconds 300 "$@" || failed=1
exit $failed
