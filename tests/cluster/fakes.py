"""A Google Cloud and TPU VMs that exist only as files, for tpu_setup.sh and tpu_worker.sh."""

import json
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Logs its arguments, and answers as script.json says:
#   lives   for each `create`, the states that `describe` then tells, the last again and again;
#           ['QUOTA'] lets `create` itself fail
#   now     what is there at the start, such as ['ACTIVE'], or null
#   nodes   the states of the TPU VMs, likewise
#   ssh     {part of a command: how often it fails}; the error is that of one worker of many
#   hang    part of a command over ssh that takes for ever
#   jobs    what `tpu_worker.sh status` says, likewise, workers separated by commas; 'FAIL' is ssh's
#   down    how often Google does not answer
#   vms     workers to a slice, which then really run what ssh and scp bring
GCLOUD = r"""#!{python} -IS
import fcntl, json, os, sys, time

os.chdir({here!r})
argv = sys.argv[1:]
lock = open('lock', 'w')
fcntl.flock(lock, fcntl.LOCK_EX)
script = json.load(open('script.json'))

def note(file, what):
    with open(file, 'a') as log:
        log.write(json.dumps(what) + '\n')

def save():
    with open('script.new', 'w') as file:
        json.dump(script, file)
    os.replace('script.new', 'script.json')
    fcntl.flock(lock, fcntl.LOCK_UN)

def leave(code, out='', err=''):
    save()
    sys.stderr.write(err)
    sys.stdout.write(out)
    sys.exit(code)

def following(states):
    return states.pop(0) if len(states) > 1 else states[0]

def homes(node):
    workers = range(script['vms']) if flags['worker'] == 'all' else [int(flags['worker'])]
    return [f'{{os.getcwd()}}/vms/{{node}}-{{worker}}' for worker in workers if script['vms']]

flags = dict(word[2:].split('=', 1) for word in argv if word.startswith('--') and '=' in word)
hangs = script['hang'] and script['hang'] in flags.get('command', '')
if hangs:
    note('hanging', os.getpid())
note('calls.jsonl', argv)
kind, verb, words = argv[2], argv[3], [word for word in argv[4:] if not word.startswith('--')]
if script['down']:
    script['down'] -= 1
    leave(1, err='ERROR: UNAVAILABLE: try again later\n')
if verb == 'create':
    script['now'] = script['lives'].pop(0)
    if script['now'] == ['QUOTA']:
        script['now'] = None
        leave(1, err='ERROR: Quota limit exceeded\n')
    if script['now'] == ['HANG']:
        save()
        time.sleep(60)
    leave(0)
if script['now'] is None:
    leave(1, err='ERROR: NOT_FOUND: Resource was not found\n')
if verb == 'delete':
    script['now'] = None
    leave(0)
if verb == 'describe':
    states = script['now' if kind == 'queued-resources' else 'nodes']
    leave(0, following(states) + '\n', 'WARNING: an update is there\n')
if verb == 'scp':
    import shutil

    *sources, target = words
    node, _, folder = target.partition(':')
    for source in sources:
        note('sent.jsonl', [os.path.basename(source), oct(os.stat(source).st_mode & 0o777)])
        if source.endswith('.env'):
            shutil.copy(source, '.')
        for home in homes(node):
            shutil.copy(source, f'{{home}}/{{folder}}')
    leave(0)
command = flags['command']
if hangs:
    save()
    time.sleep(60)
for part in script['ssh']:
    if part in command and script['ssh'][part]:
        script['ssh'][part] -= 1
        leave(255, err='##### Command execution on worker 1 failed with exit status 255.\n')
if script['jobs'] and command.endswith('tpu_worker.sh status'):
    said = following(script['jobs'])
    if said == 'FAIL':
        leave(255)
    workers = enumerate(said.split(','))
    leave(0, ''.join(f'bigjax-job host{{i}} {{state}}\n' for i, state in workers))
save()
failed = 0
for home in homes(words[0]):
    import subprocess

    os.makedirs(home, exist_ok=True)
    there = dict(os.environ, HOME=home, PATH=f'{{os.getcwd()}}/vm_bin:/usr/bin:/bin')
    failed = subprocess.run(['sh', '-c', command], cwd=home, env=there).returncode or failed
sys.exit(failed)
"""
NOTHING = {
    'lives': [], 'now': None, 'nodes': ['READY'], 'ssh': {}, 'hang': '', 'jobs': [], 'down': 0,
    'vms': 0,
}  # fmt: skip


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Cloud:
    """A folder with a fake `gcloud`, its script and the log of its calls."""

    def __init__(self, here: Path, **script):
        self.here = here
        self.script(**script)
        executable(here / 'bin' / 'gcloud', GCLOUD.format(python=sys.executable, here=str(here)))

    def script(self, **script):
        (self.here / 'script.json').write_text(json.dumps(NOTHING | script))

    def environment(self, **more):
        (self.here / 'tmp').mkdir(exist_ok=True)
        return {
            'PATH': f'{self.here / "bin"}:/usr/bin:/bin',
            'HOME': str(self.here),
            'TMPDIR': str(self.here / 'tmp'),
            'TPU_POLL_SECONDS': '0.01',
            'TPU_PATIENCE': '3',
            **more,
        }

    def run(self, *arguments, **environment) -> subprocess.CompletedProcess:
        """tpu_setup.sh with these arguments; --name is given, and --type where it matters."""
        return subprocess.run(
            command(*arguments), env=self.environment(**environment),
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def calls(self) -> list[list[str]]:
        """The arguments of each call of gcloud, less `compute tpus`."""
        log = self.here / 'calls.jsonl'
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line)[2:] for line in lines]

    def steps(self) -> list[str]:
        """What was called, in words: create, describe, scp, delete, and the worker's verbs."""
        return [step(call) for call in self.calls()]


def command(verb: str, *arguments: str) -> list[str]:
    kind = [] if any(word.startswith('--type') for word in arguments) else ['--type=v6e-8']
    return ['bash', str(ROOT / 'tpu_setup.sh'), verb, '--name=lm', *kind, *arguments]


def step(call: list[str]) -> str:
    for word in call:
        if word.startswith('--command=bash .bigjax/tpu_worker.sh '):
            return word.split()[2]
    return call[1] if call[0] == 'queued-resources' or call[1] != 'describe' else 'describe-vm'


# What a VM has: a package manager, a Python, uv; each notes what it was asked, none does it.
SUDO = """#!/bin/sh
echo "sudo $*" >>"$HOME/asked"
case $1 in
  tee) cat >/dev/null ;;
  fuser) [ "$2" != -s ] && [ -s "$HOME/apt_busy" ] && sed -i 1d "$HOME/apt_busy" ;;
  rm) exec "$@" ;;
  mkdir | chown) ;;
  env) shift 2 && exec "$@" ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >>"$HOME/asked"
[ ! -e "$HOME/uv_fails" ] || {{ rm "$HOME/uv_fails"; exit 1; }}
case $1 in
  venv)
    rm -rf "$HOME/.bigjax/venv" && mkdir -p "$HOME/.bigjax/venv/bin"
    cp {python} "$HOME/.bigjax/venv/bin/python" ;;
esac
"""
# The smoke test's Python: as many devices as the file says.
PYTHON = """#!/bin/sh
cat >/dev/null
[ "$2" = "$(cat "$HOME/devices")" ]
"""
# A terminal multiplexer that only starts the command.
TMUX = """#!/bin/sh
echo tmux >>"$HOME/asked"
shift 6
setsid sh -c "$1" >/dev/null 2>&1 </dev/null &
"""
QUIET = '#!/bin/sh\necho "{name} $*" >>"$HOME/asked"\n'


def vm_tools(folder: Path, tmux: str = TMUX) -> None:
    for name in ('apt-get', 'gcsfuse', 'python3'):
        executable(folder / name, QUIET.format(name=name))
    executable(folder / 'mountpoint', '#!/bin/sh\nexit 1\n')
    executable(folder / 'sudo', SUDO)
    executable(folder / 'tmux', tmux)
    executable(folder / 'smoke_python', PYTHON)
    executable(folder / 'uv', UV.format(python=folder / 'smoke_python'))


def asked(home: Path) -> list[str]:
    log = home / 'asked'
    return log.read_text().splitlines() if log.exists() else []


def lives(process: int) -> bool:
    """Whether a process is there and not only waiting to be reaped."""
    try:
        return Path(f'/proc/{process}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False
