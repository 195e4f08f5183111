# Runs checks one after another and adds up their counts: for .ci/run and .ci/nightly, which source it.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

passed=0 failed=0 skipped=0
summary=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# stage NAME COMMAND...: the command ends with the count of tools/test.
stage() {
  local name=$1 start=$SECONDS status=0 counts
  shift
  printf '\n=== %s: %s\n' "$name" "$*"
  "$@" 2>&1 | tee "$log" || status=$?
  counts=$(tail -n 1 "$log")
  if [[ $counts =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    skipped=$((skipped + BASH_REMATCH[3]))
    if [ "$status" -ne 0 ] && [ "${BASH_REMATCH[2]}" -eq 0 ]; then failed=$((failed + 1)); fi
  else
    counts="ended with status $status and without a count"
    failed=$((failed + 1))
  fi
  summary+=("$(printf '%-8s %4d s  %s' "$name" $((SECONDS - start)) "$counts")")
}

# finish: prints the sum, and fails where a check has failed or none has passed.
finish() {
  printf '\n=== stages\n'
  printf '%s\n' "${summary[@]}"
  printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}
