"""What the README shows is there."""

import re
from pathlib import Path

import pytest

from bigjax import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


@pytest.mark.parametrize('link', sorted(set(re.findall(r'\]\(([\w./]+)\)', README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).is_file()


@pytest.mark.parametrize('config', sorted(set(re.findall(r'configs/\w+\.py', README))))
def test_configs_exist(config):
    assert (ROOT / config).is_file()


def test_the_mistake_is_answered_as_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, answer = re.search(r'\$ bigjax (train .*lerning.*)\n(.*)', README).groups()
    flags = command.replace('runs/x', str(tmp_path)).split()
    assert cli.main(flags) == 78
    assert capsys.readouterr().err.strip() == answer


def test_the_table_of_results_is_that_of_the_configs():
    for score in re.findall(r'\| ([\d.]+) ± [\d.]+ \|', README):
        assert any(score in path.read_text() for path in (ROOT / 'configs').glob('*.py')), score
