# Kills the command and all its processes.
cd ~/bert_jax || exit 1
if [ -s session ] && [ ! -s code ]; then kill -s KILL -- "-$(cat session)"; fi
