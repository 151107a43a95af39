"""When a launcher starts a run again, when not, and what a signal to it does: with stand-ins for trainer and tools."""

from __future__ import annotations

import functools
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrlhf_jax.exits import ABSENT, RESTART, RETRIES, RETRY
from tests.launch.launchers import BUCKET, CLOUD, EXPERIMENT, ROOT, dry_run, environment, stand_in

LOCAL = str(ROOT / "launch" / "local.sh")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def appears(path: Path, text: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while text not in "\n".join(lines(path)):
        assert time.monotonic() < end, f"{path} has no {text}"
        time.sleep(0.05)


# --- local.sh -----------------------------------------------------------------------------------------------------------


def test_a_local_run_is_repeated_until_it_is_finished(tmp_path):
    """The trainer ends as when it is killed, then as after a lost peer, then well."""
    count = tmp_path / "count"
    stand_in(
        tmp_path, "mmrlhf", f'echo x >> {count}\ncase $(wc -l < {count}) in 1) exit 137 ;; 2) exit 75 ;; *) echo "$@" ;; esac'
    )
    command = [LOCAL, EXPERIMENT, "--set", "run.seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), cwd=ROOT)
    assert done.returncode == 0
    assert len(lines(count)) == 3
    assert done.stdout.splitlines()[-1].startswith(f"train {EXPERIMENT} --launch")


@pytest.mark.parametrize("status", [1, 2])
def test_a_local_run_that_cannot_go_on_is_not_repeated(tmp_path, status):
    stand_in(tmp_path, "mmrlhf", f"echo x >> {tmp_path / 'count'}; exit {status}")
    assert subprocess.run([LOCAL, EXPERIMENT], env=environment(tmp_path), cwd=ROOT).returncode == status
    assert len(lines(tmp_path / "count")) == 1


def test_a_process_that_never_comes_is_waited_for_in_three_attempts_and_not_for_ever(tmp_path):
    count = tmp_path / "count"
    stand_in(tmp_path, "mmrlhf", f"echo x >> {count}; exit {ABSENT}")
    assert subprocess.run([LOCAL, EXPERIMENT], env=environment(tmp_path), cwd=ROOT).returncode == ABSENT
    assert len(lines(count)) == RETRIES == 3


def test_one_that_comes_late_now_and_then_is_no_reason_to_end(tmp_path):
    """Only attempts in a row count: between them the run went on."""
    count = tmp_path / "count"
    stand_in(
        tmp_path,
        "mmrlhf",
        f"echo x >> {count}\ncase $(wc -l < {count}) in 3 | 6) exit 75 ;; 9) exit 0 ;; *) exit {ABSENT} ;; esac",
    )
    assert subprocess.run([LOCAL, EXPERIMENT], env=environment(tmp_path), cwd=ROOT).returncode == 0
    assert len(lines(count)) == 9


# It says which signals come, and ends behind its checkpoint as the trainer does: at the first; a second one is one too many.
TRAINER = """
trap 'echo signal >> {log}' TERM INT
echo started $$ >> {log}
until grep -q signal {log}; do sleep 0.05; done
sleep 0.3
echo checkpoint >> {log}
exit 143
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_the_trainer_once_and_both_end_behind_a_checkpoint(tmp_path, number):
    log = tmp_path / "log"
    stand_in(tmp_path, "mmrlhf", TRAINER.format(log=log))
    heard = ("env", "--default-signal")  # under nohup SIGHUP is not, and no shell can change that
    running = subprocess.Popen([*heard, LOCAL, EXPERIMENT], env=environment(tmp_path), cwd=ROOT, start_new_session=True)
    appears(log, "started")
    running.send_signal(number)
    assert running.wait(timeout=20) == 143
    assert lines(log)[1:] == ["signal", "checkpoint"], "signalled twice, started again, or left running"


def test_ctrl_c_reaches_the_trainer_once(tmp_path):
    """A terminal signals the whole process group; the trainer is in one of its own."""
    log = tmp_path / "log"
    stand_in(tmp_path, "mmrlhf", TRAINER.format(log=log))
    heard = ["env", "--default-signal=INT"]  # tests that run in the background of a shell ignore it
    running = subprocess.Popen([*heard, LOCAL, EXPERIMENT], env=environment(tmp_path), cwd=ROOT, process_group=0)
    appears(log, "started")
    subprocess.run(["kill", "-INT", "--", f"-{running.pid}"], check=True)
    assert running.wait(timeout=20) == 143
    assert lines(log)[1:] == ["signal", "checkpoint"]


@pytest.mark.parametrize(("second", "heard"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM")])
def test_a_second_signal_reaches_the_trainer_as_what_it_is(tmp_path, second, heard):
    """The trainer ends without its checkpoint at a second Ctrl-C, and not at a second SIGTERM."""
    log = tmp_path / "log"
    trainer = """
        trap 'echo TERM >> {log}' TERM
        trap 'echo INT >> {log}; exit 1' INT
        echo started >> {log}
        until [[ $(grep -c TERM {log}) == 2 ]]; do sleep 0.05; done
        exit 143
    """
    stand_in(tmp_path, "mmrlhf", trainer.format(log=log))
    command = ["env", "--default-signal=INT", LOCAL, EXPERIMENT]
    running = subprocess.Popen(command, env=environment(tmp_path), cwd=ROOT, start_new_session=True)
    appears(log, "started")
    running.send_signal(signal.SIGINT)
    appears(log, "TERM")
    running.send_signal(second)
    assert running.wait(timeout=20) == (1 if second == signal.SIGINT else 143)
    assert lines(log) == ["started", "TERM", heard]


def test_a_signal_between_two_attempts_ends_the_launcher(tmp_path):
    log = tmp_path / "log"
    stand_in(tmp_path, "mmrlhf", f"echo started >> {log}; exit 75")
    running = subprocess.Popen([LOCAL, EXPERIMENT], env=environment(tmp_path, RESTART_SECONDS="60"), cwd=ROOT)
    appears(log, "started")
    time.sleep(0.5)
    running.terminate()
    assert running.wait(timeout=20) == 75
    assert lines(log) == ["started"]


# --- slurm.sh -----------------------------------------------------------------------------------------------------------

# As srun does: a task of each status that STATUSES lists, and the highest of what they end with.
SRUN = """
shift
highest=0
for status in $STATUSES; do
  status=$status "$@"
  ended=$?
  ((ended > highest)) && highest=$ended
done
exit $highest
"""


@functools.cache
def slurm_script() -> str:
    return "\n".join(dry_run("slurm.sh", "launch/h200-8.yaml"))


def slurm_job(tmp_path: Path, statuses: str, **variables: str) -> subprocess.CompletedProcess:
    stand_in(tmp_path, "srun", SRUN)
    stand_in(tmp_path, "mmrlhf", 'exit "$status"')
    stand_in(tmp_path, "scontrol", 'echo "$@"')
    variables = {"SLURM_JOB_ID": "7", "STATUSES": statuses} | variables
    return subprocess.run(
        ["bash", "-c", slurm_script()], capture_output=True, text=True, env=environment(tmp_path, **variables)
    )


@pytest.mark.parametrize("status", [0, 1, 2, *RESTART])
def test_a_slurm_job_is_requeued_exactly_where_another_attempt_goes_on(tmp_path, status):
    done = slurm_job(tmp_path, str(status))
    assert done.returncode == status
    assert done.stdout == ("requeue 7\n" if status in RESTART else "")


@pytest.mark.parametrize("statuses", ["75 143 2 143", "137 1", "2 0"])
def test_a_task_that_failed_is_not_hidden_behind_those_that_were_ended_for_it(tmp_path, statuses):
    done = slurm_job(tmp_path, statuses)
    assert done.returncode == min(int(status) for status in statuses.split() if status in "12")
    assert done.stdout == ""


@pytest.mark.parametrize("statuses", [str(ABSENT), f"143 {ABSENT} 137 {ABSENT}"])
def test_a_slurm_job_that_a_host_never_joins_is_requeued_three_times(tmp_path, statuses):
    """Whatever becomes of the tasks that srun ends for it."""
    for before, requeued in (("0", True), ("2", True), ("3", False)):
        done = slurm_job(tmp_path, statuses, SLURM_RESTART_COUNT=before)
        assert (done.returncode, done.stdout) == (ABSENT, "requeue 7\n" if requeued else "")
    assert "requeued 3 times: not again" in done.stderr


def test_what_is_tried_a_few_times_is_not_tried_a_hundred_times():
    assert not {*RETRY} & {*RESTART}


def test_a_crash_of_the_trainer_itself_is_not_requeued(tmp_path):
    done = slurm_job(tmp_path, "143 139")
    assert done.returncode == 55
    assert done.stdout == ""


def test_a_slurm_job_is_not_requeued_without_end(tmp_path):
    assert slurm_job(tmp_path, "143", SLURM_RESTART_COUNT="99").stdout == "requeue 7\n"
    done = slurm_job(tmp_path, "143", SLURM_RESTART_COUNT="100")
    assert (done.returncode, done.stdout) == (143, "")
    assert "requeued 100 times" in done.stderr


def test_the_shell_around_a_slurm_task_outlives_the_signal_that_the_task_gets(tmp_path):
    """SLURM signals all processes of a task; one that ended with its shell would be killed before its checkpoint."""
    log = tmp_path / "log"
    stand_in(tmp_path, "srun", 'shift; "$@"')
    stand_in(tmp_path, "mmrlhf", TRAINER.format(log=log))
    stand_in(tmp_path, "scontrol", "")
    task = slurm_script().replace("srun ", "exec srun ")
    running = subprocess.Popen(["bash", "-c", task], env=environment(tmp_path), process_group=0)
    appears(log, "started")
    subprocess.run(["kill", "-TERM", "--", f"-{running.pid}"], check=False)
    appears(log, "checkpoint")
    assert lines(log)[1:] == ["signal", "checkpoint"]
    running.wait(timeout=20)


# --- tpu_queued_resource.sh ---------------------------------------------------------------------------------------------

# A queued resource whose state is in a file, and an ssh that ends as the next line of another says, after what that says.
GCLOUD = """
cd {tools}
echo "$4" >> calls
case $4 in
  describe)
    [[ ! -e offline ]] || {{ echo "ERROR: network is unreachable" >&2; exit 1; }}
    [[ -e state ]] || {{ echo "ERROR: (gcloud) NOT_FOUND: Requested entity was not found." >&2; exit 1; }}
    cat state; echo "Updates are available for some components." >&2 ;;
  create) echo ${{CREATED:-ACTIVE}} > state ;;
  delete) rm state ;;
  ssh)
    read -r status then < <(head -n 1 plan)
    sed -i 1d plan
    eval "$then"
    exit "$status" ;;
esac
"""


QUEUED = (str(ROOT / "launch" / "tpu_queued_resource.sh"), "--launch", "launch/v6e-32.yaml", *CLOUD)


@functools.cache
def described() -> str:
    """What the launcher reads of the launch file: the same for every run here."""
    command = [sys.executable, "-m", "mmrlhf_jax.launching.describe", "launch/v6e-32.yaml", EXPERIMENT, *BUCKET]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment(), cwd=ROOT).stdout


def queued_resource(tmp_path: Path, plan: list[str], **variables: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """A run whose ssh calls end by `plan`, each line a status and what happens; and the calls of gcloud but for describe."""
    stand_in(tmp_path, "gcloud", GCLOUD.format(tools=tmp_path))
    stand_in(tmp_path, "described", f"cat << 'END'\n{described()}END")
    (tmp_path / "plan").write_text("\n".join(plan) + "\n")
    command = [*QUEUED, "--image", "I"]
    done = subprocess.run(
        [*command, EXPERIMENT, *BUCKET],
        capture_output=True,
        text=True,
        env=environment(tmp_path, PYTHON="described", **variables),
        cwd=ROOT,
        timeout=120,
    )
    return done, [call for call in lines(tmp_path / "calls") if call != "describe"]


def test_a_queued_resource_is_created_and_used(tmp_path):
    done, calls = queued_resource(tmp_path, ["0"])
    assert (done.returncode, calls) == (0, ["create", "ssh"])


def test_one_that_is_there_is_used_as_it_is(tmp_path):
    (tmp_path / "state").write_text("ACTIVE\n")
    done, calls = queued_resource(tmp_path, ["0"])
    assert (done.returncode, calls) == (0, ["ssh"])


def test_one_that_was_taken_away_before_is_created_anew(tmp_path):
    (tmp_path / "state").write_text("SUSPENDED\n")
    done, calls = queued_resource(tmp_path, ["0"])
    assert (done.returncode, calls) == (0, ["delete", "create", "ssh"])


@pytest.mark.parametrize("status", [255, 143, 75, 1])
def test_a_slice_that_is_taken_away_is_asked_for_again_however_the_connection_ended(tmp_path, status):
    done, calls = queued_resource(tmp_path, [f"{status} echo SUSPENDED > state", "0"])
    assert (done.returncode, calls) == (0, ["create", "ssh", "delete", "create", "ssh"])


@pytest.mark.parametrize("status", [255, *RESTART])
def test_a_lost_connection_or_a_restart_leaves_a_healthy_slice_alone(tmp_path, status):
    done, calls = queued_resource(tmp_path, [str(status), "0"])
    assert (done.returncode, calls) == (0, ["create", "ssh", "ssh"])


def test_where_the_state_cannot_be_asked_nothing_is_deleted(tmp_path):
    done, calls = queued_resource(tmp_path, ["255 touch offline", "255", "0 rm offline"])
    assert (done.returncode, calls) == (0, ["create", "ssh", "ssh", "ssh"])


@pytest.mark.parametrize("status", [1, 2])
def test_a_failure_of_the_training_on_a_healthy_slice_ends_the_launcher(tmp_path, status):
    done, calls = queued_resource(tmp_path, [str(status)])
    assert (done.returncode, calls) == (status, ["create", "ssh"])


def test_a_queued_resource_that_fails_at_once_is_not_asked_for_for_ever(tmp_path):
    done, calls = queued_resource(tmp_path, [], CREATED="FAILED")
    assert (done.returncode, calls) == (2, ["create"])
    assert "is FAILED as soon as it is created" in done.stderr


def test_a_signal_to_the_launcher_ends_the_connection_and_says_that_the_hosts_go_on(tmp_path):
    stand_in(tmp_path, "gcloud", GCLOUD.format(tools=tmp_path))
    stand_in(tmp_path, "described", f"cat << 'END'\n{described()}END")
    (tmp_path / "plan").write_text("0 sleep 100\n")
    (tmp_path / "state").write_text("ACTIVE\n")
    running = subprocess.Popen(
        [*QUEUED, "--image", "I", EXPERIMENT, *BUCKET],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path, PYTHON="described"),
        cwd=ROOT,
    )
    appears(tmp_path / "calls", "ssh")
    time.sleep(0.5)
    running.terminate()
    _, said = running.communicate(timeout=20)
    assert running.returncode == 143
    assert "--stop ends the training" in said
    assert lines(tmp_path / "calls") == ["describe", "ssh"]


@pytest.mark.parametrize(("option", "does"), [("--stop", "docker stop mmrlhf"), ("--delete", "queued-resources delete")])
def test_what_the_launcher_leaves_behind_can_be_stopped_and_given_back(option, does):
    done = subprocess.run([*QUEUED, option, "--dry-run"], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert does in " ".join(shlex.split(done.stdout))


# As docker does: a container is its name in a file, with the status that it ended with.
DOCKER = """
cd {tools}
echo "$1" >> docker_calls
case $1 in
  ps) cat running 2> /dev/null ;;
  run) echo mmrlhf > running ;;
  logs) rm running ;;
  wait) echo 75 ;;
esac
exit 0
"""


@pytest.mark.parametrize("running", [False, True])
def test_a_host_follows_the_container_that_runs_or_starts_one_and_ends_with_its_status(tmp_path, running):
    stand_in(tmp_path, "docker", DOCKER.format(tools=tmp_path))
    stand_in(tmp_path, "sudo", '"$@"')
    if running:
        (tmp_path / "running").write_text("mmrlhf\n")
    command = shlex.split(dry_run("tpu_queued_resource.sh", "launch/v6e-32.yaml")[-1])[-1]
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == 75, done.stderr
    calls = lines(tmp_path / "docker_calls")
    assert calls == (["ps", "logs", "wait"] if running else ["ps", "rm", "run", "logs", "wait"])
