#!/usr/bin/env bash
# A sweep on a real SLURM that meets with everything: told to stop, cancelled, drained, a node lost, a time limit.
# Every claim is checked; the first that is untrue ends the drill with exit code 1.
#
#   sudo scripts/slurm_local.sh start
#   scripts/slurm_drill.sh [FOLDER]     for the runs; a new one by default. UQBENCH: the program, `uqbench` by default
set -euo pipefail

read -ra UQBENCH <<<"${UQBENCH:-uqbench}"
HERE=$(mktemp -d)
OUTPUTS=${1:-$HERE/outputs}
[ ! -e "$OUTPUTS" ] || { echo "slurm_drill.sh: $OUTPUTS exists already" >&2; exit 2; }
NODE=$(sinfo -h -N -o %N | head -1)
ON_SLURM=(hydra/launcher=slurm hydra.launcher.cpus=1 hydra.launcher.mem_gb=1 hydra.launcher.poll_s=1)
SMALL=(dataset.n_train=60 dataset.n_validation=10 dataset.n_test=20 backbone.features=8)
SMALL+=(evaluation.bootstrap=5 evaluation.ideal_draws=1)
SHORT=("${SMALL[@]}" training.epochs="${EPOCHS:-40}")
SWEEP=(train -m uq=mve,deterministic seed=0,1,2,3 "${SHORT[@]}" outputs="$OUTPUTS" hydra.launcher.time_min=20)

say() { echo "[$(date +%T)] $*"; }

untrue() {
    say "UNTRUE: $*"
    squeue || true
    exit 1
}

check() { # WHAT COMMAND...
    "${@:2}" >/dev/null 2>&1 || untrue "$1"
    say "true: $1"
}

wait_until() { # SECONDS WHAT COMMAND...
    local deadline=$((SECONDS + $1))
    until "${@:3}" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || untrue "within $1 s: $2"
        sleep 0.5
    done
    say "$2"
}

state() { squeue -h --array -t all -o "%i %T" | awk -v id="${ARRAY}_$1" '$1 == id { print $2 }'; }
is() { [ "$(state "$1")" = "$2" ]; }
log() { echo "$OUTPUTS/slurm/${ARRAY}_$1_0_log.err"; }
trains() { is "$1" RUNNING && grep -q "^epoch" "$(log "$1")"; }
run_of() { # METHOD SEED
    echo "$OUTPUTS"/train/quickstart-ethanol/painn_small/"$1/seed$2"-*
}
launches() { # METHOD SEED
    python3 -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["launches"]))' "$(run_of "$1" "$2")/run.json"
}
status() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"])' "$(run_of "$1" "$2")/run.json"
}
done_runs() { grep -l '"status": "done"' "$OUTPUTS"/train/*/*/*/*/run.json 2>/dev/null | wc -l; }
at_least() { [ "$("${@:2}")" -ge "$1" ]; }
exactly() { [ "$("${@:2}")" = "$1" ]; }
submitted() { ARRAY=$(sed -n 's/^uqbench: [0-9]* jobs from \([0-9]*\).*/\1/p' "$HERE/$1.log") && [ -n "$ARRAY" ]; }
is_up() { sinfo -h -N -o %T | grep -qE "^(idle|mixed|allocated)$"; }
resume() { scontrol update NodeName="$NODE" State=RESUME || is_up; }
none_runs() { [ -z "$(squeue -h -t RUNNING,COMPLETING)" ]; }

# Jobs of the sweep: 0-3 are mve with seeds 0-3, 4-7 deterministic with seeds 0-3. Two run at once on two cores.
say "\$ uqbench ${SWEEP[*]} ${ON_SLURM[*]}"
"${UQBENCH[@]}" "${SWEEP[@]}" "${ON_SLURM[@]}" >"$HERE/first.log" 2>&1 &
SWEEPING=$!
trap 'kill "$SWEEPING" 2>/dev/null && wait "$SWEEPING"; resume 2>/dev/null || true' EXIT
wait_until 600 "the array is submitted" submitted first

say "--- one job is told to stop ahead of its time, another is cancelled"
wait_until 600 "jobs 0 and 1 train" eval "trains 0 && trains 1"
say "\$ scancel --signal=USR2 ${ARRAY}_0; scancel ${ARRAY}_1"
# While other jobs of the array wait, scancel delivers the signal, but believes that it has not and tries again.
scancel --signal=USR2 "${ARRAY}_0" 2>/dev/null &
scancel "${ARRAY}_1"
wait_until 120 "job 0 waits to go on" is 0 PENDING
wait_until 120 "job 1 is cancelled" is 1 CANCELLED
check "both have written their checkpoints" \
    eval "[ \"$(status mve 0) $(status mve 1)\" = 'interrupted interrupted' ] && ls $(run_of mve 0)/last.pt $(run_of mve 1)/last.pt"

say "--- the node is drained: what runs goes on, nothing starts"
wait_until 600 "two other jobs train" eval "trains 2 && trains 3"
say "\$ scontrol update NodeName=$NODE State=DRAIN Reason=drill"
scontrol update NodeName="$NODE" State=DRAIN Reason=drill
wait_until 600 "what ran has ended" none_runs
check "it has ended as done" exactly "done done" eval 'echo $(status mve 2) $(status mve 3)'
check "no other run is done" exactly 2 done_runs
check "the others wait" eval "is 0 PENDING && is 4 PENDING && is 7 PENDING"
wait_until 120 "the node is back" resume

say "--- the node is lost, with one job that may be requeued and one that may not"
wait_until 600 "two more jobs train" eval '[ $(for i in 0 4 5 6 7; do trains $i && echo $i; done | wc -l) = 2 ]'
mapfile -t BOTH < <(for i in 0 4 5 6 7; do trains "$i" && echo "$i"; done)
LOST=${BOTH[1]} KEPT=${BOTH[0]}
say "\$ scontrol update JobId=${ARRAY}_$LOST Requeue=0; scontrol update NodeName=$NODE State=DOWN Reason=drill"
scontrol update JobId="${ARRAY}_$LOST" Requeue=0
scontrol update NodeName="$NODE" State=DOWN Reason=drill
wait_until 120 "job $LOST is lost" is "$LOST" NODE_FAIL
wait_until 120 "job $KEPT waits to go on" is "$KEPT" PENDING
wait_until 120 "the node is back" resume

wait_until 1800 "the sweep has ended" eval "! kill -0 $SWEEPING"
code=0
wait "$SWEEPING" || code=$?
sed 's/^/    | /' "$HERE/first.log"
check "its exit code is 1" [ "$code" = 1 ]
OVERRIDES=(uq={mve,deterministic}" "seed={0,1,2,3})
check "it names two jobs of eight" grep -q "2 of 8 jobs failed" "$HERE/first.log"
check "it names the cancelled job and its log" \
    grep -qE "${OVERRIDES[1]} .*: job ${ARRAY}_1 ended as CANCELLED \(log: .*${ARRAY}_1_0_log.err\)" "$HERE/first.log"
check "it names the lost job and its log" \
    grep -qE "${OVERRIDES[LOST]} .*: job ${ARRAY}_$LOST ended as NODE_FAIL \(log: .*${ARRAY}_${LOST}_0_log.err\)" "$HERE/first.log"
check "six runs are done" exactly 6 done_runs
check "the job that was told to stop went on in its run: two launches or more" at_least 2 launches mve 0
cp -r "$OUTPUTS/train" "$HERE/before"

say "--- the same command again"
"${UQBENCH[@]}" "${SWEEP[@]}" "${ON_SLURM[@]}" >"$HERE/second.log" 2>&1 &
SWEEPING=$!
wait_until 1800 "the sweep has ended" eval "! kill -0 $SWEEPING"
code=0
wait "$SWEEPING" || code=$?
sed 's/^/    | /' "$HERE/second.log"
check "its exit code is 0" [ "$code" = 0 ]
check "all eight are done" exactly 8 done_runs
unchanged() {
    local run name
    for run in $(grep -l '"status": "done"' "$HERE"/before/*/*/*/*/run.json); do
        name=${run#"$HERE/before/"}
        cmp "$run" "$OUTPUTS/train/$name" || return 1
    done
}
check "none is repeated: the records of the six are the same to the byte" unchanged
check "no lock is held and no leftover of a sweep remains" eval "! ls -d '$OUTPUTS'/.sweep-*"

say "--- interrupted or not, the bits are the same"
OMP_NUM_THREADS=1 "${UQBENCH[@]}" train uq=mve seed=1 "${SHORT[@]}" outputs="$HERE/whole" >"$HERE/whole.log" 2>&1
for name in history.csv predictions_test.parquet; do
    check "the cancelled run and one that never was agree in $name" \
        cmp "$(run_of mve 1)/$name" "$(echo "$HERE"/whole/train/*/*/mve/seed1-*)/$name"
done

say "--- the table"
"${UQBENCH[@]}" report runs="$OUTPUTS/train" against=mve output="$HERE/report" >"$HERE/report.log" 2>&1 || untrue "report works"
python3 - "$HERE/report" <<'END' || untrue "the table has both methods with four runs each"
import csv, pathlib, sys
rows = list(csv.DictReader((pathlib.Path(sys.argv[1]) / "summary.csv").open()))
mae = {row["uq"]: row for row in rows if row["target"] == "forces" and row["metric"] == "mae"}
for uq, row in sorted(mae.items()):
    print("    |", {key: row[key] for key in ("uq", "target", "metric", "mean", "ci_low", "ci_high", "unit", "runs")})
assert {uq: row["runs"] for uq, row in mae.items()} == {"mve": "4", "deterministic": "4"}, mae
END
say "true: the table has both methods with four runs each"

say "--- a time limit of two minutes for a run that needs more"
LONG=(train -m uq=mve seed=9 "${SMALL[@]}" training.epochs="${LONG_EPOCHS:-1200}")
LONG+=(outputs="$OUTPUTS" hydra.launcher.time_min=2 hydra.launcher.signal_delay_s=20 hydra.launcher.max_requeues=100)
say "\$ uqbench ${LONG[*]} ${ON_SLURM[*]}"
code=0
"${UQBENCH[@]}" "${LONG[@]}" "${ON_SLURM[@]}" >"$HERE/long.log" 2>&1 || code=$?
sed 's/^/    | /' "$HERE/long.log"
check "it is done" eval "[ $code = 0 ] && [ $(status mve 9) = done ]"
say "launches: $(launches mve 9)"
check "it took several launches" at_least 2 launches mve 9
say "everything is true"
rm -rf "$HERE/before" "$HERE/whole"
