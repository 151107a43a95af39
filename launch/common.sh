# shellcheck shell=bash
# What the launchers share: what a launch file says, saying instead of doing (--dry-run), and the exit codes to restart on.

# shellcheck disable=SC2034  # read by the scripts that source this one
launch="" name="" image=mmrlhf_jax:latest dry_run=0
# `mmrlhf train` ends with these where the same command continues the run: a signal, another host that is gone, or
# the first one of them (`mmrlhf_jax/sharding/exits.py`).
RESTART=(143 75 134)
ATTEMPTS=${ATTEMPTS:-100}

fail() { echo "error: $*" >&2; exit 2; }

need() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || fail "--$option is missing"
  done
}

# Prints a command as it would be typed; runs it unless --dry-run.
run() {
  printf '%q ' "$@"
  printf '\n'
  ((dry_run)) || "$@"
}

# What `describe` finds in a launch file.
# shellcheck disable=SC2034
accelerator="" generation="" gcloud_type="" topology="" chips=0 hosts=0 slices=1
describe() {
  local described
  described=$("${PYTHON:-python3}" -m mmrlhf_jax.sharding.describe "$1") || exit 2
  eval "$described"
}

# The command that every host runs.
train_command() {
  local command
  printf -v command '%q ' mmrlhf train "$2" --launch "$1" "${@:3}"
  echo "${command% }"
}

# Repeats a command (or a function that runs one) while it ends with a status that another attempt continues from.
run_until_finished() {
  local attempt status
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    status=0
    "$@" || status=$?
    [[ " ${RESTART[*]} " == *" $status "* ]] || return "$status"
    echo "attempt $attempt ended with status $status; continuing from the newest checkpoint" >&2
    sleep "${RESTART_SECONDS:-30}"
  done
  return "$status"
}
