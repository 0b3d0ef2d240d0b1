"""Imports point one way, as docs/architecture.md draws it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'bigjax'


def drawn_layers() -> dict[str, int]:
    """Name of a package or module below bigjax -> its level, from the drawing in the docs."""
    text = (ROOT / 'docs' / 'architecture.md').read_text()
    levels = {}
    for level, names in re.findall(r'^L(\d) {2,}([^\n]*?)(?: {2,}.*)?$', text, flags=re.MULTILINE):
        for name in names.split():
            levels[name.removesuffix('/').removesuffix('.py')] = int(level)
    return levels


LEVELS = drawn_layers()


def unit(path: Path) -> str:
    """The room a file stands in: its package, or the module itself at the top."""
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imported(path: Path) -> set[str]:
    """Rooms of bigjax that a file imports, at its top or inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        else:
            continue
        rooms |= {name.split('.')[1] for name in names if name.startswith('bigjax.')}
    return rooms


FILES = sorted(PACKAGE.rglob('*.py'))


def test_every_room_is_drawn():
    rooms = {unit(path) for path in FILES} - {'__init__'}
    assert rooms == set(LEVELS)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    if path == PACKAGE / '__init__.py':
        return
    here = unit(path)
    above = {room for room in imported(path) if room in LEVELS and LEVELS[room] > LEVELS[here]}
    assert not above, f'{here} (L{LEVELS[here]}) imports {above}'


def test_no_two_rooms_of_a_level_import_each_other():
    edges = {(unit(path), room) for path in FILES for room in imported(path) if room in LEVELS}
    assert not {(a, b) for a, b in edges if a != b and (b, a) in edges}


def test_only_the_command_parses_flags():
    parsers = [path for path in FILES if re.search('ArgumentParser|absl.flags', path.read_text())]
    assert parsers == [PACKAGE / 'cli.py']


def test_experiments_and_configs_are_never_imported():
    for path in FILES:
        assert not re.search(
            r'^(from|import) (configs|experiments)', path.read_text(), re.MULTILINE
        )


def test_the_house_is_small():
    """Lines of code, without blank lines, comments and docstrings."""
    assert sum(map(lines_of_code, FILES)) < 19_000


def lines_of_code(path: Path) -> int:
    text = path.read_text()
    documented = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and line[0] != '#' and n not in documented for n, line in lines)
