#!/bin/sh
# with_redis.sh REDIS-SERVER PROGRAM: runs PROGRAM --redis HOST:PORT over a server of its own, on a free port of the
# loopback interface, without a file, and stops the server.
folder=$(mktemp -d) || exit 1
server=
end() {
  if [ -n "$server" ]; then kill "$server"; wait "$server"; fi 2>/dev/null
  rm -rf "$folder"
}
trap end EXIT
for try in 1 2 3 4 5 6 7 8 9 10; do
  port=$((20000 + ($$ + try * 997) % 20000))
  "$1" --port "$port" --bind 127.0.0.1 --save "" --appendonly no --dir "$folder" > "$folder/log" 2>&1 &
  server=$!
  for wait in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    if grep -q "Ready to accept connections" "$folder/log"; then
      "$2" --redis "127.0.0.1:$port"
      exit
    fi
    kill -0 "$server" 2>/dev/null || break
    sleep 0.5
  done
  kill "$server" 2>/dev/null
  wait "$server" 2>/dev/null
  server=
done
cat "$folder/log"
exit 1
