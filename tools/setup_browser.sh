#!/usr/bin/env bash
# Chromium from Debian, and Playwright to steer it, for the tests of the page. Exits with 3 where they cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'browser-setup: %s\n' "$*"; }
unavailable() { say "$*"; exit 3; }

if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
  command -v apt-get >/dev/null || unavailable "there is no Chromium, and this is no Debian"
  [ "$(id -u)" = 0 ] || unavailable "there is no Chromium; an administrator can: apt-get install chromium"
  say "installing Chromium from Debian (400 MB)"
  log=/tmp/orlaif-chromium.log
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium fonts-dejavu-core; } \
    >$log 2>&1 || unavailable "Chromium cannot be had from Debian here ($log)"
fi
.venv/bin/python -c 'import playwright' 2>/dev/null || .venv/bin/python -m pip install --quiet --disable-pip-version-check 'playwright>=1.45' ||
  unavailable "Playwright cannot be had from pip here"
