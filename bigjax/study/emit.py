"""A sweep as a script for machines elsewhere: an array of SLURM, or TPUs one after the other.

Each run goes through `cluster/slurm.sh` or `tpu_setup.sh babysit`, which go by its exit code. What
came of them enters the ledger with `bigjax sweep NAME --jobs=0`.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from bigjax.errors import ConfigError
from bigjax.study import ledger
from bigjax.study.jobs import Job

SLURM = Path('cluster/slurm.sh')
OF_ONE_JOB = ('--job-name', '--output')

SLURM_SCRIPT = """\
#!/usr/bin/env bash
# {count} runs, each a task of the array; from the folder of the checkout: sbatch {file}
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --output={name}-%A_%a.log
{options}
set -euo pipefail

case ${{SLURM_ARRAY_TASK_ID:?}} in
{cases}
  *) echo "no run $SLURM_ARRAY_TASK_ID" >&2 && exit 78 ;;
esac
exec bash {slurm} "$@"
"""

TPU_SCRIPT = """\
#!/usr/bin/env bash
# {count} runs, each on a TPU of its own, JOBS at a time; from the folder of the checkout:
#   JOBS=1 bash {file} --type=v5e-4 --bucket=MY-BUCKET
set -euo pipefail

if [[ ${{1:-}} == --* || $# == 0 ]]; then
  printf '%s\\n' {ids} | xargs -P "${{JOBS:-1}}" -I '{{}}' bash "$0" '{{}}' "$@"
  exit
fi
id=$1 options=("${{@:2}}")
case $id in
{cases}
esac
exec ./tpu_setup.sh babysit --name={name}-"$id" "${{options[@]}}" -- bigjax train "$@"
"""


def write(kind: str, jobs: Sequence[Job], study: Path, out: Path) -> Path:
    """The script, in `out`, for the `jobs` that have no result yet. Raises: ConfigError."""
    known = ledger.read(study)
    jobs = [job for job in jobs if known.get(job.id, {}).get('event') not in ledger.RESULTS]
    if not jobs:
        raise ConfigError(f'all runs of {study} have a result: nothing to emit')
    path = out / f'{study.name}.{kind}.sh'
    keys = range(len(jobs)) if kind == 'slurm' else [job.id for job in jobs]
    flags = [shlex.join(job.arguments(study)) for job in jobs]
    cases = [f'  {key}) set -- {words} ;;' for key, words in zip(keys, flags, strict=True)]
    values = {
        'count': len(jobs),
        'last': len(jobs) - 1,
        'ids': ' '.join(job.id for job in jobs),
        'file': shlex.quote(str(path)),
        'name': re.sub('[^a-z0-9-]', '-', study.name.lower()),  # as Google wants it
        'cases': '\n'.join(cases),
    }
    if kind == 'slurm':
        values |= {'slurm': SLURM, 'options': _options()}
    out.mkdir(parents=True, exist_ok=True)
    path.write_text({'slurm': SLURM_SCRIPT, 'tpu': TPU_SCRIPT}[kind].format(**values))
    return path


def _options() -> str:
    """The lines of cluster/slurm.sh for sbatch, but for those of one job. Raises: ConfigError."""
    if not SLURM.is_file():
        raise ConfigError(f'no {SLURM} here; expected to be in the folder of the checkout')
    lines = [line for line in SLURM.read_text().splitlines() if line.startswith('#SBATCH ')]
    return '\n'.join(line for line in lines if not line.split()[1].startswith(OF_ONE_JOB))
