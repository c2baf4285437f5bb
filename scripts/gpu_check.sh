#!/usr/bin/env bash
# Tests and figures on a machine with CUDA, torch and Triton, without the internet; under 8 minutes.
#
#     scripts/gpu_check.sh [python]      # an environment with torch >= 2.10, triton, cyclopts, rich
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}

fail() { echo "gpu_check: $*" >&2; exit 2; }
has() { "$python" -c "import $1" 2>/dev/null; }

# everything that is missing at once, before anything takes time
missing=()
for module in torch triton numpy cyclopts rich; do
    has "$module" || missing+=("$module")
done
[ ${#missing[@]} -eq 0 ] || fail "$("$python" --version) lacks ${missing[*]}; install them first"
"$python" - <<'PY' || exit 2
import sys

import torch

version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
if version < (2, 10):
    sys.exit(f"gpu_check: torch is {torch.__version__}, at least 2.10 is needed")
if not torch.cuda.is_available():
    sys.exit("gpu_check: torch sees no CUDA device")
print(f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
PY

# in place and without touching torch; from the sources where even that cannot be built
if ! timeout 120 "$python" -m pip install -q --no-deps --no-build-isolation -e .; then
    echo "gpu_check: not installed, the sources are used as they are"
fi
export PYTHONPATH=src:tests${PYTHONPATH:+:$PYTHONPATH}

status=0
if has pytest; then
    # the options of the project need plugins that may not be there
    timeout 180 "$python" -m pytest -o addopts= -o filterwarnings= -p no:xdist -p no:cacheprovider \
        -q -k cuda tests/kernels tests/contract || status=$?
    if [ "$status" -eq 5 ]; then
        echo "gpu_check: there is no test for CUDA"
        status=0
    fi
else
    echo "gpu_check: pytest is not installed, no test was run"
fi

device=$("$python" -c '
import re, torch
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-"))')
results=${RESULTS:-benchmarks/results}
mkdir -p "$results"
timeout 170 "$python" -m renorm bench --device cuda --full --json "$results/$device.jsonl" ||
    status=$?
[ "$status" -eq 0 ] || echo "gpu_check: something above failed ($status)" >&2
exit "$status"
