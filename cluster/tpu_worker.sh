#!/usr/bin/env bash
# Runs on every worker of a TPU VM; tpu_setup.sh sends it there and calls it. May be repeated at will.
#
#   tpu_worker.sh unpack                    put the code that was sent in ~/bigjax
#   tpu_worker.sh install EXTRAS [BUCKET]   settings, Python 3.12, packages; BUCKET on /mnt/BUCKET
#   tpu_worker.sh smoke COUNT               COUNT devices answer: only now the install counts as done
#   tpu_worker.sh start COMMAND...          end the job before, run COMMAND in tmux
#   tpu_worker.sh status                    'bigjax-job HOST running', '... exited CODE' or '... none'
#   tpu_worker.sh stop                      SIGTERM, which bigjax answers by saving; later SIGKILL
set -euo pipefail

code=$HOME/bigjax
home=$HOME/.bigjax # the environment, and what is known of the job
venv=$home/venv
poll=${TPU_POLL_SECONDS:-2}
patience=${TPU_PATIENCE:-300} # polls
stop_seconds=${TPU_STOP_SECONDS:-120}
export PATH=$venv/bin:$HOME/.local/bin:$PATH

say() { echo "$(hostname): $*"; }

fail() {
  say "$*" >&2
  exit 1
}

# The code

unpack() {
  mkdir -p "$code"
  tar -tzf "$home/code.tar.gz" | sort >"$home/files.new"
  # What was sent before and is no longer there goes; what the user made here, such as runs/, stays.
  if [[ -f $home/files ]]; then
    (cd "$code" && comm -23 "$home/files" "$home/files.new" | tr '\n' '\0' | xargs -0 rm -f)
  fi
  tar -xzf "$home/code.tar.gz" -C "$code"
  mv "$home/files.new" "$home/files"
  chmod 600 "$home/user.env"
}

# The machine

install() {
  local extras=$1 bucket=${2:-}
  stop
  echo "$bucket" >"$home/bucket"
  echo "$extras" >"$home/extras"
  if [[ $(cat "$home/stamp" 2>/dev/null) == "$(fingerprint)" ]]; then
    say 'packages are there already'
  else
    rm -f "$home/stamp"
    install_system "$bucket"
    install_python "$extras"
  fi
  write_environment "$bucket"
  settings
}

# What a new install is needed for.
fingerprint() { cat "$code/pyproject.toml" "$code/constraints.txt" "$home/extras" "$0" | cksum; }

apt_get() {
  local waited=0
  # A VM that has just started updates itself, and holds these locks.
  while sudo fuser /var/lib/dpkg/lock-frontend /var/lib/apt/lists/lock >/dev/null 2>&1; do
    ((waited++ < patience)) || fail 'another process holds the lock of apt'
    sleep "$poll"
  done
  sudo env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=600 "$@"
}

install_system() {
  local bucket=$1
  if ! { command -v tmux && python3 -m pip --version; } >/dev/null 2>&1; then
    apt_get update
    apt_get install tmux python3-pip
  fi
  if [[ $bucket ]] && ! command -v gcsfuse >/dev/null; then
    add_google_packages
    apt_get update
    apt_get install gcsfuse
  fi
}

add_google_packages() {
  local key=/usr/share/keyrings/cloud.google.asc from=https://packages.cloud.google.com/apt release
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  curl -fsS "$from/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $from gcsfuse-$release main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
}

install_python() {
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  uv venv --quiet --clear --python 3.12 "$venv"
  uv pip install --quiet --python "$venv/bin/python" --constraint "$code/constraints.txt" \
    --editable "${code}[$1]"
}

write_environment() {
  local cache=${1:+/mnt/$1/jax_cache}
  cat >"$home/env.sh" <<END
export TPU_PREMAPPED_BUFFER_SIZE=$((16 << 30))
export JAX_COMPILATION_CACHE_DIR='${cache:-$HOME/.cache/bigjax}'
export PYTHONUNBUFFERED=1
END
}

load_environment() {
  # shellcheck source=/dev/null
  set -a && . "$home/env.sh" && . "$home/user.env" && set +a
}

# What a reboot forgets.
settings() {
  local bucket
  bucket=$(cat "$home/bucket")
  echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null
  [[ -z $bucket ]] || mount_bucket "$bucket" "/mnt/$bucket"
}

mount_bucket() {
  mountpoint -q "$2" && return
  sudo mkdir -p "$2"
  sudo chown "$(id -un)" "$2"
  gcsfuse --implicit-dirs --rename-dir-limit=100000 "$1" "$2"
}

smoke() {
  local expected=$1
  load_environment
  clear_lockfile
  timeout 900 python - "$expected" <<'END' || fail 'the smoke test failed'
import sys

import bigjax
import jax

jax.distributed.initialize()
found, expected = jax.device_count(), int(sys.argv[1])
if found != expected:
    sys.exit(f'expected {expected} devices, JAX sees {found}: {jax.devices()}')
print(f'{found} x {jax.devices()[0].device_kind}')
END
  fingerprint >"$home/stamp" # last, so that a half-failed install is tried again
}

# The job

start() {
  stop
  rm -f "$home/exit_code" "$home/pid"
  clear_lockfile
  settings
  printf '%q ' exec bash "$0" job "$@" >"$home/job.sh"
  # shellcheck disable=SC2016 # the shell in tmux expands it
  tmux -L bigjax new-session -d -s job 'exec bash "$HOME/.bigjax/job.sh"'
  local waited=0
  until [[ -f $home/pid ]]; do
    ((waited++ < 100)) || fail 'the job did not start in tmux'
    sleep 0.1
  done
  say "started: $*"
}

job() { # in tmux
  local exit_code=0
  echo "$$ $(born "$$")" >"$home/pid"
  trap : TERM HUP INT # the command gets these too; this shell stays to note how it ends
  load_environment
  ulimit -n 65536 || sudo prlimit --pid "$$" --nofile=65536:65536
  cd "$code"
  echo "--- $(date -u +%FT%TZ) $*" >>"$home/log"
  "$@" >>"$home/log" 2>&1 </dev/null || exit_code=$?
  echo "--- $(date -u +%FT%TZ) exit code $exit_code" >>"$home/log"
  echo "$exit_code" >"$home/exit_code.new"
  mv "$home/exit_code.new" "$home/exit_code"
}

# When a process started, in ticks since boot; nothing if it is gone.
born() { cut -d ' ' -f 22 "/proc/$1/stat" 2>/dev/null || true; }

# Prints the process group of the job if it lives. A pid alone could by now be another's.
job_group() {
  local pid when
  read -r pid when 2>/dev/null <"$home/pid" || return 1
  if [[ -d /proc/$pid ]]; then [[ $(born "$pid") == "$when" ]]; else kill -0 -- "-$pid" 2>/dev/null; fi &&
    echo "$pid"
}

stop() {
  local group deadline=$((SECONDS + stop_seconds))
  group=$(job_group) || return 0
  say "ending the job before, process group $group"
  kill -TERM -- "-$group"
  while kill -0 -- "-$group" 2>/dev/null; do
    if ((SECONDS >= deadline)); then
      say "it did not end within $stop_seconds s: killing it"
      kill -KILL -- "-$group" 2>/dev/null || true
      return
    fi
    sleep 0.2
  done
}

status() {
  if job_group >/dev/null; then
    echo "bigjax-job $(hostname) running"
  elif [[ -f $home/exit_code ]]; then
    echo "bigjax-job $(hostname) exited $(cat "$home/exit_code")"
  else
    echo "bigjax-job $(hostname) none"
  fi
}

clear_lockfile() {
  local lock=${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}
  if [[ -e $lock ]] && ! sudo fuser -s "$lock"; then sudo rm -f "$lock"; fi
}

case ${1:-} in
  unpack | install | smoke | start | job | status | stop) "$@" ;;
  *) fail "unknown: ${1:-}" ;;
esac
