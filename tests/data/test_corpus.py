"""Shards: what they hold, that a killed run goes on, and that damage is found."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bigjax.data import corpus, records, tokenizers
from bigjax.data.tokenizers import Bytes, TokenizerConfig
from bigjax.errors import DataError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared' / 'data'
DOCUMENTS = [f'document {i}: ' + 'wörds and words ' * (i % 7) for i in range(60)]


@pytest.fixture
def text(tmp_path):
    file = tmp_path / 'text.jsonl'
    file.write_text(''.join(json.dumps({'text': document}) + '\n' for document in DOCUMENTS))
    return file


def tokenised(file, root, name='bytes'):
    parts = records.find([str(file)])
    return corpus.tokenised(parts, 'text', TokenizerConfig(name), root, {})


def everything(found):
    return found[np.arange(found.counts['tokens'])]


def test_every_document_is_there_behind_its_separator(text, tmp_path, monkeypatch):
    whole = tokenised(text, tmp_path / 'one')
    expected = b''.join(b'\0' + document.encode() for document in DOCUMENTS)
    assert bytes(everything(whole).tolist()) == expected
    assert whole.shards[0].dtype == np.uint8
    assert isinstance(whole.shards[0], np.memmap)
    assert whole.counts == {
        'documents': 60,
        'tokens': len(expected),
        'bytes': len(expected) - 60,
    }
    pieces = whole.pieces['train']
    for index in (0, 33, 59):
        span = slice(pieces['start'][index], pieces['stop'][index])
        assert bytes(whole.shards[0][span]) == b'\0' + DOCUMENTS[index].encode()

    monkeypatch.setattr(corpus, 'SHARD', 500)
    monkeypatch.setattr(corpus, 'BATCH', 100)
    cut = tokenised(text, tmp_path / 'many')
    assert len(cut.shards) > 5
    np.testing.assert_array_equal(everything(cut), everything(whole))
    for name, values in cut.pieces['train'].items():
        np.testing.assert_array_equal(values, pieces[name])


def test_a_separator_is_what_the_tokenizer_has():
    both = tokenizers.Library(tokenizers.train_bpe(['a'], 258).tokenizer, {})
    assert corpus.framing(Bytes()) == ([0], [])
    assert corpus.framing(both) == ([], [])
    for names, expected in (
        ({'bos': 'a', 'eos': 'b'}, ('a', 'b')),
        ({'eos': 'b'}, ('b', '')),
        ({'cls': 'a', 'sep': 'b'}, ('a', 'b')),
    ):
        before, after = corpus.framing(tokenizers.Library(both.tokenizer, names))
        assert (both.decode(before), both.decode(after)) == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from bigjax.data import corpus, records
from bigjax.data.tokenizers import TokenizerConfig

corpus.SHARD = 500
write = corpus._write

def killed_in_the_middle(path, content):
    if path.name.startswith('00003.tokens'):
        path.with_name(path.name + '.partial').write_bytes(bytes(content)[:50])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

corpus._write = killed_in_the_middle
parts = records.find([sys.argv[1]])
corpus.tokenised(parts, 'text', TokenizerConfig(sys.argv[3], 300), Path(sys.argv[2]), {})
"""


@pytest.mark.parametrize('name', ['bytes', 'bpe'])
def test_a_killed_run_goes_on_where_it_was(text, tmp_path, monkeypatch, name):
    command = [sys.executable, '-c', KILLED, str(text), str(tmp_path / 'cache'), name]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    monkeypatch.setattr(corpus, 'SHARD', 500)
    [folder] = (path for path in (tmp_path / 'cache').iterdir() if path.is_dir())
    assert not (folder / 'manifest.json').exists()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob('0000[012].*')}
    assert len(finished) == 9

    encoded = []
    encode = Bytes.encode_batch
    monkeypatch.setattr(
        Bytes, 'encode_batch', lambda self, texts: encoded.extend(texts) or encode(self, texts)
    )

    def run(place):
        parts = records.find([str(text)])
        return corpus.tokenised(parts, 'text', TokenizerConfig(name, 300), tmp_path / place, {})

    resumed = run('cache')
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    if name == 'bytes':
        assert 0 < len(encoded) < len(DOCUMENTS)
        assert encoded == DOCUMENTS[-len(encoded) :]
    fresh = run('fresh')
    assert resumed.tokenizer.fingerprint == fresh.tokenizer.fingerprint
    for path in fresh.folder.glob('*.npy'):
        assert (resumed.folder / path.name).read_bytes() == path.read_bytes()


def test_a_change_of_text_or_tokenizer_is_another_corpus(text, tmp_path):
    first = tokenised(text, tmp_path)
    assert tokenised(text, tmp_path).folder == first.folder
    assert tokenised(text, tmp_path, 'characters').folder != first.folder
    text.write_text('{"text": "new"}\n')
    assert tokenised(text, tmp_path).folder != first.folder


def test_two_at_once_write_it_once(text, tmp_path, monkeypatch):
    calls = []
    build = corpus._build
    monkeypatch.setattr(corpus, '_build', lambda *args: calls.append(args) or build(*args))
    threads = [threading.Thread(target=tokenised, args=(text, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_damage_is_found_and_its_cure_named(text, tmp_path):
    found = tokenised(text, tmp_path)
    shard = found.folder / '00000.tokens.npy'
    content = bytearray(shard.read_bytes())
    os.utime(shard)  # touched, but the same: a copy on another machine
    tokenised(text, tmp_path)
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r'00000\.tokens\.npy is damaged: expected \d+ bytes, got'):
        tokenised(text, tmp_path)
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf'damaged: expected sha256 .* delete .*{found.folder}'):
        tokenised(text, tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r'00000\.tokens\.npy is missing; delete the folder'):
        tokenised(text, tmp_path)


def test_cuts_lie_at_lines_and_lose_nothing():
    text = ('line of words\n' * 3 + '\n  indented\n') * 40
    pieces = list(corpus._cut(text, 100))
    assert ''.join(pieces) == text
    assert len(pieces) > 10
    assert all(piece[-1] == '\n' and not piece.startswith(' ') for piece in pieces[:-1])
    words = 'word ' * 200
    assert ''.join(corpus._cut(words, 50)) == words
    assert all(piece.startswith(' word') for piece in list(corpus._cut(words, 50))[1:])
    assert list(corpus._cut('x' * 700, 200)) == ['x' * 200, 'x' * 200, 'x' * 300]


def test_tokens_of_pieces_are_those_of_the_whole():
    if not SHARED.is_dir():
        pytest.skip('Tiny Shakespeare is not in this checkout')
    text = (SHARED / 'tinyshakespeare.txt').read_text()[:200_000]
    bpe = tokenizers.train_bpe([text], 1000)
    pieces = list(corpus._cut(text, 300))
    assert len(pieces) > 500
    assert np.concatenate(bpe.encode_batch(pieces)).tolist() == bpe.encode(text)
