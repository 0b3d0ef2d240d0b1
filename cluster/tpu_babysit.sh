# shellcheck shell=bash disable=SC2154 # part of tpu_setup.sh, which has the verbs and the options
# Keeping a job going: the verb babysit.

HEALTHY=${TPU_HEALTHY_SECONDS:-600} # a job that ran so long was no failed attempt

verb_babysit() {
  if [[ $dry_run ]]; then
    verb_create && verb_wait && verb_setup && verb_run && verb_status
    [[ $keep ]] || delete
    return
  fi
  [[ $keep ]] || ours=yes
  local losses=0 crashes=0 began outcome='' found
  ask
  if [[ $found == ready && $(job_state) == running ]]; then
    say 'a job is running already: watching it'
    outcome=running
  fi
  while ((losses <= retries && crashes <= retries)); do
    if [[ $outcome == running ]] || { bring_up && verb_run; }; then
      began=$SECONDS
      watch_job
      ((SECONDS - began < HEALTHY)) || losses=0
    else
      outcome=lost
    fi
    say "the job: $outcome"
    case $outcome in
      0 | "$EXIT_USER_ERROR" | "$EXIT_DIVERGED") verb_logs || true && return "$outcome" ;;
      "$EXIT_PREEMPTED") losses=$((losses + 1)) ;;
      lost) losses=$((losses + 1)) && discard || return 1 ;;
      *) crashes=$((crashes + 1)) && verb_logs || true ;;
    esac
    pause
  done
  say "giving up after $losses losses in a row and $crashes crashes"
  return 1
}

bring_up() {
  local found tries
  ask || return
  if [[ $found == lost ]]; then discard && found=missing; fi
  if [[ $found == missing ]]; then verb_create || return; fi
  verb_wait || return
  for ((tries = 0; tries <= retries; tries++)); do # one worker of many may answer late
    if verb_setup; then return; fi
    ask && [[ $found == ready ]] || return
    pause
  done
  return 1
}

# Sets outcome: the exit code of the job; none if a worker forgot it; lagging; lost.
watch_job() {
  local mute=0 lagging=0 found
  outcome=lost
  while pause; do
    ask && [[ $found == ready ]] || return 0
    if ! found=$(job_state); then
      ((++mute <= retries)) || return 0
      continue
    fi
    mute=0
    case $found in
      running) lagging=0 ;;
      lagging) ((++lagging <= PATIENCE)) || break ;;
      *) break ;;
    esac
  done
  outcome=$found
}

# Leftovers eat quota, and hold the name.
discard() {
  local tries found
  say "$name is lost: deleting what is left"
  for ((tries = 0; tries <= PATIENCE; tries++)); do
    ask || return
    [[ $found != missing ]] || return 0
    ((tries % 10)) || verb_delete || true
    pause
  done
  return 1
}
