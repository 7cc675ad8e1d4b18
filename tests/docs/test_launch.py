"""The files of docs/launch: linted, valid, and run with other programs in the place of gcloud, srun and scontrol."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "docs" / "launch"
LINTERS = Path(sys.executable).parent

# Keeps a TPU's state in a file, and runs what is for its hosts here, in $HOST as the home folder.
GCLOUD = r"""#!/usr/bin/env bash
printf '%q ' "$@" >> "$CALLS"; echo >> "$CALLS"
case "$*" in
  *"queued-resources describe"*) [ -f "$STATE" ] && cat "$STATE" || exit 1 ;;
  *"queued-resources create"*) echo ACTIVE > "$STATE" ;;
  *"queued-resources delete"*) rm -f "$STATE" ;;
  *"tpu-vm scp"*) cp "$5" "$HOST/${6#*:}" ;;
  *"tpu-vm ssh"*) cd "$HOST" || exit 1
    for argument; do
      case $argument in --command=*) HOME=$HOST bash -c "${argument#--command=}"; exit ;; esac
    done ;;
esac
"""

# Trains a TPU's run: the first one is preempted, the second one finishes.
PYTHON = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >> "$CALLS"
case "$*" in
  *semiovs_jax.main*)
    if [ -f "$HOST/preempted" ]; then echo "step 600/600"; exit 0; fi
    touch "$HOST/preempted"; echo SUSPENDED > "$STATE"; exit 1 ;;
esac
"""

UV = r"""#!/usr/bin/env bash
echo "uv $*" >> "$CALLS"
case $1 in venv) mkdir -p .venv/bin && cp "$HOST/python" .venv/bin/python ;; esac
"""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """An environment with a fake gcloud and one fake host, which has uv."""
    host = tmp_path / "host"
    _write(tmp_path / "bin" / "gcloud", GCLOUD)
    _write(host / "python", PYTHON)
    _write(host / ".local" / "bin" / "uv", UV)
    paths = {"CALLS": str(tmp_path / "calls"), "STATE": str(tmp_path / "state"), "HOST": str(host)}
    kept = {name: value for name, value in os.environ.items() if name not in ("PROJECT", "NFS", "SPOT", "TYPE", "TPU")}
    return kept | paths | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "WAIT": "0", "ZONE": "us-east5-b"}


def _tpu(machine: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ("bash", str(LAUNCH / "tpu.sh"), *arguments)
    return subprocess.run(command, env=machine, capture_output=True, text=True, timeout=60)


def _calls(machine: dict[str, str]) -> list[str]:
    return Path(machine["CALLS"]).read_text().splitlines()


@pytest.mark.parametrize(
    "path",
    [*sorted(LAUNCH.glob("*.sh")), *(ROOT / ".ci" / name for name in ("run", "locked"))],
    ids=lambda path: path.name,
)
def test_shell_scripts_pass_shellcheck(path: Path):
    found = subprocess.run((LINTERS / "shellcheck", path), capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert os.access(path, os.X_OK)


def test_the_dockerfile_passes_hadolint():
    found = subprocess.run((LINTERS / "hadolint", LAUNCH / "Dockerfile"), capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_dockerfile_installs_a_lock_file_and_extras_that_there_are():
    text = (LAUNCH / "Dockerfile").read_text()
    default = re.search(r"^ARG PYTHON=(\S+)", text, re.MULTILINE)[1]
    assert (ROOT / "requirements" / f"python{default}.txt").exists()
    project = (ROOT / "pyproject.toml").read_text()
    assert (
        set(re.findall(r"-e '\.\[(\w+)\]'", text)) == {"cuda", "tpu"} <= set(re.findall(r"^(\w+) = \[", project, re.M))
    )
    assert re.findall(r"^FROM .* AS (\w+)$", text, re.MULTILINE) == ["base", "cpu", "cuda", "tpu"]


def test_the_job_in_the_jobset_is_valid_for_kubernetes():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}}
    spec = replicated["template"]["spec"]
    kubernetes_validate.validate(job | {"spec": spec}, kubernetes_validate.latest_version(), strict=True)
    pod = spec["template"]["spec"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == rows * columns / chips


def _flags(text: str) -> list[str]:
    return re.findall(r"--(config\.[a-z_.]+)=", text)


@pytest.mark.parametrize("name", ["jobset.yaml", "skypilot.yaml"])
def test_the_keys_of_the_commands_are_keys_of_the_config(name: str):
    from configs import voc
    from semiovs_jax.runtime.config_keys import unknown_keys

    flags = [f"--{flag}=x" for flag in _flags((LAUNCH / name).read_text())]
    assert len(flags) == 5
    assert unknown_keys(flags, voc.get_config("92")) == []


def test_the_task_of_skypilot_names_files_that_there_are():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) == {"name", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert (ROOT / task["envs"]["CONFIG"]).exists()
    assert (ROOT / re.search(r"--require-hashes -r (\S+)", task["setup"])[1]).exists()
    for part in ("setup", "run"):
        subprocess.run(("bash", "-n", "-c", task[part]), check=True)


def test_a_run_on_a_tpu_goes_on_after_a_preemption(machine: dict[str, str]):
    ended = _tpu(machine, "run", "--config=configs/voc92.py", "--workdir=/mnt/semiovs/runs/a b")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "semiovs: SUSPENDED; preempted, so it is made anew, and the run continues" in ended.stdout
    assert "step 600/600" in ended.stdout
    calls = _calls(machine)
    assert [re.search("create|delete", call)[0] for call in calls if re.search("resources (create|delete)", call)] == [
        "create", "delete", "create",
    ]  # fmt: skip
    create = next(call for call in calls if "queued-resources create" in call)
    for flag in (
        "semiovs",
        "--accelerator-type=v6e-8",
        "--runtime-version=v2-alpha-tpuv6e",
        "--spot",
        "--zone=us-east5-b",
    ):
        assert flag in shlex.split(create)
    trained = [call for call in calls if call.startswith("-m semiovs_jax.main")]
    assert trained == [
        "-m semiovs_jax.main --distributed --config=configs/voc92.py --workdir=/mnt/semiovs/runs/a b"
    ] * 2  # fmt: skip
    assert [call for call in calls if call.startswith("-m semiovs_jax.check_data")] == [
        "-m semiovs_jax.check_data --config=configs/voc92.py"
    ] * 2  # fmt: skip
    hosts = [re.search(r"--worker=(\w+)", call)[1] for call in calls if "tpu-vm" in call]
    assert hosts.count("all") == len(hosts) - 2  # check_data runs on one host
    assert "uv pip install -q --require-hashes -r requirements/python3.12.txt" in calls
    assert (Path(machine["HOST"]) / "semiovs_jax" / "requirements" / "python3.12.txt").exists()


def test_a_run_that_fails_on_a_tpu_that_is_there_ends(machine: dict[str, str]):
    host = Path(machine["HOST"])
    _write(host / "python", PYTHON.replace('echo SUSPENDED > "$STATE"; exit 1', "echo error: no lists; exit 2"))
    ended = _tpu(machine, "run", "--config=configs/voc92.py", "--workdir=w")
    assert ended.returncode == 2
    assert "error: no lists" in ended.stdout
    assert "the run has ended on a TPU that is there; its message is above" in ended.stderr
    assert not [call for call in _calls(machine) if "delete" in call]


def test_a_second_train_shows_the_log_of_the_first(machine: dict[str, str]):
    host = Path(machine["HOST"])
    _tpu(machine, "install")
    _write(
        host / "semiovs_jax" / ".venv" / "bin" / "python", '#!/bin/sh\necho "$$" started; sleep 3; echo ended; exit 7'
    )
    command = ("bash", str(LAUNCH / "tpu.sh"), "train", "--workdir=w")
    first = subprocess.Popen(command, env=machine, stdout=subprocess.PIPE, text=True)
    assert "started" in first.stdout.readline()
    second = _tpu(machine, "train", "--workdir=w")
    assert "a run is going on; this is its log:" in second.stdout
    assert second.stdout.count("started") == second.stdout.count("ended") == 1
    assert "ended" in first.communicate(timeout=30)[0]
    assert (first.returncode, second.returncode) == (7, 7)


def test_state_and_delete_and_what_must_be_set(machine: dict[str, str]):
    assert _tpu(machine, "state").stdout == "MISSING\n"
    _tpu(machine | {"PROJECT": "mine", "SPOT": "0", "TYPE": "v5litepod-16"}, "create")
    create = next(call for call in _calls(machine) if "create" in call)
    assert "--project=mine" in create
    assert "--accelerator-type=v5litepod-16" in create
    assert "--spot" not in create
    assert _tpu(machine, "state").stdout == "ACTIVE\n"
    assert _tpu(machine, "delete").returncode == 0
    assert _tpu(machine, "state").stdout == "MISSING\n"
    missing = _tpu({name: value for name, value in machine.items() if name != "ZONE"}, "create")
    assert (missing.returncode, missing.stderr) == (
        2,
        "error: set ZONE to the zone of the TPU, such as ZONE=us-east5-b\n",
    )
    usage = _tpu(machine)
    assert usage.returncode == 2
    assert "train FLAG ...  trains on all hosts" in usage.stdout


SRUN = r"""#!/usr/bin/env bash
trap 'exit 143' TERM
printf '%s\n' "srun $*" >> "$CALLS"
for ((i = 0; i < ${SECONDS_OF_SRUN:-0}; i++)); do sleep 1 & wait $!; done
exit "${STATUS:-0}"
"""


def _slurm(tmp_path: Path, **settings: str) -> tuple[subprocess.Popen[str], Path]:
    calls = tmp_path / "calls"
    _write(tmp_path / "bin" / "srun", SRUN)
    _write(tmp_path / "bin" / "scontrol", '#!/bin/sh\necho "scontrol $*" >> "$CALLS"\n')
    environment = os.environ | {
        "CALLS": str(calls),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "PYTHON": shutil.which("true") or "",
        **settings,
    }
    command = ("bash", str(LAUNCH / "slurm.sh"), "--config=configs/voc92.py", "--workdir=/shared/a b")
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True), calls


@pytest.mark.parametrize(
    ("settings", "status", "requeued"),
    [
        ({"STATUS": "0"}, 0, False),
        ({"STATUS": "2"}, 2, False),
        ({"STATUS": "143"}, 0, True),
        ({"STATUS": "143", "SLURM_RESTART_COUNT": "100"}, 143, False),
    ],
    ids=["finished", "invalid", "stopped", "stopped too often"],
)
def test_a_job_under_slurm_is_queued_again_where_it_was_stopped(
    settings: dict[str, str], status: int, requeued: bool, tmp_path: Path
):
    job, calls = _slurm(tmp_path, **settings)
    assert job.wait(timeout=30) == status
    first, *more = calls.read_text().splitlines()
    assert first.endswith("-m semiovs_jax.main --distributed --config=configs/voc92.py --workdir=/shared/a b")
    assert more == ["scontrol requeue 77"] * requeued


def test_a_signal_to_the_script_of_slurm_reaches_the_run(tmp_path: Path):
    job, calls = _slurm(tmp_path, SECONDS_OF_SRUN="30")
    while not calls.exists():
        assert job.poll() is None
    job.terminate()
    assert job.wait(timeout=10) == 0
    assert calls.read_text().splitlines()[1:] == ["scontrol requeue 77"]


def test_a_job_under_slurm_without_an_environment_says_so(tmp_path: Path):
    job, _ = _slurm(tmp_path, PYTHON="/nowhere/python")
    assert job.communicate(timeout=10)[1].startswith("error: /nowhere/python: missing; submit the job in the checkout")
    assert job.returncode == 2
