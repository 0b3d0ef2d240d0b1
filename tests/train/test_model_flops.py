from bigjax.train.build import build
from bigjax.train.model_flops import model_flops
from tests.train.tiny import blobs, sentences, tiny_config

L, D, H, V, T, B = 2, 16, 4, 16, 12, 8
MODEL = {'name': 'transformer', 'layers': L, 'width': D, 'heads': H, 'positions': 'rope'}


def decoder(**values):
    config = tiny_config(model=MODEL, task='language_model', **{'train.batch_size': B, **values})
    return build(config, sentences(length=T, vocab=V))


def test_a_decoder_by_palm():
    found = model_flops(decoder())
    norms, biases = (2 * L + 1) * 2 * D, L * (4 * D + 5 * D)
    n = L * 12 * D**2 + norms + biases + V * D  # the tied table multiplies too
    assert found == ((6 * n + 12 * L * D * T) * B * T, 'PaLM: (6 N + 12 L d T) a token')


def test_another_model_by_three_times_its_forward_pass():
    run = build(tiny_config(**{'train.batch_size': B, 'train.accumulation': 1}), blobs())
    products = 8 * 16 + 16 * 16 + 16 * 4
    assert model_flops(run) == (3 * 2 * B * products, '3 x products of the forward pass')


def test_what_is_computed_again_does_not_count():
    """A window is beyond PaLM's formula."""
    plain = model_flops(decoder(**{'model.window': 4}))
    assert plain.formula == '3 x products of the forward pass'
    assert model_flops(decoder(**{'model.window': 4, 'model.remat': 'full'})) == plain


def test_what_is_frozen_costs_less():
    adapted = model_flops(decoder(lora={'rank': 2}))
    assert adapted.formula == 'products of the training step'
    assert adapted.a_step < model_flops(decoder()).a_step
