# Starts a command, unless it runs: WORDS-OF-THE-COMMAND…
# It runs in a session of its own. `session` and `pid` are its processes, `code` is its exit code.
cd ~/bert_jax || exit 1
if [ -s pid ] && [ ! -s code ] && kill -0 "$(cat pid)" 2>/dev/null; then echo "already running"; exit 0; fi
rm -f pid code stopped
cat > runner <<'END'
exec >> log 2>&1
echo $$ > session
"$@" &
echo $! > pid
wait $!
echo $? > code.tmp
mv code.tmp code
END
PYTHONUNBUFFERED=1 nohup setsid sh runner "$@" < /dev/null > /dev/null 2>&1 &
tries=0
until [ -s pid ] || [ $tries -ge 100 ]; do tries=$((tries + 1)); sleep 0.1; done
[ -s pid ]
