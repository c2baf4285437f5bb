#!/usr/bin/env bash
# The tests of the C kernel with its code under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#     scripts/sanitize.sh [python]      # an environment with the package's test dependencies
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r src tests setup.py pyproject.toml README.md LICENSE "$work"
cd "$work"
find src -name '*.so' -delete

flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
CFLAGS=$flags LDFLAGS=$flags "$python" setup.py -q build_ext --inplace

compiler=${CC:-gcc}
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 # Python itself leaks
export PYTHONPATH=src:tests
"$python" -c 'from renorm.kernels import cpu; assert cpu.MISSING is None, cpu.MISSING'
"$python" -m pytest -n0 -k "cpu or in_place" tests/kernels tests/contract/test_contract.py tests/unit/test_epilogue.py
