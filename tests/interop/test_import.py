"""`bigjax import`: pretrained weights as a run that the other commands take."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import cli, interop
from bigjax.train import trained

HUB = Path(__file__).parents[1] / 'golden' / 'hub'
TEXT = 'the fox sees the dog. ' * 200


def imported(path, tmp_path):
    assert cli.main(['import', str(path), f'--workdir={tmp_path / "run"}']) == 0
    return trained.load(tmp_path / 'run')


@pytest.mark.parametrize('name', ['gpt2', 'llama', 'llama_tied'])
def test_a_decoder_computes_what_the_hub_does(name, tmp_path):
    run = imported(HUB / name, tmp_path)
    module, params, tokenizer = interop.load(HUB / name)
    assert run.tokenizer.fingerprint == tokenizer.fingerprint
    tokens = jnp.asarray([tokenizer.encode('The fox')])
    logits, _ = run.model.apply({'params': run.params}, tokens)
    np.testing.assert_allclose(logits, module.apply({'params': params}, tokens), atol=1e-5)


def test_an_encoder_becomes_a_masked_language_model(tmp_path, capfd):
    hub = tmp_path / 'hub'
    shutil.copytree(HUB / 'bert', hub)
    assert cli.main(['import', str(hub), f'--workdir={tmp_path / "run"}']) == 78
    assert 'set mask_id=96 to add a mask token' in capfd.readouterr().err
    assert not (tmp_path / 'run').exists()
    (hub / 'tokenizer_config.json').write_text('{"mask_token": "z"}')
    run = imported(hub, tmp_path)
    assert run.config.task.name == 'masked_language_model'
    tokens = jnp.asarray([run.tokenizer.encode('the fox')])
    logits, _ = run.model.apply({'params': run.params}, tokens)
    assert logits.shape == (*tokens.shape, run.tokenizer.vocab_size)


def test_a_run_is_evaluated_written_on_and_begun_from(tmp_path, capfd):
    imported(HUB / 'llama', tmp_path)
    (tmp_path / 'text.txt').write_text(TEXT)
    data = [f'--config.data.path={tmp_path / "text.txt"}', '--config.data.sequence_length=32']
    data += [f'--config.data.cache_dir={tmp_path / "cache"}']
    run = f'--run={tmp_path / "run"}'
    assert cli.main(['eval', run, '--split=val', *data]) == 0
    assert json.loads((tmp_path / 'run/evaluation/val.json').read_text())['step'] == 0
    assert cli.main(['generate', run, '--prompt=the', '--max_new_tokens=4']) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith('the')
    (tmp_path / 'config.py').write_text(
        'import json, pathlib\n'
        f'FILE = pathlib.Path({str(tmp_path / "run/config.json")!r})\n'
        'def get_config(): return json.loads(FILE.read_text())\n'
    )
    begin = [f'--config.init_from.run={tmp_path / "run"}', '--config.train.steps=3']
    flags = [f'--config={tmp_path / "config.py"}', f'--workdir={tmp_path / "tuned"}']
    assert cli.main(['train', *flags, *begin, *data]) == 0


def test_a_padded_read_out_is_cut_to_the_tokens(tmp_path):
    """Of an untied model with more rows than its tokenizer has tokens."""
    hub = tmp_path / 'hub'
    shutil.copytree(HUB / 'llama', hub)
    said = json.loads((hub / 'tokenizer.json').read_text())
    vocabulary = said['model']['vocab']
    kept = {token: id for token, id in vocabulary.items() if id < 90}
    said['model'] |= {'vocab': kept, 'merges': []}
    (hub / 'tokenizer.json').write_text(json.dumps(said))
    run = imported(hub, tmp_path)
    assert run.tokenizer.vocab_size == 91  # and an end of text
    module, params, _ = interop.load(hub)
    tokens = jnp.asarray([[1, 5, 7]])
    logits, _ = run.model.apply({'params': run.params}, tokens)
    want = module.apply({'params': params}, tokens)
    assert want.shape[-1] == 96
    np.testing.assert_allclose(logits, want[..., :91], atol=1e-5)


def test_what_is_there_is_not_written_over(tmp_path, capfd):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'notes.txt').write_text('mine')
    assert cli.main(['import', str(HUB / 'gpt2'), f'--workdir={tmp_path / "run"}']) == 78
    assert 'is not empty; choose another --workdir' in capfd.readouterr().err
