# Lets the command save a checkpoint and end, and marks that a person wanted it.
cd ~/bert_jax || exit 1
if [ -s pid ] && [ ! -s code ]; then touch stopped; kill -TERM "$(cat pid)"; fi
