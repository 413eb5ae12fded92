#!/usr/bin/env bash
# Runs tests again and again while busy loops keep every core from them: a test that depends on the clock fails here sooner or later.
#
#     tests/stress.sh [--rounds N] [--loops N] [CARGO ARGUMENT…] [-- TEST ARGUMENT…]
#
#     tests/stress.sh                                                        all tests of the workspace, 10 rounds
#     tests/stress.sh --rounds 50 -p freestone-lambda-emulator -- slow       the tests of a package with `slow` in their names
#
# Builds first, without the loops. There are as many loops as cores. Documentation tests are left out, since they are compiled each time.
# Prints what passed in each round. What a failed test binary printed is in target/stress. Fails if any test did.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
out=$root/target/stress
rounds=10 n_loops=$(nproc) cargo_arguments=() test_arguments=() loops=()

fail() {
    echo "stress.sh: $*" >&2
    exit 1
}

while [ "$#" -gt 0 ]; do
    case $1 in
    -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit ;;
    --rounds) rounds=${2:?--rounds needs a number} && shift 2 ;;
    --loops) n_loops=${2:?--loops needs a number} && shift 2 ;;
    --) shift && test_arguments=("$@") && break ;;
    *) cargo_arguments+=("$1") && shift ;;
    esac
done
[ "${#cargo_arguments[@]}" -gt 0 ] || cargo_arguments=(--workspace)

# A package's folder and a test program of it, a line each.
test_programs() {
    grep '"test":true' "$out/build.json" | sed -nE 's|.*"manifest_path":"([^"]*)/Cargo\.toml".*"executable":"([^"]*)".*|\1 \2|p'
}

stop_loops() {
    [ "${#loops[@]}" -eq 0 ] || kill "${loops[@]}" 2>/dev/null || true
    loops=()
}

# Numbers before a word in the result lines of logs, added.
count() { sed -nE "s/^test result: .* ([0-9]+) $1[;,].*/\1/p" "${@:2}" | awk '{ n += $1 } END { print n + 0 }'; }

# What the caller has set must not decide what the tests see.
for name in "${!FREESTONE_@}"; do
    unset "$name"
done
rm -rf "$out"
mkdir -p "$out/tmp"
cargo test --release --no-run --message-format=json "${cargo_arguments[@]}" >"$out/build.json"
mapfile -t programs < <(test_programs)
[ "${#programs[@]}" -gt 0 ] || fail "there are no test programs among ${cargo_arguments[*]}"

trap stop_loops EXIT
for _ in $(seq "$n_loops"); do
    (while :; do :; done) &
    loops+=("$!")
done
echo "${#programs[@]} test programs, $rounds rounds beside $n_loops busy loops"

export TMPDIR=$out/tmp
failed=0
for round in $(seq "$rounds"); do
    logs=() start=$SECONDS
    for line in "${programs[@]}"; do
        program=${line##* }
        log=$out/$round-${program##*/}.log
        logs+=("$log")
        # As Cargo runs it: in its package's folder.
        if ! (cd "${line% *}" && "$program" "${test_arguments[@]}") >"$log" 2>&1; then
            failed=$((failed + 1))
            echo "round $round: ${program##*/} failed: $log"
            sed -nE 's/^test (.*) \.\.\. FAILED$/    \1/p' "$log"
        fi
    done
    passed=$(count passed "${logs[@]}")
    echo "round $round: $passed passed, $(count failed "${logs[@]}") failed ($((SECONDS - start)) s)"
    [ "$passed" -gt 0 ] || fail "no test ran"
done
rm -rf "$out/tmp"
[ "$failed" -eq 0 ] || fail "$failed runs of test programs failed"
echo "$rounds rounds: everything passed"
