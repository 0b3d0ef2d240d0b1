"""Tables of runs: what is read, what is refused and how."""

import numpy as np
import pytest

from bigjax.errors import ConfigError, DataError
from bigjax.study.fits import table

GOOD = 'params,tokens,flops,loss\n1e7,1e9,7e16,3.5\n2e7,1e9,1.4e17,3.2\n'


def write(tmp_path, text):
    path = tmp_path / 'runs.csv'
    path.write_text(text)
    return path


def test_columns_by_name(tmp_path):
    path = write(tmp_path, 'N,D,x,nats,C\n1e7,1e9,a,3.5,7e16\n2e7,1e9,b,3.2,1.4e17\n')
    found = table.read(path, 'N', 'D', 'nats', flops='C', curve='x')
    assert found.params.tolist() == [1e7, 2e7]
    assert found.flops.tolist() == [7e16, 1.4e17]
    assert found.curve.tolist() == ['a', 'b']
    assert found.cost == pytest.approx(7)
    assert found.convention == "column 'C'"


def test_flops_are_six_nd_only_where_that_is_said(tmp_path):
    path = write(tmp_path, GOOD)
    assert table.flops_column(path) == 'flops'
    found = table.read(path)
    assert found.flops.tolist() == [6e16, 1.2e17]
    assert 'assumed' in found.convention
    assert table.flops_column(write(tmp_path, 'params,tokens,loss\n')) == '6ND'


def test_rows_of_one_setting(tmp_path):
    path = write(tmp_path, 'params,tokens,loss,set\n1,2,3,a\n4,5,6,b\n')
    assert table.read(path, where=[('set', 'b')]).params.tolist() == [4]
    with pytest.raises(DataError, match='no rows with set=c'):
        table.read(path, where=[('set', 'c')])
    assert table.condition('set=b=c') == ('set', 'b=c')
    with pytest.raises(ConfigError, match=r'--where: expected COLUMN=VALUE'):
        table.condition('set')


def test_runs_of_a_ledger_without_a_result_are_skipped_and_counted(tmp_path):
    path = write(tmp_path, 'status,params,tokens,loss\ndiverged,1,2,\nfinished,1,2,3\nrunning,,,\n')
    found = table.read(path)
    assert (len(found.loss), found.skipped) == (1, 2)
    with pytest.raises(DataError, match=r"line 2, column 'loss': .* got ''"):
        table.read(write(tmp_path, 'status,params,tokens,loss\nfinished,1,2,\n'))


@pytest.mark.parametrize('cell', ['', 'nan', 'inf', '-1', '0', 'many', '1e999'])
@pytest.mark.parametrize('column', range(4))
def test_bad_cells(tmp_path, column, cell):
    lines = GOOD.splitlines()
    cells = lines[2].split(',')
    name, cells[column] = lines[0].split(',')[column], cell
    path = write(tmp_path, '\n'.join([*lines[:2], ','.join(cells)]))
    with pytest.raises(DataError, match=rf'runs\.csv line 3, column {name!r}: expected a finite'):
        table.read(path, flops='flops')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', "no column 'params'"),
        ('param,tokens,loss\n1,2,3\n', "no column 'params'; did you mean 'param'"),
        ('params,tokens,loss\n1,2\n', 'line 2: expected 3 cells'),
        ('params,tokens,loss\n1,2,3,4\n', 'line 2: expected 3 cells'),
        ('params,tokens,loss,loss\n1,2,3,4\n', "two columns 'loss'"),
        ('params,tokens,loss\n', 'no rows with a loss'),
    ],
)
def test_bad_tables(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        table.read(write(tmp_path, text))


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match='cannot read'):
        table.read(tmp_path / 'nowhere.csv')
    (tmp_path / 'binary.csv').write_bytes(b'\xff\xfe\x00' * 9)
    with pytest.raises(DataError, match='cannot read'):
        table.read(tmp_path / 'binary.csv')


def test_arrays_are_checked_too():
    ones = np.ones(3)
    with pytest.raises(DataError, match='loss of row 1: expected a finite number above 0'):
        table.runs(ones, ones, np.array([1, np.nan, 1]))
    with pytest.raises(DataError, match='tokens: expected'):
        table.runs(ones, np.ones(2), ones)


def test_budgets_are_told_apart_by_gaps():
    flops = np.array([1e18, 3e18, 1.02e18, 2.95e18, 1e20])
    found, which = table.budgets(flops)
    assert which.tolist() == [0, 1, 0, 1, 2]
    assert found == pytest.approx([1.00995e18, 2.97489e18, 1e20], rel=1e-5)
