#!/usr/bin/env bash
# From nothing to a training run on Cloud TPU, and back to nothing. See docs/clusters.md.
# shellcheck disable=SC2329 # the verbs are called by their names
set -euo pipefail

usage() {
  cat <<'END'
tpu_setup.sh VERB --name=NAME --type=TYPE [OPTION...] [-- COMMAND...]

  create     ask for the TPU: a queued resource
  wait       until every slice is ready; leaves with 75 if the TPU was lost
  sync       send this checkout and the environment variables to all workers
  setup      sync, then install: Python 3.12, JAX, bigjax; ends a running job; tests the devices
  run        start COMMAND in tmux on all workers, in the checkout; ends the job before
  logs       the log of the first worker; --follow to go on
  status     state of the TPU and of the job on each worker
  babysit    all of it: create, wait, setup, run COMMAND, again after preemption; then delete
  delete     give the TPU back

  --name=NAME        of the queued resource and of its TPU VM (NAME-0, NAME-1, ... if several)
  --type=TYPE        such as v5e-16: the kind of chip, and the size of one slice as Google counts it
  --slices=N         1
  --zone=ZONE        gcloud's default
  --project=PROJECT  gcloud's default
  --bucket=BUCKET    a Cloud Storage bucket to mount on /mnt/BUCKET: checkpoints there outlive the TPU
  --env=A,B          variables to hand over, beside WANDB_API_KEY and HF_TOKEN; sent as a 0600 file
  --extras=A,B       optional packages of bigjax, such as wandb
  --on-demand        not spot
  --valid-for=6h     how long the request for the TPU stands
  --runtime=VERSION  another image than the one for the chip
  --retries=5        how many losses of the TPU in a row, and how many crashes, babysit puts up with
  --keep             babysit leaves the TPU there in the end
  --dry-run          print the commands, call nothing
  --help

The exit code of COMMAND decides what babysit does: 0 done; 75 preempted and saved, run again;
78 config or data error and 70 diverged, stop; any other, run again up to --retries times.
END
}

# Name of the chip, Google's name, image, TensorCores (as its sizes count) to a JAX device.
# v4 and v5p are sized in TensorCores, two to a chip: v5p-32 is 16 chips, which JAX sees as 16 devices.
CHIPS='
v2         v2         tpu-ubuntu2204-base  1
v3         v3         tpu-ubuntu2204-base  1
v4         v4         tpu-ubuntu2204-base  2
v5e        v5litepod  v2-alpha-tpuv5-lite  1
v5litepod  v5litepod  v2-alpha-tpuv5-lite  1
v5p        v5p        v2-alpha-tpuv5       2
v6e        v6e        v2-alpha-tpuv6e      1
'
VERBS='create wait sync setup run logs status babysit delete'

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
POLL=${TPU_POLL_SECONDS:-30}
PATIENCE=${TPU_PATIENCE:-40} # polls for which Google may not answer, or a worker lag behind
EXIT_DIVERGED=70 EXIT_PREEMPTED=75 EXIT_USER_ERROR=78 # as in bigjax/errors.py

# shellcheck source=cluster/tpu_babysit.sh
. "$ROOT/cluster/tpu_babysit.sh"

main() {
  parse "$@"
  trap clean_up EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  "verb_$verb"
  exit # and read no more, should this file change while it runs
}

# The command line

parse() {
  verb=${1:-}
  case $verb in
    --help | -h | help) usage && exit ;;
    '') usage >&2 && exit "$EXIT_USER_ERROR" ;;
  esac
  [[ " $VERBS " == *" $verb "* ]] || refuse "unknown verb '$verb': expected one of $VERBS"
  shift
  name='' type='' slices=1 zone='' project='' bucket='' env='' extras='' spot=yes valid_for=6h
  runtime='' retries=5 keep='' dry_run='' follow='' command=()
  while (($#)); do
    case $1 in
      --name=* | --type=* | --slices=* | --zone=* | --project=* | --bucket=* | --env=* | \
        --extras=* | --runtime=* | --retries=*)
        local option=${1%%=*}
        printf -v "${option#--}" %s "${1#*=}" ;;
      --valid-for=*) valid_for=${1#*=} ;;
      --on-demand) spot='' ;;
      --keep) keep=yes ;;
      --follow) follow=yes ;;
      --dry-run) dry_run=yes ;;
      --help | -h) usage && exit ;;
      --) shift && command=("$@") && break ;;
      *) refuse "unknown option '$1' (options are --name=value; the command comes after --)" ;;
    esac
    shift
  done
  check
}

check() {
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    refuse "--name: expected lower-case letters, digits and -, got '$name'"
  [[ $slices =~ ^[1-9][0-9]*$ ]] || refuse "--slices: expected a number from 1 on, got '$slices'"
  [[ $retries =~ ^[0-9]+$ ]] || refuse "--retries: expected a number, got '$retries'"
  bucket=${bucket#gs://}
  [[ $bucket != */* ]] || refuse "--bucket: expected the name of a bucket alone, got '$bucket'"
  local variable
  for variable in ${env//,/ }; do
    [[ $variable =~ ^[A-Za-z_][A-Za-z0-9_]*$ && ${!variable+set} ]] ||
      refuse "--env: expected names of variables that are set here, got '$variable'"
  done
  where=()
  [[ -z $project ]] || where+=("--project=$project")
  [[ -z $zone ]] || where+=("--zone=$zone")
  case $verb in create | setup | babysit) look_up_chip ;; esac
  case $verb in
    run | babysit)
      ((${#command[@]})) || refuse "$verb: what to run is missing: -- bigjax train ..." ;;
  esac
}

look_up_chip() {
  local chip=${type%-*} size=${type##*-} known google image cores
  [[ $chip != tpu7x* ]] || refuse '--type: TPU7x is not to be had here: see cluster/kubernetes_tpu.yaml'
  while read -r known google image cores; do
    if [[ $chip == "$known" && $known && $size =~ ^[1-9][0-9]*$ && $((size % cores)) == 0 ]]; then
      accelerator=$google-$size
      devices=$((slices * size / cores))
      runtime=${runtime:-$image}
      return
    fi
  done <<<"$CHIPS"
  refuse "--type: expected a chip and a size such as v5e-16, v5p-32 or v6e-8, got '$type'"
}

# Saying and calling

say() { echo "$(date +%H:%M:%S) $*" >&2; }

refuse() {
  echo "tpu_setup.sh: $*" >&2
  exit "$EXIT_USER_ERROR"
}

# The words, quoted where a shell needs it.
quoted() {
  local word single="'\\''" space=''
  for word; do
    [[ $word =~ ^[a-zA-Z0-9_./:=@%+,-]+$ ]] || word="'${word//\'/$single}'"
    printf '%s%s' "$space" "$word"
    space=' '
  done
}

call() {
  if [[ $dry_run ]]; then quoted "$@" && echo; else "$@"; fi
}

tpus() { call gcloud compute tpus "$@" ${where[@]+"${where[@]}"}; }

# A sleep that Ctrl-C ends at once.
pause() { sleep "${1:-$POLL}" & wait $!; }

nodes() {
  local i
  if ((slices == 1)); then echo "$name"; else for ((i = 0; i < slices; i++)); do echo "$name-$i"; done; fi
}

# on_slices FUNCTION ARG...: calls FUNCTION SLICE ARG... for every slice, all at once, since they wait
# for one another, and fails if one fails. (gcloud, asked for all nodes, skips those that are gone.)
on_slices() {
  local node pid pids=() failed=0
  for node in $(nodes); do
    if [[ $dry_run ]]; then
      "$1" "$node" "${@:2}"
    else
      "$1" "$node" "${@:2}" &
      pids+=($!)
    fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || failed=1; done
  return "$failed"
}

# Keepalives, so that a VM that vanishes does not hang the command.
ssh_slice() {
  tpus tpu-vm ssh "$1" --worker=all --ssh-flag=-oServerAliveInterval=20 "--command=$2"
}

scp_slice() {
  tpus tpu-vm scp "${@:2}" "$1:.bigjax/" --worker=all --scp-flag=-oServerAliveInterval=20
}

describe_slice() { tpus tpu-vm describe "$1" '--format=value(state)'; }

worker() { on_slices ssh_slice "bash .bigjax/tpu_worker.sh $(quoted "$@")"; }

# What Google says of it

# state KIND NAME FIELD: its state, or MISSING; fails if Google does not answer.
state() {
  local answer
  if answer=$(tpus "$1" describe "$2" "--format=value($3)" 2>&1); then
    grep -xE '[A-Z_]+' <<<"$answer" | tail -n 1
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo MISSING
  else
    echo "$answer" >&2
    return 1
  fi
}

# missing, waiting, ready or lost; fails if Google does not answer. A spot TPU is lost in many ways,
# and a preempted VM may not say so: only ACTIVE with every slice READY is a TPU to run on.
health() {
  local queued node found
  queued=$(state queued-resources "$name" state.state) || return
  case $queued in
    MISSING) echo missing && return ;;
    ACCEPTED | CREATING | WAITING_FOR_RESOURCES | PROVISIONING) echo waiting && return ;;
    ACTIVE) ;;
    *) echo lost && return ;;
  esac
  for node in $(nodes); do
    found=$(state tpu-vm "$node" state) || return
    case $found in
      READY) ;;
      CREATING | STARTING) echo waiting && return ;;
      *) echo lost && return ;;
    esac
  done
  echo ready
}

# Sets found to what health says, asking again while Google does not answer.
ask() {
  local tries
  for ((tries = 0; tries <= PATIENCE; tries++)); do
    if found=$(health); then return; fi
    pause
  done
  say 'Google does not answer'
  return 1
}

# The state of the job over all workers: running, lagging (some died, others run on), none, or the
# exit code that counts: first what no retry mends, then what a retry surely does. Fails without ssh.
job_state() {
  local report states code
  report=$(worker status 2>&1) || { echo "$report" >&2 && return 1; }
  states=$(sed -n 's/^bigjax-job [^ ]* //p' <<<"$report" | sort -u)
  has() { grep -qx "$1" <<<"$states"; }
  for code in "$EXIT_USER_ERROR" "$EXIT_DIVERGED"; do
    if has "exited $code"; then echo "$code" && return; fi
  done
  if has running; then
    if grep -qvx -e running -e 'exited 0' <<<"$states"; then echo lagging; else echo running; fi
  elif has "exited $EXIT_PREEMPTED"; then
    echo "$EXIT_PREEMPTED"
  elif has none || [[ -z $states ]]; then
    echo none
  else
    sed -n 's/^exited //p' <<<"$states" | grep -vx 0 | head -n 1 | grep . || echo 0
  fi
}

# The verbs

verb_create() {
  local node=("--node-id=$name") tier=() found
  if [[ -z $dry_run ]]; then
    ask || return
    [[ $found == missing ]] || refuse "$name is there already, and is $found"
  fi
  ((slices == 1)) || node=("--node-count=$slices" "--node-prefix=$name")
  [[ -z $spot ]] || tier=(--spot)
  ours=yes # until it is there, Ctrl-C takes the request back
  tpus queued-resources create "$name" "${node[@]}" "--accelerator-type=$accelerator" \
    "--runtime-version=$runtime" ${tier[@]+"${tier[@]}"} "--valid-until-duration=$valid_for"
  [[ $verb == babysit && -z $keep ]] || ours=''
}

verb_wait() {
  if [[ $dry_run ]]; then describe && return; fi
  local found before=''
  while ask; do
    [[ $found == "$before" ]] || say "$name is $found"
    before=$found
    case $found in
      ready) return ;;
      missing | lost) return "$EXIT_PREEMPTED" ;;
    esac
    pause
  done
  return 1
}

describe() {
  tpus queued-resources describe "$name" '--format=value(state.state)' &&
    on_slices describe_slice
}

verb_sync() {
  if [[ -z ${stage:-} ]]; then make_stage && pack || return; fi # babysit sends one state of the code
  on_slices ssh_slice 'mkdir -p -m 700 .bigjax' &&
    on_slices scp_slice "$stage/code.tar.gz" "$stage/user.env" "$ROOT/cluster/tpu_worker.sh" &&
    worker unpack
}

make_stage() {
  if [[ $dry_run ]]; then
    stage=${TMPDIR:-/tmp}/bigjax.XXXXXX
    echo "# $stage/user.env, mode 600, holds$(variables | sed 's/^/ /' | tr -d '\n')"
  else
    stage=$(mktemp -d "${TMPDIR:-/tmp}/bigjax.XXXXXX") && (umask 077 && write_variables >"$stage/user.env")
  fi
}

# All that git knows or would know, less what was deleted.
pack() {
  # shellcheck disable=SC2016
  call bash -c 'cd "$1" && git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d "" file; do [ ! -e "$file" ] || printf "%s\0" "$file"; done |
    tar --null --files-from=- --create --gzip --file="$2"' pack "$ROOT" "$stage/code.tar.gz"
}

# Names of the variables to hand over.
variables() {
  local variable
  for variable in ${env//,/ }; do echo "$variable"; done
  for variable in WANDB_API_KEY HF_TOKEN; do
    [[ -z ${!variable:-} || ",$env," == *",$variable,"* ]] || echo "$variable"
  done
}

write_variables() {
  local variable
  for variable in $(variables); do
    # shellcheck disable=SC2016
    case $variable in
      LIBTPU_INIT_ARGS) echo "$variable=\"\${$variable:-} \"$(quoted "${!variable}")" ;; # appended
      *) echo "$variable=$(quoted "${!variable}")" ;;
    esac
  done
}

verb_setup() {
  verb_sync && worker install "tpu${extras:+,$extras}" "$bucket" && worker smoke "$devices"
}

verb_run() { worker start "${command[@]}"; }

verb_logs() {
  local node
  node=$(nodes | head -n 1)
  tpus tpu-vm ssh "$node" --worker=0 "--command=tail -n 100 ${follow:+-F }.bigjax/log"
}

verb_status() { describe && worker status; }

verb_delete() {
  local error
  if [[ $dry_run ]]; then delete && return; fi
  if ! error=$(delete 2>&1) && [[ $error != *NOT_FOUND* ]]; then
    say "$name could not be deleted, and may cost money: $error"
    return 1
  fi
  say "$name is deleted"
}

delete() { tpus queued-resources delete "$name" --force --async --quiet; }

clean_up() {
  local exit_code=$? tries pid
  trap '' HUP INT TERM
  for pid in $(jobs -p); do pkill -P "$pid" || true && kill "$pid" 2>/dev/null || true; done
  [[ -z ${stage:-} || $dry_run ]] || rm -rf "$stage"
  if [[ ${ours:-} && -z $dry_run ]]; then
    for tries in 1 2 3; do
      verb_delete && break
      ((tries == 3)) || sleep "$POLL"
    done
  fi
  exit "$exit_code"
}

main "$@"
