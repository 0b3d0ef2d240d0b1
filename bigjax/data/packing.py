"""Documents of tokens into rows of one length: windows of their stream, or whole documents packed.

Every row is a sequence of runs. A run is a stretch of one document, so its tokens lie side by side
in the corpus; the target of a token is the one behind it, that of a document's last token the first
of the next document. So every token but the very first is a target exactly once.

Shapes: B rows of a batch, T = sequence_length, K runs of all rows, R rows, D documents.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from bigjax.data.core import Batch
from bigjax.data.corpus import Corpus, Pieces


@dataclass(frozen=True)
class Documents:
    """Spans [D] of the corpus' tokens, in the order of the stream."""

    start: np.ndarray
    stop: np.ndarray

    @classmethod
    def of(cls, pieces: Pieces) -> 'Documents':
        """Pieces that follow one another within a document become one span."""
        start, stop, document = (pieces[name] for name in ('start', 'stop', 'document'))
        begins = np.ones(len(start), bool)
        begins[1:] = (document[1:] != document[:-1]) | (start[1:] != stop[:-1])
        return cls(start[begins], stop[np.roll(begins, -1)])

    @property
    def edges(self) -> np.ndarray:
        """[D + 1]: where documents begin in the stream, and where it ends."""
        return np.cumsum(np.concatenate([[0], self.stop - self.start]))


@dataclass(frozen=True)
class Packed:
    """Rows of runs. `first` [R + 1]: where the runs of a row begin among all K.

    start, length [K]: the run's tokens in the corpus. after [K]: where the target of its last token
    lies, -1 if it has none. context [R]: how many of a row's first targets count for nothing, since
    another row has them. isolated: inputs are `tokens`, `segments` (from 1; 0 is padding) and
    `positions` (from 0 in each segment), int32 [B, T] each.
    """

    corpus: Corpus
    sequence_length: int
    isolated: bool
    first: np.ndarray
    start: np.ndarray
    length: np.ndarray
    after: np.ndarray
    context: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, indices: np.ndarray) -> Batch:
        counts = self.first[indices + 1] - self.first[indices]
        runs = _ranges(self.first[indices], counts)
        length = self.length[runs]
        position = _ranges(np.zeros_like(length), length)
        place = np.repeat(self.start[runs], length) + position
        target = place + 1
        target[np.cumsum(length) - 1] = self.after[runs]
        row = np.repeat(np.arange(len(indices)), counts)
        column = np.arange(self.sequence_length)
        filled = column < np.bincount(row, length, len(indices))[:, None]

        def laid_out(values: np.ndarray, dtype: type = np.int32) -> np.ndarray:
            rows: np.ndarray = np.zeros(filled.shape, dtype)
            rows[filled] = values  # runs fill their rows from the left, without gaps
            return rows

        known = target >= 0
        tokens = laid_out(self.corpus[place])
        weights = laid_out(known, np.float32)
        weights *= column >= self.context[indices][:, None]
        targets = laid_out(self.corpus[np.maximum(target, 0)] * known)
        if not self.isolated:
            return {'inputs': tokens, 'targets': targets, 'weights': weights}
        segments = np.repeat(_ranges(np.ones_like(counts), counts), length)
        inputs = {
            'tokens': tokens,
            'segments': laid_out(segments),
            'positions': laid_out(position),
        }
        return {'inputs': inputs, 'targets': targets, 'weights': weights}


def windows(
    corpus: Corpus,
    documents: Documents,
    length: int,
    stride: int,
    isolated: bool,
    separated: bool,
) -> Packed:
    """Windows of the stream, `stride` apart; what two share is a target in the earlier one only.

    separated: documents begin with a token of their own, which can be predicted in isolation.
    """
    edges = documents.edges
    last = edges[-1] - 1  # it has no target
    rows = 1 + max(0, -(-(last - length) // stride)) if last else 0
    start = np.arange(rows) * stride
    stop = np.minimum(start + length, last)
    document = np.searchsorted(edges, start, side='right') - 1
    counts = np.searchsorted(edges, stop, side='left') - document
    row = np.repeat(np.arange(rows), counts)
    document = _ranges(document, counts)
    begin = np.maximum(edges[document], start[row])
    end = np.minimum(edges[document + 1], stop[row])
    after = _after(documents, document, end - edges[document], separated or not isolated)
    context = np.where(start, length - stride, 0)
    return Packed(
        corpus=corpus,
        sequence_length=length,
        isolated=isolated,
        first=np.concatenate([[0], np.cumsum(counts)]),
        start=documents.start[document] + begin - edges[document],
        length=end - begin,
        after=after,
        context=context,
    )


def packed(corpus: Corpus, documents: Documents, length: int, separated: bool) -> Packed:
    """Whole documents in rows, and in pieces those that no row can hold."""
    sizes = documents.stop - documents.start
    counts = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), counts)
    begin = _ranges(np.zeros_like(counts), counts) * length
    end = np.minimum(begin + length, sizes[document])
    row = best_fit(end - begin, length)
    order = np.argsort(row, kind='stable')
    return Packed(
        corpus=corpus,
        sequence_length=length,
        isolated=True,
        first=np.concatenate([[0], np.cumsum(np.bincount(row))]),
        start=(documents.start[document] + begin)[order],
        length=(end - begin)[order],
        after=_after(documents, document, end, separated)[order],
        context=np.zeros(row.max(initial=-1) + 1, np.int64),
    )


def _after(documents: Documents, document: np.ndarray, end: np.ndarray, across: bool) -> np.ndarray:
    """The token behind a run that ends `end` tokens into its document.

    At the document's own end that is the first of the next document, if `across`.
    """
    following = np.append(documents.start[1:] if across else -np.ones(len(documents.start) - 1), -1)
    place = documents.start[document] + end
    return np.where(place < documents.stop[document], place, following[document]).astype(np.int64)


def best_fit(lengths: np.ndarray, size: int) -> np.ndarray:
    """The row of each piece (Ding et al. 2024): the longest first, into the fullest row it fits."""
    rows = np.empty(len(lengths), np.int64)
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys, sorted
    count = 0
    for piece in np.argsort(-lengths, kind='stable').tolist():
        length = int(lengths[piece])
        slot = bisect_left(rooms, length)
        if slot == len(rooms):
            row, room = count, size
            count += 1
        else:
            room = rooms[slot]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[slot]
        rows[piece] = row
        if left := room - length:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(row)
    return rows


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[0], starts[0] + 1, ...`, `lengths[0]` of them, then those of `starts[1]`, ..."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)
