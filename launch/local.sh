#!/usr/bin/env bash
# Train on this machine, and again after a crash of another process, from the newest checkpoint. A signal or Ctrl-C is handed
# on: the trainer checkpoints and ends, and so does this.
#
#   launch/local.sh [--launch launch/local.yaml] [--dry-run] CONFIG [train options]
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

launch=$here/local.yaml
parse "launch" "" "$@"
check_experiment "${arguments[@]}"
# shellcheck disable=SC2034  # its data workers serve the last step: they are the trainer's to end
to=process
run_until_finished run mmrlhf train "${arguments[0]}" --launch "$launch" "${arguments[@]:1}"
