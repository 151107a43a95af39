# shellcheck shell=bash
# Shared by the launchers: options, settings of a launch file, --dry-run, forwarding of signals, and restarts.

# shellcheck disable=SC2034  # read by the scripts that source this one
launch="" name="" image="" dry_run=0 arguments=()
# Exit statuses of `mmrlhf train` after which the same command continues the run: a signal, another host was lost, the first
# host was lost, or SIGKILL, as on a machine that is taken away (`mmrlhf_jax/exits.py`).
RESTART=(143 75 134 137)
ATTEMPTS=${ATTEMPTS:-100}
ABSENT=76 RETRIES=3 # another process never came: so many attempts in a row
GRACE_SECONDS=300 # from SIGTERM to SIGKILL: time for a checkpoint

fail() { echo "error: $*" >&2; exit 2; }

# The comment at the top of a launcher is its help.
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; }

# parse "VALUED" "FLAGS" ARGUMENTS: sets a variable for every option before the experiment; the rest is put into `arguments`.
parse() {
  local valued=" $1 " flags=" $2 dry-run " option
  shift 2
  while (($#)) && [[ $1 == -* ]]; do
    option=${1#--}
    if [[ $option == help || $option == -h ]]; then
      usage
      exit 0
    elif [[ $flags == *" $option "* ]]; then
      printf -v "${option//-/_}" 1
    elif [[ $valued == *" $option "* ]]; then
      [[ $# -gt 1 && $2 != -* ]] || fail "--$option needs a value"
      printf -v "$option" %s "$2"
      shift
    else
      fail "there is no option $1 here (options of the training come after the experiment); --help lists them"
    fi
    shift
  done
  arguments=("$@")
}

need() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || fail "--$option is missing"
  done
}

# --fresh is refused, because the launcher restarts the command, which would then remove the checkpoints to continue from.
check_experiment() {
  local option
  (($#)) || fail "no experiment file is named"
  [[ $1 == *://* || -f $1 ]] || fail "there is no experiment file $1"
  for option in "${@:2}"; do
    [[ $option != --fresh ]] || fail "--fresh would remove the checkpoints at every restart: run \`mmrlhf train ... --fresh\`" \
      "once by hand, or choose another directory with --set run.directory=..."
    [[ $option != --launch && $option != --launch=* ]] || fail "--launch comes before the experiment"
  done
}

# Prints a command with quoting, as it would be typed.
show() {
  printf '%q ' "$@"
  printf '\n'
}

# Prints a command; runs it unless --dry-run.
run() {
  show "$@"
  ((dry_run)) || wait_for "$@"
}

# A signal to the launcher is forwarded to the child that it waits for. The child has its own process group (set -m), so that it
# gets Ctrl-C only once, because a second one would end the trainer without a checkpoint. `to`: the whole group, or the child
# only.
child="" signals=0 to=group
hand_on() { # SIGNAL
  local signal=TERM
  ((signals == 0)) || signal=$1
  signals=$((signals + 1))
  [[ -z $child ]] || kill "-$signal" -- "$([[ $to == process ]] || echo -)$child" 2> /dev/null || true
}
trap 'hand_on INT' INT
trap 'hand_on TERM' TERM HUP

wait_for() {
  local status seen
  set -m
  "$@" < /dev/null & # it is in the background: were it to read the terminal, it would be stopped
  child=$!
  set +m
  while true; do # `wait` comes back early for a signal
    seen=$signals status=0
    wait "$child" || status=$?
    ((signals > seen)) || break
  done
  child=""
  return "$status"
}

pause() { wait_for sleep "${RESTART_SECONDS:-30}" || true; }

# The variables that `describe` prints for a launch file and, for an experiment in a container, the host directories to mount.
# shellcheck disable=SC2034
accelerator="" platform="" generation="" gcloud_type="" topology="" chips=0 hosts=0 slices=1 cache="" mounts=()
describe() {
  local described
  described=$("${PYTHON:-python3}" -m mmrlhf_jax.launching.describe "$@") || exit 2
  eval "$described"
}

# The command that every host runs.
train_command() {
  local command
  printf -v command '%q ' mmrlhf train "$2" --launch "$1" "${@:3}"
  echo "${command% }"
}

# Repeats a command (or a function that runs one) while it ends with a status after which it can continue, unless the launcher
# was told to stop, or a process did not come in RETRIES consecutive attempts.
run_until_finished() {
  local attempt status absent=0
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    status=0
    "$@" || status=$?
    ((signals == 0)) || return "$status"
    if ((status == ABSENT)); then
      absent=$((absent + 1))
      ((absent < RETRIES)) || return "$status"
    else
      absent=0
      [[ " ${RESTART[*]} " == *" $status "* ]] || return "$status"
    fi
    echo "attempt $attempt ended with status $status; continuing from the newest checkpoint" >&2
    pause
    ((signals == 0)) || return "$status"
  done
  return "$status"
}
