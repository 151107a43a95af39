#!/usr/bin/env bash
# Train on a GKE cluster that xpk manages: one workload with one pod per host, which JobSet restarts from the newest checkpoint.
#
#   launch/tpu_xpk.sh --launch launch/v6e-32x2.yaml --cluster C --project P --zone Z --image I [--name N] [--restarts 100]
#                     [--dry-run] CONFIG [train options]
#
# The run's directory and data must be in gs://, or at an absolute path in a storage that `xpk storage attach` mounts.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

cluster="" project="" zone="" restarts=$ATTEMPTS
parse "launch cluster project zone name image restarts" "" "$@"
need launch cluster project zone image
check_experiment "${arguments[@]}"
describe "$launch" "${arguments[@]}"
[[ $platform == tpu ]] || fail "$launch names $accelerator, which is no TPU"

# xpk sends SIGTERM to the shell that runs the command; `exec` replaces that shell by the trainer.
run xpk workload create --cluster "$cluster" --project "$project" --zone "$zone" \
  --workload "${name:-mmrlhf-$accelerator}" --tpu-type "$gcloud_type" --num-slices "$slices" \
  --docker-image "$image" --max-restarts "$restarts" --restart-on-exit-codes "$(IFS=,; echo "${RESTART[*]}")" \
  --termination-grace-period-seconds "$GRACE_SECONDS" --command "exec $(train_command "$launch" "${arguments[@]}")"
