#!/usr/bin/env bash
# Train on a TPU slice through a queued resource: create it, run on all its hosts, come back after a preemption.
#
#   launch/tpu_queued_resource.sh --launch launch/v6e-32.yaml --project P --zone Z [--spot] [--dry-run] CONFIG [train options]
#   launch/tpu_queued_resource.sh --launch launch/v6e-32.yaml --project P --zone Z --logs | --delete
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

project="" zone="" runtime="" spot=() action=train
while (($#)); do
  case $1 in
    --launch) launch=$2; shift 2 ;;
    --project) project=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --name) name=$2; shift 2 ;;
    --image) image=$2; shift 2 ;;
    --runtime) runtime=$2; shift 2 ;;
    --spot) spot=(--spot); shift ;;
    --logs) action=logs; shift ;;
    --delete) action=delete; shift ;;
    --dry-run) dry_run=1; shift ;;
    *) break ;;
  esac
done
need launch project zone
describe "$launch"
[[ $generation == v* ]] || fail "$launch names $accelerator, which is no TPU"
case $generation in
  v5e) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
  v5p) runtime=${runtime:-v2-alpha-tpuv5} ;;
  v6e) runtime=${runtime:-v2-alpha-tpuv6e} ;;
esac
name=${name:-mmrlhf-$accelerator}
where=(--project "$project" --zone "$zone")
on_all=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command)
nodes=(--node-id "$name")
((slices == 1)) || nodes=(--node-count "$slices" --node-prefix "$name")

# Comes back when the slice can be used; a spot slice that was taken away is asked for again.
create_and_wait() {
  local state
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" \
    --accelerator-type "$gcloud_type" --runtime-version "$runtime" "${nodes[@]}" "${spot[@]}"
  while true; do
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)" | tee "$states"
    ((dry_run)) && return
    state=$(tail -n 1 "$states")
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "the queued resource $name is $state" ;;
    esac
    sleep 30
  done
}

# One attempt: a status that ssh makes itself (255) means that the slice is gone.
attempt() {
  local status=0
  run "$@" || status=$?
  if ((status == 255 && ${#spot[@]})); then
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    create_and_wait
    status=${RESTART[0]}
  fi
  return "$status"
}

states=$(mktemp)
trap 'rm -f "$states"' EXIT
case $action in
  logs) run "${on_all[@]}" "tail -n 200 -f mmrlhf.log"; exit ;;
  delete) run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; exit ;;
esac
(($#)) || fail "no experiment file is named"

create_and_wait
container="sudo docker run --rm --privileged --network host --volume \$HOME:/root $image"
run_until_finished attempt "${on_all[@]}" "$container $(train_command "$launch" "$@") 2>&1 | tee -a mmrlhf.log; exit \${PIPESTATUS[0]}"
