"""Text to token ids and back: bytes, characters, trained BPE, and the tokenizers of others.

One interface serves training data, generation and the exchange of models. Bytes are numpy's, a
SentencePiece model is read by its own package, all the rest by the `tokenizers` library, which
keeps it as `tokenizer.json`. Which tokens are special stands beside it in `tokenizer_config.json`,
as on the Hugging Face hub; without that file they are known by their usual strings.
"""

from bigjax.data.tokenizers.files import load
from bigjax.data.tokenizers.kinds import CONFIG, Bytes, Library, SentencePiece, Tokenizer
from bigjax.data.tokenizers.learned import TokenizerConfig, characters, choose, train_bpe

__all__ = [
    'CONFIG',
    'Bytes',
    'Library',
    'SentencePiece',
    'Tokenizer',
    'TokenizerConfig',
    'characters',
    'choose',
    'load',
    'train_bpe',
]
