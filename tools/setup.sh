#!/usr/bin/env bash
# Everything that `make demo` and `make test` need: .venv with the package and its development extras, and FFmpeg's shared
# libraries. Says what it installs; does nothing, silently, when all is there. PYTHON and CONSTRAINTS may be set.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
stamp=.venv/.orlaif-installed
wanted=$(cat pyproject.toml "${CONSTRAINTS:-/dev/null}" | cksum)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# Installs Debian packages as root; otherwise says the one command that an administrator has to run.
debian() {
  local why=$1; shift
  local command="apt-get update && apt-get install -y --no-install-recommends $*"
  command -v apt-get >/dev/null || die "$why is missing, and this is no Debian; install it (Debian's packages: $*)"
  [ "$(id -u)" = 0 ] || die "$why is missing; an administrator has to run: sudo sh -c '$command'"
  say "installing $why from Debian ($*)"
  sh -c "export DEBIAN_FRONTEND=noninteractive; $command" >/tmp/orlaif-apt.log 2>&1 || { tail -20 /tmp/orlaif-apt.log >&2; die "apt-get failed"; }
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$python is older than 3.11; set PYTHON to a newer one"
if [ ! -x .venv/bin/python ]; then
  "$python" -c 'import ensurepip' 2>/dev/null || debian "Python's venv module" python3-venv
  say "creating .venv with $("$python" --version)"
  "$python" -m venv .venv
fi
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
  say "installing orlaif and what it needs into .venv (PyTorch's CUDA build comes along: about 6 GB, some minutes)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check ${CONSTRAINTS:+-c "$CONSTRAINTS"} -e '.[dev]'
  echo "$wanted" >$stamp
fi
has_ffmpeg() { .venv/bin/python -c 'import sys, torchcodec; sys.exit(torchcodec.ffmpeg_major_version is None)'; }
if [ ! -e .venv/.ffmpeg-found ] || ! ldconfig -p 2>/dev/null | grep -q libavcodec; then
  has_ffmpeg || debian "FFmpeg's shared libraries" ffmpeg
  has_ffmpeg || die "torchcodec still finds no FFmpeg; it needs the shared libraries of version 4 to 9"
  touch .venv/.ffmpeg-found
fi
