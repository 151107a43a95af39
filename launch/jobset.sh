#!/usr/bin/env bash
# Train on a GKE cluster with JobSet, without xpk: apply the manifest, or print it (--dry-run).
#
#   launch/jobset.sh --launch launch/v6e-32.yaml --image I [--name N] [--claim CLAIM:/PATH] [--dry-run] CONFIG [train options]
#
# TPU slices or GPU nodes, one pod per host. --claim mounts a PersistentVolumeClaim that all pods can write to; without it the
# run's directory and data are in gs://.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

name=mmrlhf claim=""
parse "launch name image claim" "" "$@"
need launch image
check_experiment "${arguments[@]}"
manifest=$("${PYTHON:-python3}" -m mmrlhf_jax.launching.jobset "$launch" "$name" "$image" "$claim" "${arguments[@]}") || exit 2
printf '%s\n' "$manifest"
((dry_run)) || kubectl apply -f - <<< "$manifest"
