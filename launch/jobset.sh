#!/usr/bin/env bash
# Train on a GKE cluster with JobSet, without xpk: prints the manifest (--dry-run) or applies it.
#
#   launch/jobset.sh --launch launch/v6e-32.yaml --image I [--name N] [--dry-run] CONFIG [train options]
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

while (($#)); do
  case $1 in
    --launch) launch=$2; shift 2 ;;
    --name) name=$2; shift 2 ;;
    --image) image=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    *) break ;;
  esac
done
need launch image
(($#)) || fail "no experiment file is named"
manifest=$("${PYTHON:-python3}" -m mmrlhf_jax.sharding.jobset "$launch" "${name:-mmrlhf}" "$image" "$@") || exit 2
printf '%s\n' "$manifest"
((dry_run)) || kubectl apply -f - <<< "$manifest"
