#!/usr/bin/env bash
# Train on this machine, and restart from the newest checkpoint after a crash of another process. A signal or Ctrl-C is
# forwarded: the trainer saves a checkpoint and ends, and then this script ends.
#
#   launch/local.sh [--launch launch/local.yaml] [--dry-run] CONFIG [train options]
#
# launch/local.yaml takes all devices, launch/gpu-1.yaml one GPU and one row at a time.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

launch=$here/local.yaml
parse "launch" "" "$@"
check_experiment "${arguments[@]}"
# shellcheck disable=SC2034  # not its data workers, which the last step needs and the trainer ends
to=process
run_until_finished run mmrlhf train "${arguments[0]}" --launch "$launch" "${arguments[@]:1}"
