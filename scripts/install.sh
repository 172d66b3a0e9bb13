# Sourced by demo.sh and test.sh: a virtual environment in .venv with the versions of constraints.txt, activated.
# Arguments: what to install.
[ -d .venv ] || python3 -m venv .venv
. .venv/bin/activate
python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt "$@"
