#!/usr/bin/env bash
# All tests with the lowest versions of all packages that pyproject.toml admits, or with the newest ones:
#
#     bash scripts/versions.sh lowest python3.10
#     bash scripts/versions.sh newest python3.13 -k processor
#
# The environment goes to .venv-lowest or .venv-newest and takes some 7 GB. Further words go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

which=${1:?lowest or newest} python=${2:?the command of a Python}
shift 2
case $which in
    lowest) resolution=lowest-direct ;;
    newest) resolution=highest ;;
    *) echo "$which: lowest or newest is expected" >&2; exit 2 ;;
esac
folder=.venv-$which
"$python" -m venv --clear "$folder"
. "$folder/bin/activate"
export PIP_DISABLE_PIP_VERSION_CHECK=1
python -m pip install --quiet uv
uv pip compile --quiet --resolution "$resolution" --extra dev --no-annotate --output-file "$folder/versions.txt" pyproject.toml
python -m pip install --quiet --no-deps --requirement "$folder/versions.txt" --editable .
python -m pytest --numprocesses 2 --dist loadgroup "$@"
