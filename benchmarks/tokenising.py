"""Megabytes a second from text to shards on disk: Python's own source, by each kind of tokenizer.

    python -m benchmarks.tokenising

Training of the tokenizer is not counted, and nothing is found in the cache.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.timing import print_table, spread
from bigjax import schema
from bigjax.data import records, text, tokenizers
from bigjax.data.tokenizers import Tokenizer


def kinds(sample: list[str], vocab_size: int) -> dict[str, Tokenizer]:
    """A tokenizer of each kind, learned from the sample."""
    return {
        'characters': tokenizers.characters(sample),
        f'BPE, {vocab_size:,} tokens': tokenizers.train_bpe(sample, vocab_size),
    }


def seconds(folder: Path, path: str, tokenizer: str) -> float:
    """One corpus, tokenised anew."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        options = {'path': path, 'tokenizer': tokenizer, 'pattern': '**/*.txt', 'cache_dir': cache}
        config = schema.build(text.Config, options, 'config.data')
        started = time.perf_counter()
        text.load(config)
        return time.perf_counter() - started


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--smoke', action='store_true', help='a little of the text, once')
    arguments = parser.parse_args(argv)
    found = records.find((records.STDLIB,), '**/*', 'file')
    sources = [document for part in found['train'] for (document,) in part.read(('text',))]
    sources = sources[:20] if arguments.smoke else sources
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'text').mkdir()
        for index, document in enumerate(sources):
            (folder / 'text' / f'{index}.txt').write_text(document)
        megabytes = sum(len(document.encode()) for document in sources) / 1e6
        paths = {'bytes': 'bytes'}
        for kind, tokenizer in kinds(sources, 512 if arguments.smoke else 8192).items():
            place = folder / json.dumps(kind)
            tokenizer.save(place)
            paths[kind] = str(place)
        rows = []
        for kind, path in paths.items():
            rounds = range(1 if arguments.smoke else arguments.rounds)
            taken = [seconds(folder, str(folder / 'text'), path) for _ in rounds]
            rows.append([kind, spread([megabytes / each for each in taken], 1)])
    print_table([f'tokenizer, {megabytes:.0f} MB', 'MB a second'], rows)


if __name__ == '__main__':
    main()
