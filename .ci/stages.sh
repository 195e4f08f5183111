# Runs checks and adds up their counts: for .ci/run and .ci/nightly, which source it.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

passed=0 failed=0 skipped=0
summary=()
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
beside=()  # names of the checks that `start` has put in a row
last=      # the process of the last one

# run NAME COMMAND...: leaves status and seconds for `count`.
run() {
  local name=$1 start=$SECONDS status=0
  shift
  printf '\n=== %s: %s\n' "$name" "$*"
  "$@" 2>&1 | tee "$logs/$name" || status=$?
  echo "$status $((SECONDS - start))" >"$logs/$name.status"
}

# count NAME: adds up a check that has run. Its command ends with the count of tools/test.
count() {
  local name=$1 status=1 seconds=0 counts
  read -r status seconds <"$logs/$name.status"
  counts=$(tail -n 1 "$logs/$name")
  if [[ $counts =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    skipped=$((skipped + BASH_REMATCH[3]))
    if [ "$status" -ne 0 ] && [ "${BASH_REMATCH[2]}" -eq 0 ]; then failed=$((failed + 1)); fi
  else
    counts="ended with status $status and without a count"
    failed=$((failed + 1))
  fi
  summary+=("$(printf '%-8s %4d s  %s' "$name" "$seconds" "$counts")")
}

# stage NAME COMMAND...: runs a check.
stage() {
  run "$@"
  count "$1"
}

# start NAME COMMAND...: runs a check beside what follows, after those that were started before. It fills the time in
# which the other waits for its last compiler, and has one compiler per processor, for the sake of memory. `finish`
# prints what it said.
start() {
  local before=$last
  {
    if [ -n "$before" ]; then tail --pid="$before" -f /dev/null; fi
    export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
    run "$@"
  } >"$logs/$1.beside" 2>&1 &
  last=$!
  beside+=("$1")
}

# finish: waits for all, prints the sum, and fails where a check has failed or none has passed.
finish() {
  local name
  if [ -n "$last" ]; then wait; fi
  for name in "${beside[@]}"; do
    cat "$logs/$name.beside"
    count "$name"
  done
  printf '\n=== stages\n'
  printf '%s\n' "${summary[@]}"
  printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}
