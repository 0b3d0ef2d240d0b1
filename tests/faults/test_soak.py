"""A few of the kills of `tools/soak.py`; how many it stood is in docs/reliability.md."""

import re
import subprocess
import sys

import pytest

from tests.faults.runs import ROOT


@pytest.mark.slow
def test_a_few_kills_leave_no_trace(tmp_path):
    command = [sys.executable, '-m', 'tools.soak', f'--workdir={tmp_path / "soak"}', '--kills=4']
    said = subprocess.run(
        [*command, '--seed=3', '--config.train.steps=60'], cwd=ROOT, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.startswith('4 kills (seed 3) of ')
    assert said.stdout.endswith('verdict: bit-identical\n')
    assert said.stdout == (tmp_path / 'soak' / 'summary.txt').read_text()
    assert len((tmp_path / 'soak' / 'soak.log').read_text().splitlines()) == 4
    assert int(re.search(r'steps done again: (\d+)', said.stdout)[1]) > 0
