# Prints the end of the log: NUMBER-OF-LINES [-F]
tail -n "$@" ~/bert_jax/log
