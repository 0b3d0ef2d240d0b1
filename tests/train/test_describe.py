import pytest

from bigjax.errors import ConfigError
from bigjax.train import build as builder
from bigjax.train.build import build
from bigjax.train.describe import summary
from tests.train.tiny import blobs, sentences, tiny_config

MODEL = {'name': 'transformer', 'layers': 1, 'width': 16, 'heads': 2}


def test_what_is_traded_for_memory_is_told():
    plain = tiny_config(model=MODEL, task={'name': 'language_model'})
    saving = tiny_config(
        model=MODEL | {'remat': 'projections', 'scan': True},
        task={'name': 'language_model', 'options': {'chunk': 4}},
        precision={'compute': 'float16', 'moments': 'bfloat16'},
        **{'train.accumulation': 2},
    )
    told = [summary(build(config, sentences())) for config in (plain, saving)]
    expected = {
        'compute': ('float32', 'float16, scaled loss'),
        'optimizer state kept in': ('float32', 'bfloat16'),
        'accumulation': ('1 x 16 rows', '2 x 8 rows'),
        'blocks': ('unrolled', 'scanned'),
        'remat': ('none', 'projections'),
        'positions of logits at once': ('all', '4'),
    }
    assert {name: (told[0][name], told[1][name]) for name in expected} == expected
    name = 'optimizer state, bytes a device'
    whole, half = (float(found[name].removesuffix(' KiB')) for found in told)
    assert half == pytest.approx(whole / 2, rel=0.01)
    assert 'remat' not in summary(build(tiny_config(), blobs()))


def test_offloading_is_refused_where_hosts_have_no_memory_for_it(monkeypatch):
    config = tiny_config(model=MODEL | {'remat': 'offload'}, task={'name': 'language_model'})
    assert build(config, sentences()).config == config
    monkeypatch.setattr(builder, 'HOST_MEMORY', 'drum')
    with pytest.raises(ConfigError, match="'offload' expects devices with drum, got device"):
        build(config, sentences())
