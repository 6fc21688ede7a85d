#!/usr/bin/env bash
# What `make floor-test` needs: .venv-gpu, the oldest supported versions, and beside it in a folder that the rehearsal of
# a bare GPU machine does not see: torchcodec for clips, jsonargparse for the command line, num2words for SmolVLM,
# xdist for two tests at a time. Exits with 3 where it cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup_gpu_rehearsal.sh
bin=.venv-gpu/bin
more=.venv-gpu/floor
stamp=$more/.orlaif-installed
wanted=$(cat tools/setup_floor.sh tools/setup_gpu_rehearsal.sh | cksum)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS= PIP_CONFIG_FILE=/dev/null

say() { printf 'floor-setup: %s\n' "$*"; }

[ "$(cat $stamp 2>/dev/null)" != "$wanted" ] || exit 0
say "installing torchcodec, jsonargparse, num2words and pytest-xdist into $more (40 MB)"
rm -rf $more
timeout 600 "$bin/python" -m pip install --quiet --no-deps --target $more 'torchcodec==0.17.*' 'jsonargparse>=4.40' pyyaml \
  docstring-parser typeshed-client num2words docopt pytest-xdist execnet 2>.venv-gpu/floor.log ||
  { say "these cannot be had from pip here (.venv-gpu/floor.log)"; exit 3; }
PYTHONPATH=$more "$bin/python" -c 'import sys, torchcodec; sys.exit(torchcodec.ffmpeg_major_version is None)' ||
  say "torchcodec finds no shared libraries of FFmpeg: tests with clips will be skipped (make setup gets them)"
echo "$wanted" >$stamp
