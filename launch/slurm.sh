#!/usr/bin/env bash
# Train on GPU hosts through SLURM: writes the batch script and submits it; the job requeues itself where it can go on.
#
#   launch/slurm.sh --launch launch/h100-8x4.yaml [--partition P] [--time 24:00:00] [--dry-run] CONFIG [train options]
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

partition="" limit=24:00:00
while (($#)); do
  case $1 in
    --launch) launch=$2; shift 2 ;;
    --partition) partition=$2; shift 2 ;;
    --time) limit=$2; shift 2 ;;
    --name) name=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    *) break ;;
  esac
done
need launch
describe "$launch"
[[ $generation == h* ]] || fail "$launch names $accelerator, which is no GPU host"
(($#)) || fail "no experiment file is named"

script=$(cat << SCRIPT
#!/usr/bin/env bash
#SBATCH --job-name=${name:-mmrlhf-$accelerator}
#SBATCH --nodes=$slices
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$chips
#SBATCH --exclusive
#SBATCH --time=$limit
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mmrlhf-%j.log
${partition:+#SBATCH --partition=$partition
}
set -uo pipefail
srun --kill-on-bad-exit=1 $(train_command "$launch" "$@")
status=\$?
case \$status in
  $(IFS='|'; echo "${RESTART[*]}")) scontrol requeue "\$SLURM_JOB_ID" ;;
esac
exit \$status
SCRIPT
)
printf '%s\n' "$script"
((dry_run)) || sbatch <<< "$script"
