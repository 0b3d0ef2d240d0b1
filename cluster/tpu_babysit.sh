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
  local losses=0 crashes=0 began
  outcome=''
  if [[ $(health) == ready && $(job_state) == running ]]; then
    say 'a job is running already: watching it'
    outcome=running
  fi
  while ((losses <= retries && crashes <= retries)); do
    began=$SECONDS
    if [[ $outcome == running ]] || { bring_up && verb_run; }; then watch_job; else outcome=lost; fi
    ((SECONDS - began < HEALTHY)) || losses=0
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
  found=$(health) || return
  if [[ $found == lost ]]; then discard && found=missing; fi
  if [[ $found == missing ]]; then verb_create || return; fi
  verb_wait || return
  for ((tries = 0; tries <= retries; tries++)); do # one worker of many may answer late
    if verb_setup; then return; fi
    [[ $(health) == ready ]] || return
    pause
  done
  return 1
}

# Sets outcome: the exit code of the job; none if a worker forgot it; lost.
watch_job() {
  local deaf=0 mute=0 lagging=0 found
  outcome=lost
  while pause; do
    if ! found=$(health); then
      ((++deaf <= PATIENCE)) || return 0
      continue
    fi
    [[ $found == ready ]] || return 0
    deaf=0
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
  local tries
  say "$name is lost: deleting what is left"
  for ((tries = 0; tries <= PATIENCE; tries++)); do
    if [[ $(health) == missing ]]; then return; fi
    ((tries % 10)) || verb_delete || true
    pause
  done
  return 1
}
