#!/usr/bin/env bash
# A run on Cloud TPU VMs, on one host or a slice of several: tpu.sh COMMAND [FLAG ...]
#
#   create          asks for the TPU and waits until it is there
#   install         copies the commit that is checked out to all hosts, installs it with the locked versions, mounts NFS
#   check FLAG ...  lists the devices of all hosts, then runs check_data with the flags
#   train FLAG ...  trains on all hosts and shows the log; again: shows the log of the run that is going on
#   run FLAG ...    all of these, and again from "create" when the TPU was preempted, until the run is finished
#   state           prints ACTIVE, SUSPENDED, WAITING_FOR_RESOURCES, ..., or MISSING
#   delete          deletes the TPU
#
# FLAG ... are those of semiovs_jax.main; a run continues from its last checkpoint. Settings are environment variables:
#
#   TPU       name of the TPU                                     semiovs
#   ZONE      its zone                                            must be set
#   TYPE      accelerator type                                    v6e-8
#   VERSION   software of its hosts                               v2-alpha-tpuv6e
#   SPOT      1: a spot TPU, which can be preempted; 0            1
#   NFS       HOST:/SHARE, mounted at /mnt/semiovs on all hosts   none
#   WAIT      seconds between two looks at the state              30
#   PROJECT   Google Cloud project                                that of gcloud
set -euo pipefail

tpu=${TPU:-semiovs}
type=${TYPE:-v6e-8}
version=${VERSION:-v2-alpha-tpuv6e}
wait_seconds=${WAIT:-30}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

fail() {
  echo "error: $*" >&2
  exit 2
}

tpus() {
  gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

# Runs a command on all hosts, or on those of --worker.
on_hosts() {
  local worker=$1
  shift
  tpus tpu-vm ssh "$tpu" --worker="$worker" --command="$*"
}

quoted() {
  printf '%q ' "$@"
}

state() {
  tpus queued-resources describe "$tpu" --format='value(state.state)' 2>/dev/null || echo MISSING
}

create() {
  local spot=()
  [[ ${SPOT:-1} == 1 ]] && spot=(--spot)
  case $(state) in
    ACTIVE) return ;;
    MISSING) ;;
    FAILED | SUSPENDING | SUSPENDED) delete ;;
    *)
      wait_until_active
      return
      ;;
  esac
  tpus queued-resources create "$tpu" --node-id="$tpu" --accelerator-type="$type" --runtime-version="$version" \
    "${spot[@]}"
  wait_until_active
}

wait_until_active() {
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | MISSING) fail "$tpu is $now; gcloud says why: gcloud compute tpus queued-resources describe $tpu --zone=$ZONE" ;;
    esac
    echo "$tpu: $now"
    sleep "$wait_seconds"
  done
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git -C "$checkout" archive --format=tar.gz --output="$archive" HEAD
  tpus tpu-vm scp "$archive" "$tpu:semiovs_jax.tar.gz" --worker=all
  rm -f "$archive"
  if [[ -n ${NFS:-} ]]; then
    on_hosts all "mountpoint -q /mnt/semiovs || { sudo apt-get update -q && sudo apt-get install -qy nfs-common &&" \
      "sudo mkdir -p /mnt/semiovs && sudo mount $(quoted "$NFS")/mnt/semiovs; }"
  fi
  # The hosts' own Python may be older than 3.11: uv brings one.
  on_hosts all "set -e; mkdir -p semiovs_jax; tar -xzf semiovs_jax.tar.gz -C semiovs_jax; cd semiovs_jax;" \
    "command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh;" \
    "export PATH=~/.local/bin:\$PATH;" \
    "[ -d .venv ] || uv venv -q --python 3.12 .venv;" \
    "grep -oE '^[A-Za-z0-9_.-]+==[^ ]+' requirements/python3.12.txt > versions.txt;" \
    "uv pip install -q --require-hashes -r requirements/python3.12.txt;" \
    "uv pip install -q -c versions.txt -e '.[tpu]'"
}

check() {
  on_hosts all "cd semiovs_jax && .venv/bin/python -c 'import jax; jax.distributed.initialize();" \
    "print(jax.process_index(), \"of\", jax.process_count(), \"hosts:\", jax.local_devices())'"
  [[ $# -eq 0 ]] || on_hosts 0 "cd semiovs_jax && JAX_PLATFORMS=cpu .venv/bin/python -m semiovs_jax.check_data $(quoted "${without_workdir[@]}")"
}

train() {
  # The process outlives a lost connection. It holds a lock, so that a second call shows its log.
  on_hosts all "cd semiovs_jax; exec 9> ~/train.lock; if flock -n 9; then" \
    "rm -f ~/train.status; : > ~/train.log;" \
    "(.venv/bin/python -m semiovs_jax.main --distributed $(quoted "$@")< /dev/null >> ~/train.log 2>&1;" \
    "echo \$? > ~/train.status) > /dev/null 2>&1 & echo \$! > ~/train.pid;" \
    "else echo 'a run is going on; this is its log:'; fi; exec 9>&-;" \
    "tail --pid=\$(cat ~/train.pid) -s 1 -n +1 -F ~/train.log; exit \$(cat ~/train.status)"
}

run() {
  local now this=${BASH_SOURCE[0]}
  while true; do
    create
    if "$this" install && "$this" check "$@" && "$this" train "$@"; then
      return
    fi
    now=$(state)
    [[ $now != ACTIVE ]] || fail "the run has ended on a TPU that is there; its message is above"
    echo "$tpu: $now; preempted, so it is made anew, and the run continues"
  done
}

delete() {
  tpus queued-resources delete "$tpu" --force --quiet
}

command=${1:-}
shift || true
without_workdir=()
for flag in "$@"; do
  [[ $flag == --workdir=* || $flag == --fork_from=* || $flag == --seeds=* ]] || without_workdir+=("$flag")
done
case $command in
  create | install | check | train | run | state | delete)
    [[ -n ${ZONE:-} ]] || fail "set ZONE to the zone of the TPU, such as ZONE=us-east5-b"
    "$command" "$@"
    ;;
  *)
    sed -n '2,/^set -e/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
