#!/bin/sh
# Create .venv with the pinned packages, unless it is there and up to date.
#
#   tools/setup.sh [PYTHON]
#
# PYTHON names the interpreter to use. Without it the one that .venv was made with is kept, or else
# the newest that fits is taken. A failure says why in one line.
set -eu
cd "$(dirname "$0")/.."

fits='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
# The same inside a virtual environment and for the interpreter that it was made with.
base='import sys; print(sys._base_executable)'
identity='import sys; print(sys.base_prefix, sys.version)'

fail() {
  echo "bigjax: $*" >&2
  exit 1
}

first_that_fits() {
  for python; do
    # A name may exist and yet fail to run (pyenv's shims), so run it.
    if "$python" -c "$fits" 2>/dev/null; then
      "$python" -c "$base"
      return
    fi
  done
  return 1
}

find_python() {
  if [ -n "$1" ]; then
    first_that_fits "$1" || fail "PYTHON=$1 is not a Python 3.11 to 3.13 with venv and ensurepip."
  else
    first_that_fits .venv/bin/python python3.13 python3.12 python3.11 python3 python ||
      fail "no Python 3.11 to 3.13 with venv and ensurepip here; install one (on Debian with" \
        "python3-venv) or name it: make PYTHON=/path/to/python3"
  fi
}

# What .venv must be made anew for: another place, another Python, other packages.
fingerprint() {
  { pwd && "$1" -c "$identity" && cat pyproject.toml constraints.txt; } | cksum
}

install() {
  echo "bigjax: installing into .venv with $("$1" -V), once; it takes a minute or two."
  "$1" -m venv --clear .venv || fail "$1 could not make a virtual environment in .venv."
  if ! .venv/bin/python -m pip install --constraint constraints.txt --editable '.[dev]' \
    >.venv/install.log 2>&1; then
    reason=$(grep -m 1 -oE '[A-Za-z]*(ERROR|Error): .*' .venv/install.log || tail -n 1 .venv/install.log)
    fail "pip could not install the packages (is a package registry within reach?): $reason" \
      "(all it said: .venv/install.log)"
  fi
}

python=$(find_python "${1:-}")
wanted=$(fingerprint "$python")
if [ "$(cat .venv/fingerprint 2>/dev/null)" != "$wanted" ]; then
  install "$python"
  echo "$wanted" >.venv/fingerprint  # last, so that a failed install is tried again
fi
