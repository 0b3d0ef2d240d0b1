"""The command, on targets that need no other compiler than the CPU's."""

import json

import pytest
from PIL import Image

from bigjax import cli
from bigjax.plan import ask, targets

TINY = ['plan', '--config=configs/llama.py:tiny', '--config.model.layers=1']


def width(picture):
    with Image.open(picture) as image:
        return image.width


def test_on_a_cpu(tmp_path, capsys):
    out = tmp_path / 'plan'
    assert cli.main([*TINY, '--topology=cpu:4', f'--out={out}', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / 'plan.json').read_text())
    step = found['step']
    assert step['mesh']['fsdp'] == 4
    assert step['peak'] == sum(step['memory'].values())
    assert (step['fits'], found['is_estimate']) == (True, False)
    assert 'roofline' not in step  # of which a CPU has none here
    text = (out / 'plan.txt').read_text()
    assert all(word in text for word in ('parameters', 'temporaries', 'all-gather', 'fsdp'))
    assert width(out / 'memory.png') > 600


def test_an_estimate_for_a_chip_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(targets, 'is_installed', lambda platform: False)
    arguments = [*TINY, '--topology=v5e:2x2', '--tokens=1e9', '--price=1.5', '--no_largest_batch']
    assert cli.main([*arguments, f'--out={tmp_path}']) == 0
    text = ' '.join(capsys.readouterr().out.split())
    assert 'ESTIMATE' in text
    assert 'extra plan)' in text
    found = json.loads((tmp_path / 'plan.json').read_text())
    step = found['step']
    line, most, least = step['roofline'], step['at_most'], step['at_least']
    assert line['seconds'] == max(line[name] for name in ('compute', 'memory', 'links', 'network'))
    assert line['seconds'] == line[line['binds']]
    assert most['tokens_per_second'] == pytest.approx(16 * 128 / line['seconds'])
    assert most['mfu'] <= 1
    assert least['hours'] == pytest.approx(1e9 / most['tokens_per_second'] / 3600)
    assert least['price'] == pytest.approx(least['hours'] * 4 * 1.5)
    assert width(tmp_path / 'roofline.png') > 600


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--topology=v9:4x4'], 'known:'),
        (['--topology=cpu:4', '--search'], 'name a chip'),
        (['--topology=cpu:4', '--tokens=1e9'], 'go together'),
        (['--topology=cpu:4', '--tokens=1e9', '--price=-1'], 'above 0'),
        (['--topology=cpu:4', '--max_compilations=0'], 'at least 1'),
        (['--topology=cpu:4', '--config.mesh.fsdp=3'], 'meshes that fit'),
    ],
)
def test_refusals_take_a_line(arguments, says, capsys):
    assert cli.main([*TINY, *arguments]) == 78
    lines = [line for line in capsys.readouterr().err.splitlines() if 'compiling for' not in line]
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.slow
def test_a_search_from_end_to_end(capsys, monkeypatch):
    monkeypatch.setattr(targets, 'is_installed', lambda platform: False)
    asked = []
    compile = ask.ask
    monkeypatch.setattr(
        'bigjax.plan.plan.ask', lambda *args: asked.append(args[0]) or compile(*args)
    )
    arguments = ['--topology=v5e:1x2', '--search', '--max_compilations=2', '--json']
    assert cli.main([*TINY, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(asked) == 3  # the config's own, too
    rates = [row['at_most']['tokens_per_second'] for row in found['search']]
    assert rates == sorted(rates, reverse=True)
    assert len(rates) == 3
