# Prints the state of the command as `worker HOST: STATE`.
cd ~/bert_jax 2>/dev/null || { echo "worker $(hostname): not installed"; exit 0; }
if [ -s code ] && [ -e stopped ]; then state="stopped with $(cat code)"
elif [ -s code ]; then state="ended with $(cat code)"
elif [ ! -s pid ]; then state="not started"
elif kill -0 "$(cat pid)" 2>/dev/null; then state="running"
else state="lost"; fi
echo "worker $(hostname): $state"
