#!/usr/bin/env bash
# Train on GPU hosts, or on one card, through SLURM: writes the batch script and submits it; the job requeues itself if it can
# be continued.
#
#   launch/slurm.sh --launch launch/h100-8x4.yaml [--partition P] [--time 24:00:00] [--name N] [--dry-run] CONFIG [train options]
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/common.sh
source "$here/common.sh"

partition="" time=24:00:00
CPUS_OF_A_CARD=${CPUS_OF_A_CARD:-8} # as many as an experiment has data workers
parse "launch partition time name" "" "$@"
need launch
check_experiment "${arguments[@]}"
describe "$launch"
[[ $platform == gpu ]] || fail "$launch names $accelerator, which is no GPU host"

# A host of one card is a share of a node: its data workers need processors, and other jobs may have the rest. Since SLURM 22.05
# srun does not take their number from the batch script's options.
share=--exclusive cpus=""
if ((chips == 1)); then
  cpus=--cpus-per-task=$CPUS_OF_A_CARD
  share=$cpus
fi
restart=$(IFS='|'; echo "${RESTART[*]}")
script=$(cat << SCRIPT
#!/usr/bin/env bash
#SBATCH --job-name=${name:-mmrlhf-$accelerator}
#SBATCH --nodes=$slices
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$chips
#SBATCH $share
#SBATCH --time=$time
#SBATCH --signal=TERM@$GRACE_SECONDS
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mmrlhf-%j.log
${partition:+#SBATCH --partition=$partition
}
set -uo pipefail
# srun exits with the highest status of its tasks, and ends the other tasks by a signal when one fails. A status that another
# attempt would not change is raised above the statuses of signals, which would hide it. SLURM signals the trainer as well,
# so the shell around it only ignores the signal.
task='trap : TERM INT; "\$@"; status=\$?
case \$status in 0|$restart) exit \$status ;; $ABSENT) exit 254 ;; *) exit \$((200 + (status < 55 ? status : 55))) ;; esac'
srun ${cpus:+$cpus }--kill-on-bad-exit=1 bash -c "\$task" task $(train_command "$launch" "${arguments[@]}")
status=\$?
most=0
case \$status in
  $restart) most=$ATTEMPTS ;;
  254) status=$ABSENT most=$RETRIES ;;
esac
if ((\${SLURM_RESTART_COUNT:-0} < most)); then
  scontrol requeue "\$SLURM_JOB_ID"
elif ((most > 0)); then
  echo "requeued \${SLURM_RESTART_COUNT:-0} times: not again" >&2
fi
exit \$((status < 200 ? status : status - 200))
SCRIPT
)
printf '%s\n' "$script"
((dry_run)) || sbatch <<< "$script"
