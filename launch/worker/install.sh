# Makes ~/bert_jax/venv: DIGEST PYTHON WORDS-FOR-PIP…
set -eu
mkdir -p ~/bert_jax && cd ~/bert_jax
digest=$1 python=$2
shift 2
if [ -s pid ] && [ ! -s code ] && kill -0 "$(cat pid)" 2>/dev/null; then echo "a command is running: nothing is installed"; exit 0; fi
if [ "$(cat installed 2>/dev/null)" = "$digest" ]; then echo "already installed"; exit 0; fi
if [ -e ~/bert_jax.tar ]; then rm -rf source && mkdir source && tar -xf ~/bert_jax.tar -C source; fi
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --clear --python "$python" venv
~/.local/bin/uv pip install --quiet --python venv/bin/python "$@"
echo "$digest" > installed
