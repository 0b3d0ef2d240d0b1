"""Rows of tokens: each token a target once, with its context and its segment."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bigjax.data.core import everything
from bigjax.data.packing import Documents, best_fit, packed, windows

documents = st.lists(st.integers(1, 30), min_size=1, max_size=12).filter(lambda x: sum(x) > 1)
lengths = st.integers(1, 20)


class Places:
    """A corpus in which each token is its own place, plus 1."""

    def __getitem__(self, places):
        return (places + 1).astype(np.int32)


def spans(sizes, seed=0):
    """Documents of these sizes, somewhere in the corpus, not in order; and their stream."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    start = np.empty(len(sizes), int)
    start[order] = np.cumsum([5, *np.array(sizes)[order][:-1] + 3])
    stop = start + sizes
    stream = np.concatenate([np.arange(a, b) + 1 for a, b in zip(start, stop, strict=True)])
    return Documents(start, stop), stream, set((start + 1).tolist())


def flat(rows):
    inputs = rows['inputs']['tokens'] if isinstance(rows['inputs'], dict) else rows['inputs']
    real = rows['weights'] == 1
    return inputs[real], rows['targets'][real]


@given(documents, lengths)
def test_windows_predict_every_token_once_from_the_one_before(sizes, length):
    docs, stream, _ = spans(sizes)
    source = windows(Places(), docs, length, length, isolated=False, separated=True)
    rows = everything(source)
    assert rows['targets'].shape == (-(-(len(stream) - 1) // length), length)
    inputs, targets = flat(rows)
    assert targets.tolist() == stream[1:].tolist()
    assert inputs.tolist() == stream[:-1].tolist()
    assert [leaf.dtype for leaf in rows.values()] == [np.int32, np.int32, np.float32]
    some = np.random.default_rng(0).integers(len(source), size=5)
    np.testing.assert_array_equal(source[some]['targets'], rows['targets'][some])


@given(documents, lengths, st.data())
def test_strides_leave_context_and_predict_every_token_once(sizes, length, data):
    stride = data.draw(st.integers(1, length))
    docs, stream, _ = spans(sizes)
    rows = everything(windows(Places(), docs, length, stride, isolated=False, separated=True))
    assert flat(rows)[1].tolist() == stream[1:].tolist()
    place = {token: index for index, token in enumerate(stream.tolist())}
    for inputs, targets, weights in zip(*rows.values(), strict=True):
        for column in np.flatnonzero(weights):
            context = inputs[: column + 1].tolist()
            at = place[int(targets[column])]
            assert context == stream[at - len(context) : at].tolist()
            assert len(context) > min(length - stride, at - 1)


def check_segments(rows, starts, stream):
    """Within a segment tokens follow one another in one document; positions count them."""
    tokens, segments, positions = (
        rows['inputs'][name] for name in ('tokens', 'segments', 'positions')
    )
    np.testing.assert_array_equal(segments == 0, tokens == 0)
    for row in range(len(tokens)):
        length = np.count_nonzero(segments[row])
        ids, segment, position = (
            tokens[row, :length],
            segments[row, :length],
            positions[row, :length],
        )
        assert segment[0] == 1
        assert position[0] == 0
        same = segment[1:] == segment[:-1]
        assert ((segment[1:] - segment[:-1])[~same] == 1).all()
        assert (ids[1:][same] == ids[:-1][same] + 1).all()
        assert not set(ids[1:][same].tolist()) & starts
        np.testing.assert_array_equal(position[1:], np.where(same, position[:-1] + 1, 0))


@given(documents, lengths)
def test_isolated_windows_are_the_same_with_segments(sizes, length):
    docs, stream, starts = spans(sizes)
    plain = everything(windows(Places(), docs, length, length, isolated=False, separated=True))
    rows = everything(windows(Places(), docs, length, length, isolated=True, separated=True))
    np.testing.assert_array_equal(rows['inputs']['tokens'], plain['inputs'])
    np.testing.assert_array_equal(rows['targets'], plain['targets'])
    np.testing.assert_array_equal(rows['weights'], plain['weights'])
    check_segments(rows, starts, stream)
    bare = everything(windows(Places(), docs, length, length, isolated=True, separated=False))
    _, targets = flat(bare)  # without a separator, what begins a document cannot be predicted
    assert targets.tolist() == [token for token in stream.tolist() if token not in starts]


@given(documents, lengths)
def test_best_fit_predicts_every_token_once_and_cuts_only_long_documents(sizes, length):
    docs, stream, starts = spans(sizes)
    rows = everything(packed(Places(), docs, length, separated=True))
    inputs, targets = flat(rows)
    following = dict(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))
    assert sorted(targets.tolist()) == sorted(stream[1:].tolist())
    assert [following[token] for token in inputs.tolist()] == targets.tolist()
    tokens = rows['inputs']['tokens']
    assert sorted(tokens[tokens > 0].tolist()) == sorted(stream.tolist())
    check_segments(rows, starts, stream)
    for start, stop in zip(docs.start, docs.stop, strict=True):
        if stop - start <= length:
            assert len(set(np.argwhere((tokens > start) & (tokens <= stop))[:, 0].tolist())) == 1
    bare = everything(packed(Places(), docs, length, separated=False))
    assert sorted(flat(bare)[1].tolist()) == sorted(set(stream.tolist()) - starts)


def naive_best_fit(lengths, size):
    rows, room = [], []
    for length in sorted(lengths, reverse=True):
        fits = [(left, row) for row, left in enumerate(room) if left >= length]
        row = min(fits)[1] if fits else len(room)
        if not fits:
            room.append(size)
        room[row] -= length
        rows.append(row)
    return sorted(room)


@given(st.lists(st.integers(1, 16), max_size=60))
def test_best_fit_decreasing(lengths):
    rows = best_fit(np.array(lengths, int), 16)
    held = np.bincount(rows, lengths).astype(int) if lengths else np.array([], int)
    assert sorted((16 - held).tolist()) == naive_best_fit(lengths, 16)


def test_pieces_of_a_document_that_follow_one_another_are_one_again():
    pieces = {
        'start': np.array([0, 10, 20, 40, 50]),
        'stop': np.array([10, 20, 30, 50, 60]),
        'document': np.array([0, 0, 1, 1, 1]),
    }
    docs = Documents.of(pieces)
    assert docs.start.tolist() == [0, 20, 40]
    assert docs.stop.tolist() == [20, 30, 60]
