#!/usr/bin/env bash
# An environment of its own for rehearsing the day a GPU is there: .venv-gpu with the versions of a bare GPU machine and
# nothing besides, not even this project's other requirements (5 GB, some minutes). Exits with 3 where it cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
bin=.venv-gpu/bin
stamp=.venv-gpu/.orlaif-installed
wanted=$(cksum <tools/setup_gpu_rehearsal.sh)
# Folders of wheels that pip knows may offer "torch+cpu", for which torchvision from an index has no operators.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS= PIP_CONFIG_FILE=/dev/null

say() { printf 'gpu-setup: %s\n' "$*"; }

[ "$(cat $stamp 2>/dev/null)" != "$wanted" ] || exit 0
if [ "$(uname -sm)" != "Linux x86_64" ]; then say "Triton is published for Linux on x86_64 only"; exit 3; fi
free=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
if [ "$free" -lt 8 ]; then say "needs 8 GB of free disk for a while, and there are $free"; exit 3; fi
say "installing torch 2.11, triton 3.6 and transformers 5.17 into .venv-gpu (5 GB, some minutes)"
[ -x $bin/python ] || "$python" -m venv .venv-gpu
# Triton 3.6's interpreter, which stands in for the GPU here, turns arrays of one element into numbers: NumPy 2.4 refuses.
# A network that would take longer than this has not got them.
timeout 1800 "$bin/python" -m pip install --quiet 'torch==2.11.*' 'triton==3.6.*' 'torchvision==0.26.*' 'transformers==5.17.*' \
  'lightning==2.6.*' peft tensorboard pytest pytest-timeout pillow 'numpy<2.4' 2>.venv-gpu/pip.log ||
  { say "these versions cannot be had from pip here (.venv-gpu/pip.log)"; exit 3; }
"$bin/python" -c 'import lightning, peft, PIL, pytest, tensorboard, torch, torchvision, transformers, triton' ||
  { say "these versions were installed and cannot be imported together"; exit 3; }
echo "$wanted" >$stamp
