#!/usr/bin/env bash
# Run the tests that need no torch on Python 3.13, the version of Colab; skip them without a Python 3.13.
set -euo pipefail
cd "$(dirname "$0")/.."

minimum=400 # of passed tests; fewer mean that a skip hides them
venv=.venv-3.13

runs() {
  "$1" -c 'import sys, sysconfig, ensurepip, venv
sys.exit(sys.version_info[:2] != (3, 13) or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))' 2>/dev/null
}

python=
for candidate in python3.13 "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.13.*/bin/python3.13; do
  if runs "$candidate"; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "skipping the tests on Python 3.13: no such Python was found"
  exit 0
fi

if [ ! "$venv/.done" -nt setup.py ] || [ ! "$venv/.done" -nt constraints.txt ]; then
  "$python" -m venv --clear "$venv"
  pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt)
  "${pip[@]}" --only-binary :all: filelock gdown httpx huggingface_hub hypothesis nbclient numpy opencv-python-headless pillow \
    packaging pydantic pytest pytest-xdist PyYAML scikit-image setuptools tqdm typer uv zstandard
  rm -rf fastdb.egg-info # of the distribution's former name
  "${pip[@]}" --no-deps --no-build-isolation -e .
  touch "$venv/.done"
fi

output=$("$venv/bin/python" -m pytest -q -n 4 --dist worksteal -p no:cacheprovider --no-header "$@") || {
  echo "$output"
  exit 1
}
echo "$output" | tail -n 3
passed=$(echo "$output" | tail -n 1 | grep -o '[0-9]* passed' | cut -d ' ' -f 1)
if [ "$#" -eq 0 ] && [ "${passed:-0}" -lt "$minimum" ]; then
  echo "only ${passed:-0} tests ran on $("$venv/bin/python" --version), expected at least $minimum"
  exit 1
fi
