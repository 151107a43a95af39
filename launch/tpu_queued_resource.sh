#!/usr/bin/env bash
# Train on TPU slices through a queued resource: create it, run on all its hosts, create it again after a preemption.
#
#   launch/tpu_queued_resource.sh --launch launch/v6e-32.yaml --project P --zone Z --image I [--name N] [--runtime R] [--spot]
#                                 [--dry-run] CONFIG [train options]
#   launch/tpu_queued_resource.sh --launch launch/v6e-32.yaml --project P --zone Z [--name N] --logs | --stop | --delete
#
# The hosts' containers do not depend on this script: started again, it follows running ones. --stop makes them save a
# checkpoint and end. Absolute paths in the experiment are directories on the hosts, and the run's directory must be shared by
# all hosts or be in gs://.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

project="" zone="" runtime="" spot=0 logs=0 stop=0 delete=0
parse "launch project zone name image runtime" "spot logs stop delete" "$@"
need launch project zone
action=$((logs + stop + delete))
if ((action)); then
  arguments=()
else
  need image
  check_experiment "${arguments[@]}"
fi
describe "$launch" "${arguments[@]}"
[[ $platform == tpu ]] || fail "$launch names $accelerator, which is no TPU"
case $generation in
  v5e) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
  v5p) runtime=${runtime:-v2-alpha-tpuv5} ;;
  v6e) runtime=${runtime:-v2-alpha-tpuv6e} ;;
esac
name=${name:-mmrlhf-$accelerator}

queued=(gcloud compute tpus queued-resources)
where=("$name" --project "$project" --zone "$zone" --quiet)
# All hosts at once, because with batches the first hosts would wait in vain for those of the second batch.
on_all=("${queued[@]}" ssh "${where[@]}" --node=all --worker=all --batch-size=all --command)
ask=("${queued[@]}" describe "${where[@]}" "--format=value(state.state)")
give_back=("${queued[@]}" delete "${where[@]}" --force)
create=("${queued[@]}" create "${where[@]}" --accelerator-type "$gcloud_type" --runtime-version "$runtime")
if ((slices == 1)); then create+=(--node-id "$name"); else create+=(--node-count "$slices" --node-prefix "$name"); fi
((spot == 0)) || create+=(--spot)

if ((logs)); then run "${on_all[@]}" "sudo docker logs --follow --tail 200 mmrlhf"; exit; fi
if ((stop)); then run "${on_all[@]}" "sudo docker stop mmrlhf"; exit; fi
if ((action)); then run "${give_back[@]}"; exit; fi

# The queued resource's state; NONE if there is none, UNKNOWN if gcloud fails.
state_of() {
  local answer
  if answer=$("${ask[@]}" 2>&1); then
    grep -oE '^[A-Z_]+$' <<< "$answer" || echo UNKNOWN # gcloud may add advice
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

# Returns when the slices can be used: existing ones, or new ones if they were taken away.
have_slices() {
  local state created=0 told=0
  while ((signals == 0)); do
    state=$(state_of)
    case $state in
      ACTIVE) return ;;
      NONE) run "${create[@]}" || fail "the queued resource $name could not be created"; created=1 ;;
      FAILED | SUSPENDED)
        ((created == 0)) || fail "the queued resource $name is $state as soon as it is created"
        run "${give_back[@]}" || fail "the queued resource $name is $state and could not be deleted"
        ;;
      *)
        [[ $state != UNKNOWN ]] || ((told)) || fail "gcloud does not tell the state of the queued resource $name"
        echo "the queued resource $name is $state" >&2
        pause
        ;;
    esac
    told=1
  done
  exit "${RESTART[0]}"
}

# One attempt. Its status does not tell whether the slices or only the connection failed, so existing slices are kept.
# shellcheck disable=SC2329  # run_until_finished calls it
attempt() {
  local status=0
  run "$@" || status=$?
  ((status != 0 && signals == 0)) || return "$status"
  case $(state_of) in
    ACTIVE) ((status != 255)) || status=${RESTART[0]} ;; # ssh's own
    UNKNOWN) ((status == 2)) || status=${RESTART[0]} ;;
    *) have_slices; status=${RESTART[0]} ;;
  esac
  return "$status"
}

show "${ask[@]}"
if ((dry_run)); then show "${create[@]}"; else have_slices; fi
volumes="--volume \$HOME:/root"
for mount in "${mounts[@]}" $cache; do volumes+=$(printf ' --volume %q:%q' "$mount" "$mount"); done
# Grain's workers pass batches through /dev/shm, of which a container has only 64 MB by default.
container="sudo docker run --detach --name mmrlhf --privileged --network host --shm-size 32g --stop-timeout $GRACE_SECONDS"
container+=" $volumes $image $(train_command "$launch" "${arguments[@]}")"
status=0
run_until_finished attempt "${on_all[@]}" "sudo docker ps --quiet --filter name=^mmrlhf\$ | grep -q . && echo it runs already ||\
 { sudo docker rm --force mmrlhf 2> /dev/null; $container; }; sudo docker logs --follow mmrlhf; exit \$(sudo docker wait mmrlhf)" ||
  status=$?
((signals == 0)) || echo "the hosts go on: --stop ends the training on $name, --delete gives it back" >&2
exit "$status"
