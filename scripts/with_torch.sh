#!/usr/bin/env bash
# The tests with another torch than the pinned one, in an environment of their own.
#
#     scripts/with_torch.sh 2.10.0 0.25.0 [pytest arguments]   # torch, and the torchvision that fits it
#
# pip takes the build for CUDA, of several gigabytes. Older torch warns of its own uses of what is
# deprecated, and older Triton of NumPy's, so those warnings are no errors here; NumPy 2.4 refuses them.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$1 torchvision=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$work"
cd "$work"
sed -Ei '/^(torch|torchvision|triton|numpy|setuptools|nvidia.*|cuda.*)==/d' constraints.txt
printf 'torch==%s\ntorchvision==%s\nnumpy<2.4\n' "$torch" "$torchvision" >>constraints.txt
sed -i '/^    "triton>=/d' pyproject.toml # torch brings the one it fits
python3 -m venv .venv
.venv/bin/pip install -q -c constraints.txt -e ".[test]"
.venv/bin/python -c 'import torch; print("torch", torch.__version__)'
.venv/bin/pytest -W ignore::DeprecationWarning -W 'ignore:TypedStorage is deprecated:UserWarning' "$@"
