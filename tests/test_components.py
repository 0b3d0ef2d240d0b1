"""Components by name: ours, the user's own, and what is said of names that lead nowhere."""

import textwrap

import pytest

from bigjax import components
from bigjax.errors import ConfigError

WHERE = 'config.data.name'
GOOD = """
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Config:
        rows: int = 3

    def load(config):
        return config.rows
"""


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Writes `<package>/part.py` of a package that no other test uses; returns its dotted name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source):
        package = tmp_path / f'own_{tmp_path.name}'
        package.mkdir()
        (package / 'part.py').write_text(textwrap.dedent(source))
        return f'{package.name}.part'

    return write


def fails(name, match, kind='data'):
    with pytest.raises(ConfigError, match=match) as caught:
        components.find(kind, name, WHERE)
    assert '\n' not in str(caught.value)


def test_a_module_of_the_users_own_is_found_and_configured(write_module):
    module = components.find('data', write_module(GOOD), WHERE)
    assert module.load(components.build_config(module, {'rows': 5}, 'config.data')) == 5
    with pytest.raises(ConfigError, match=r"config\.data\.row: did you mean 'rows'"):
        components.build_config(module, {'row': 5}, 'config.data')


def test_an_unknown_name_gets_the_nearest():
    fails('digit', r"unknown config\.data\.name 'digit': did you mean 'digits'")


def test_a_helper_module_is_no_component():
    fails('batches', "unknown config.data.name 'batches'")
    assert 'batches' not in components.names('data')
    assert 'digits' in components.names('data')


@pytest.mark.parametrize('name', ['', '.', 'a..b', '../x', 'a-b'])
def test_a_name_that_cannot_be_a_module(name):
    fails(name, 'expected a name or package.module')


def test_a_missing_package_is_told_from_a_missing_import(write_module):
    fails('no_such_package.part', "no module named 'no_such_package'")
    name = write_module('import no_such_library')
    fails(name, f"{name} imports 'no_such_library', which is not installed")


def test_a_module_that_does_not_import(write_module):
    fails(write_module('def load(:'), 'does not import: SyntaxError')


def test_a_module_without_its_entry_points(write_module):
    name = write_module('Config = None')
    fails(name, 'part.py defines no load;')
    fails(name, 'part.py defines no build;', kind='model')
