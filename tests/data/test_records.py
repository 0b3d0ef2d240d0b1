"""Records of every format, and what is said of those that are malformed."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from bigjax.data import records
from bigjax.errors import ConfigError, DataError

ROWS = [{'text': 'one ünd', 'label': 3}, {'text': 'two, "quoted"', 'label': 4}]
PAIRS = [(row['text'], row['label']) for row in ROWS]


def read(path, columns=('text', 'label'), split='train', **options):
    return [
        record
        for part in records.find([str(path)], **options)[split]
        for record in part.read(columns)
    ]


def test_json_lines(tmp_path):
    lines = '\n\n'.join(map(json.dumps, ROWS)).encode()
    (tmp_path / 'a.jsonl').write_bytes(lines)
    (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(lines))
    assert read(tmp_path / 'a.jsonl') == PAIRS
    assert read(tmp_path / 'b.jsonl.gz') == PAIRS
    assert read(tmp_path / '*.jsonl*', ('label',)) == [(3,), (4,)] * 2


def test_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / 'a.parquet')
    assert read(tmp_path / 'a.parquet') == PAIRS
    with pytest.raises(ConfigError, match=r"no column 'texts'; did you mean 'text'"):
        read(tmp_path / 'a.parquet', ('texts',))
    (tmp_path / 'a.parquet').write_bytes(b'not parquet at all')
    with pytest.raises(DataError, match=r'a\.parquet cannot be read'):
        read(tmp_path / 'a.parquet')


def test_tables_with_and_without_a_header(tmp_path):
    (tmp_path / 'a.csv').write_text('label,text\n3,one ünd\n4,"two, ""quoted"""\n')
    (tmp_path / 'b.csv').write_text('3,one ünd\n4,"two, ""quoted"""\n')
    (tmp_path / 'c.tsv').write_text('label\ttext\n3\t"one\n')
    expected = [(text, str(label)) for text, label in PAIRS]
    assert read(tmp_path / 'a.csv') == expected
    assert read(tmp_path / 'b.csv', (1, 0)) == expected
    assert read(tmp_path / 'a.csv', (1, 0), header=True) == expected
    assert read(tmp_path / 'c.tsv') == [('"one', '3')]
    (tmp_path / 'b.csv').write_text('3,a\n4,b,c\n')
    with pytest.raises(DataError, match=r'b\.csv line 2: expected 2 values, got 3'):
        read(tmp_path / 'b.csv', (1, 0))
    with pytest.raises(ConfigError, match="no column 'body'"):
        read(tmp_path / 'a.csv', ('body',))


def test_documents_of_plain_text(tmp_path):
    (tmp_path / 'a.txt').write_text('one\ntwo\n\n \nthree\n')
    assert read(tmp_path / 'a.txt', document='file') == [('one\ntwo\n\n \nthree\n',)]
    assert read(tmp_path / 'a.txt', document='line') == [('one',), ('two',), ('three',)]
    assert read(tmp_path / 'a.txt', document='paragraph') == [('one\ntwo',), ('three\n',)]


def test_splits_in_a_path(tmp_path):
    for name in ('train', 'dev', 'test'):
        (tmp_path / f'{name}.txt').write_text(name)
    parts = records.find([str(tmp_path / '{split}.txt')])
    assert list(parts) == ['train', 'val', 'test']
    assert read(tmp_path / '{split}.txt', split='val') == [('dev',)]
    (tmp_path / 'train.txt').unlink()
    with pytest.raises(DataError, match=r"no file matches '.*train\.txt'"):
        records.find([str(tmp_path / '{split}.txt')])


def test_hugging_face(tmp_path):
    datasets = pytest.importorskip('datasets', reason='an extra: bigjax[hf]')
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / 'one')
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / 'two')
    assert read(f'hf:{tmp_path}/one') == PAIRS
    assert read(f'hf:{tmp_path}/two', split='test') == PAIRS
    first, again = (records.find([f'hf:{tmp_path}/one'])['train'][0].key for _ in range(2))
    assert first == again
    with pytest.raises(ConfigError, match="no column 'body'"):
        read(f'hf:{tmp_path}/one', ('body',))


def test_malformed_lines_are_named(tmp_path):
    file = tmp_path / 'a.jsonl'
    for content, message in (
        (b'{"text": "a"}\n{"text": ', r'a\.jsonl line 2: expected a JSON object'),
        (b'{"text": "a"}\n[1]', r"line 2: expected a JSON object, got '\[1\]'"),
        (b'{"text": "\xf6"}', r'line 1: invalid UTF-8 at byte 10 \(0xf6\)'),
        (b'{"body": "a"}', r"line 1: no value for 'text'; known: body"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read(file, ('text',))
    (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(b'{"text": "a"}' * 99)[:-9])
    with pytest.raises(DataError, match='cannot be read'):
        read(tmp_path / 'b.jsonl.gz', ('text',))
    (tmp_path / 'b.txt').write_bytes('größe'.encode('latin-1'))
    with pytest.raises(DataError, match=r'b\.txt: invalid UTF-8 at byte 2 \(0xf6\)'):
        read(tmp_path / 'b.txt')
    (tmp_path / 'c.txt.gz').touch()
    with pytest.raises(DataError, match=r'only \.jsonl\.gz is read; unpack it'):
        read(tmp_path / 'c.txt.gz')
