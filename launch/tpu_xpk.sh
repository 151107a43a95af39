#!/usr/bin/env bash
# Train on a GKE cluster that xpk manages: one workload, one pod per host, JobSet restarts it where it stopped.
#
#   launch/tpu_xpk.sh --launch launch/v6e-32x2.yaml --cluster C --project P --zone Z [--image I] [--dry-run] CONFIG [options]
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

cluster="" project="" zone="" restarts=100
while (($#)); do
  case $1 in
    --launch) launch=$2; shift 2 ;;
    --cluster) cluster=$2; shift 2 ;;
    --project) project=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --name) name=$2; shift 2 ;;
    --image) image=$2; shift 2 ;;
    --restarts) restarts=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    *) break ;;
  esac
done
need launch cluster project zone
describe "$launch"
[[ $generation == v* ]] || fail "$launch names $accelerator, which is no TPU"
(($#)) || fail "no experiment file is named"

run xpk workload create --cluster "$cluster" --project "$project" --zone "$zone" \
  --workload "${name:-mmrlhf-$accelerator}" --tpu-type "$gcloud_type" --num-slices "$slices" \
  --docker-image "$image" --max-restarts "$restarts" --restart-on-exit-codes "$(IFS=,; echo "${RESTART[*]}")" \
  --command "$(train_command "$launch" "$@")"
