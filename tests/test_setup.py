"""The way from a clone to a working .venv: pinned versions, tools/setup.sh, the Makefile."""

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
PINS = [
    Requirement(line)
    for line in (ROOT / 'constraints.txt').read_text().splitlines()
    if line and not line.lstrip().startswith('#')
]


# Under test


def test_eight_devices():
    assert jax.device_count() == 8


def test_silent_broadcasting_raises():
    with pytest.raises(ValueError, match='rank_promotion'):
        jnp.ones(3) + jnp.ones((3, 1))


# Versions


def pins(python: str, system: str = 'linux') -> dict[str, str]:
    """{package: version} that constraints.txt gives on that Python."""
    there = {'python_full_version': f'{python}.0', 'python_version': python, 'sys_platform': system}
    chosen = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(there)]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in chosen}
    assert len(versions) == len(chosen), 'a package is pinned twice'
    return {name: version.removeprefix('==') for name, version in versions.items()}


@pytest.mark.parametrize(
    ('python', 'jax_version', 'flax_version'),
    [('3.11', '0.10.2', '0.12.8'), ('3.12', '0.12.0', '0.12.12'), ('3.13', '0.12.0', '0.12.12')],
)
def test_each_python_gets_its_jax(python, jax_version, flax_version):
    versions = pins(python)
    assert (versions['jax'], versions['jaxlib']) == (jax_version, jax_version)
    assert versions['flax'] == flax_version


@pytest.mark.parametrize('system', ['linux', 'darwin'])
@pytest.mark.parametrize('python', ['3.11', '3.12', '3.13'])
def test_everything_declared_is_pinned_within_its_bounds(python, system):
    versions = pins(python, system)
    extras, declared = PROJECT['optional-dependencies'], [*PROJECT['dependencies']]
    for extra in extras.keys() - {'cuda', 'tpu'}:  # what those need, jax pins itself
        declared += extras[extra]
    for needed in map(Requirement, declared):
        assert needed.specifier.contains(versions[canonicalize_name(needed.name)])


def test_no_registry_is_named():
    text = (ROOT / 'constraints.txt').read_text()
    assert not re.search(r'://|--\w*index|--find-links|--trusted-host', text)


def test_every_import_is_declared():
    owners = metadata.packages_distributions()
    declared = [PROJECT['dependencies'], *PROJECT['optional-dependencies'].values()]
    known = {canonicalize_name(Requirement(text).name) for text in chain.from_iterable(declared)}
    for path in (ROOT / 'bigjax').rglob('*.py'):
        for module in imported(path) - sys.stdlib_module_names - {'bigjax'}:
            packages = {canonicalize_name(name) for name in owners.get(module, [module])}
            assert packages & known, f'{path} imports {module}, which pyproject.toml does not name'


def imported(path: Path) -> set[str]:
    """The top-level names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.partition('.')[0] for name in names}


# tools/setup.sh, with an interpreter that installs nothing but notes that it was asked to

FAKE_PYTHON = r"""#!/bin/sh
case "$*" in
  *_base_executable*) echo "$0" ;;
  *base_prefix*) echo {version} ;;
  *ensurepip*) exec '{python}' "$@" ;;
  -V) echo Python {version} ;;
  '-m venv'*)
    mkdir -p .venv/bin
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$0" >.venv/bin/python
    chmod +x .venv/bin/python ;;
  '-m pip'*) echo install >>installs; [ -z "$PIP_SAYS" ] || {{ echo "$PIP_SAYS"; exit 1; }} ;;
esac
"""
BROKEN_PYTHON = '#!/bin/sh\necho "pyenv: command not found" >&2\nexit 127\n'
NAMES = ('python3.13', 'python3.12', 'python3.11', 'python3', 'python')


@pytest.fixture
def checkout(tmp_path):
    """The files that setup needs, in a folder whose name has a space."""
    folder = tmp_path / 'my clone'
    (folder / 'tools').mkdir(parents=True)
    shutil.copy(ROOT / 'tools' / 'setup.sh', folder / 'tools')
    for name in ('pyproject.toml', 'constraints.txt'):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def bin_folder(tmp_path):
    """A folder in which no name of a Python leads to one that runs."""
    for name in NAMES:
        executable(tmp_path / 'bin' / name, BROKEN_PYTHON)
    return tmp_path / 'bin'


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def fake_python(path: Path, version: str = '3.12.1') -> Path:
    return executable(path, FAKE_PYTHON.format(python=sys.executable, version=version))


def setup(checkout, bin_folder, *arguments, pip_says=''):
    environment = {
        'PATH': f'{bin_folder}{os.pathsep}{os.environ["PATH"]}',
        'PIP_SAYS': pip_says,
    }
    return subprocess.run(
        ['sh', 'tools/setup.sh', *arguments],
        cwd=checkout, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def installs(checkout) -> int:
    log = checkout / 'installs'
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_setup_installs_once(checkout, bin_folder):
    fake_python(bin_folder / 'python3.11')
    for _ in range(2):
        assert setup(checkout, bin_folder).returncode == 0
        assert installs(checkout) == 1


def test_setup_is_repeated_when_packages_or_place_change(checkout, bin_folder):
    fake_python(bin_folder / 'python3.11')
    setup(checkout, bin_folder)
    with (checkout / 'constraints.txt').open('a') as file:
        file.write('# another pin\n')
    setup(checkout, bin_folder)
    assert installs(checkout) == 2
    moved = checkout.rename(checkout.with_name('moved'))
    setup(moved, bin_folder)
    assert installs(moved) == 3


def test_setup_keeps_the_python_of_venv_until_another_is_named(checkout, bin_folder):
    fake_python(bin_folder / 'other', '3.12.1')
    setup(checkout, bin_folder, 'other')
    fake_python(bin_folder / 'python3.13', '3.13.0')
    setup(checkout, bin_folder)
    assert installs(checkout) == 1
    setup(checkout, bin_folder, 'python3.13')
    assert installs(checkout) == 2


def test_failed_install_says_so_in_a_line_and_is_tried_again(checkout, bin_folder):
    fake_python(bin_folder / 'python3')
    failed = setup(checkout, bin_folder, pip_says='  ERROR: No matching distribution found for jax')
    assert failed.returncode != 0
    assert len(failed.stderr.splitlines()) == 1
    assert 'registry' in failed.stderr
    assert 'ERROR: No matching distribution found for jax' in failed.stderr
    assert setup(checkout, bin_folder).returncode == 0
    assert installs(checkout) == 2


def test_no_python_that_fits(checkout, bin_folder):
    failed = setup(checkout, bin_folder)
    assert failed.returncode != 0
    assert len(failed.stderr.splitlines()) == 1
    assert 'Python 3.11 to 3.13' in failed.stderr
    assert not (checkout / '.venv').exists()


def test_named_python_that_does_not_fit(checkout, bin_folder):
    fake_python(bin_folder / 'python3.11')
    failed = setup(checkout, bin_folder, 'python3.13')
    assert failed.returncode != 0
    assert len(failed.stderr.splitlines()) == 1
    assert 'PYTHON=python3.13' in failed.stderr


# The Makefile


@pytest.mark.parametrize(
    ('variables', 'command'),
    [
        ([], '--config=configs/digits_cnn.py --workdir=runs/digits_cnn'),
        (['CONFIG=a/b.py:small'], '--config=a/b.py:small --workdir=runs/b-small'),
        (['WORKDIR=w', 'ARGS=--config.seed=1'], '--workdir=w --config.seed=1'),
    ],
    ids=['default', 'config', 'workdir'],
)
def test_make_train(variables, command):
    dry_run = ['make', '--dry-run', 'train', *variables]
    planned = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'tools/setup.sh' in planned
    assert command in planned
