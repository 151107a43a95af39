#!/usr/bin/env bash
# Train on this machine, and again after a signal or a crash of another process, from the newest checkpoint.
#
#   launch/local.sh [--launch launch/local.yaml] [--dry-run] CONFIG [train options]
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

launch=$here/local.yaml
while (($#)); do
  case $1 in
    --launch) launch=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    *) break ;;
  esac
done
(($#)) || fail "no experiment file is named"
run_until_finished run mmrlhf train "$1" --launch "$launch" "${@:2}"
