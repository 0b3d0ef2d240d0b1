import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from bigjax.errors import DataError
from bigjax.study import report


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words = [], []
        self.source = path.read_text()
        self.feed(self.source)
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def images(self):
        for tag, attrs in self.tags:
            if tag == 'img':
                header, data = attrs['src'].split(',')
                assert header == 'data:image/png;base64'
                yield Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture(scope='module')
def written(make_run):
    """Each kind of run with its report, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            workdir = make_run(kind)
            made[kind] = workdir, Page(report.write(workdir))
        return made[kind]

    return get


def plots_of(workdir):
    return {path.stem for path in (workdir / 'plots').glob('*.png')}


@pytest.mark.parametrize('kind', ['digits', 'binary', 'regression', 'text'])
def test_a_page_is_self_contained_and_its_tags_balance(written, kind):
    workdir, page = written(kind)
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:)\w', page.source)
    assert '@import' not in page.source
    assert {'script', 'link', 'iframe'}.isdisjoint(tag for tag, _ in page.tags)
    policy = next(a['content'] for t, a in page.tags if t == 'meta' and 'http-equiv' in a)
    assert policy.startswith("default-src 'none'")
    for tag in ('div', 'table', 'tr', 'td', 'figure', 'pre', 'details', 'b'):
        opened = sum(name == tag for name, _ in page.tags)
        assert opened == page.source.count(f'</{tag}>'), tag
    for image in page.images():
        image.verify()
    assert workdir.name in page.text


def test_digits(written):
    workdir, page = written('digits')
    assert plots_of(workdir) == {'curves', 'confusion_matrix', 'f1_per_class'}
    assert '0.9694 test accuracy' in page.text  # the headline
    assert 'bigjax train --config=configs/digits.py --workdir=runs/digits' in page.text
    assert 'test evaluated at step 1,120.' in page.text
    figures = [image for image in page.images() if image.width > 100]
    assert len(figures) == 3
    small = [image for image in page.images() if image.width == 8]
    assert len(small) == 36  # every sample, at its own resolution
    assert page.text.index('Wrong') < page.text.index('Right')
    assert page.text.count('✗') == 11
    scores = [float(score) for score in re.findall(r'✗ .*? (\d\.\d\d)', page.text)]
    assert scores == sorted(scores, reverse=True)  # the most confident mistakes first
    assert page.text.count('✓') == 25


@pytest.mark.parametrize('channels', [1, 3, 4, 13])
def test_pixels_of_any_number_of_channels_are_shown(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, channels))
    _, data = report.pixels_uri(pixels.tolist()).split(',')
    expected = pixels[..., 0] if channels == 1 else pixels[..., :3]
    np.testing.assert_array_equal(Image.open(io.BytesIO(base64.b64decode(data))), expected)


def test_names_from_data_are_never_markup(written):
    _, digits = written('digits')
    assert '<script>' not in digits.source
    assert '<script>alert("nine")</script>' in digits.text  # to be read, not run
    _, text = written('text')
    assert 'def <b>get</b>(self):' in text.text


def test_binary(written):
    workdir, page = written('binary')
    assert plots_of(workdir) == {'curves', 'confusion_matrix', 'roc_curve', 'precision_recall'}
    assert re.search(r'0\.\d+ test auc', page.text)  # the metric that the config names first
    assert '30 features' in page.text
    assert 'mean radius' in page.text


def test_precision_and_recall_follow_from_the_roc_curve(make_run):
    run = report.read(make_run('binary'))
    figure = report.draw(run)['precision_recall']
    (label,) = (text.get_text() for text in figure.axes[0].get_legend().get_texts())
    expected = run.evaluations['test']['metrics']['average_precision']  # scikit-learn's
    assert label == f'AP {expected:.3f}'


def test_regression(written):
    workdir, page = written('regression')
    assert plots_of(workdir) == {'curves', 'predicted_vs_actual'}
    assert re.search(r'0\.\d+ test r2', page.text)
    assert re.search(r'predicted [\d.]+ , actual [\d.]+', page.text)
    assert '✗' not in page.text


def test_text(written):
    workdir, page = written('text')
    assert plots_of(workdir) == {'curves'}
    assert '1.89 test bits_per_byte' in page.text
    assert 'import sys' in page.text


def test_defaults_are_dimmed_and_choices_are_not(written):
    _, page = written('digits')
    dimmed = re.findall(r'<tr class="default"><td>([\w.]+)</td><td>(.*?)</td>', page.source)
    plain = re.findall(r'<tr><td>([\w.]+)</td><td>(.*?)</td>', page.source)
    assert ('seed', '0') in dimmed
    assert ('weight_decay', '0.0') in dimmed
    assert ('widths', '32, 64, 64') in plain
    assert ('batch_size', '64') in plain
    assert ('epochs', '40.0') in plain
    assert ('name', 'digits') in plain
    assert ('augment.crop.padding', '1') in plain
    assert report._config_sections({'train': {'epochs': 1.0}}) == {
        'train': [('epochs', '1.0', False)]
    }


def test_environment_and_events(written):
    _, page = written('digits')
    assert 'versions.jax 0.10.2' in page.text
    assert 'devices 8 × cpu' in page.text
    assert 'evaluate 100 split val, seconds 0.4' in page.text


def test_time_spent_leaves_out_the_pause_between_attempts(make_run):
    run = report.read(make_run('text'))
    spent = report.time_spent(run)
    saves = 7 + 5
    assert spent == pytest.approx(
        {
            'steps': (2.8 - 0.7) * (saves - 1),  # the seventh hundred of them twice
            'data wait': 0.7 * (saves - 1),
            'compile': 3.2,
            'init': 0.9,
            'restore': 1.1,
            'evaluate': 0.4 * saves,
            'checkpoint': 0.1 * saves,
            'lost work': 2.8,
            'other': 2 * 0.28,  # the last steps
        },
        abs=1e-4,
    )
    expected = sum(spent.values())
    facts = dict(report._facts(run))
    assert facts['goodput'] == f'{spent["steps"] / expected:.0%}'
    assert (facts['a step'], facts['of it waiting for data']) == ('28 ms', '25%')
    assert expected < 60  # and not the 600 seconds that it lay dead


def test_final_evaluation_has_the_last_word(make_run):
    run = report.read(make_run('digits'))
    evaluation = json.loads(json.dumps(run.evaluations['test']))
    confusion = evaluation['curves']['confusion_matrix']
    right = sum(row[i] for i, row in enumerate(confusion))
    assert run.results['test/accuracy'] == pytest.approx(right / sum(map(sum, confusion)))
    last = [row for row in run.metrics if 'val/loss' in row][-1]
    assert run.results['val/loss'] == last['val/loss']


def test_an_unfinished_run_has_a_report_too(make_run):
    workdir = make_run('digits')
    for name in ('evaluation/test.json', 'env.json', 'config.json', 'events.jsonl'):
        (workdir / name).unlink()
    page = Page(report.write(workdir))
    assert plots_of(workdir) == {'curves'}
    assert re.search(r'0\.\d+ val accuracy', page.text)
    for heading in ('Config', 'Environment', 'Events', 'Sample predictions'):
        assert heading not in page.text


def test_a_run_that_diverged_has_a_report_too(tmp_path):
    row = {'step': 1, 'time': 0.5, 'attempt': 1, 'train/loss': None}
    row['nonfinite'] = {'train/loss': 'nan'}
    (tmp_path / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
    assert 'nan train loss' in Page(report.write(tmp_path)).text


def test_what_is_no_run_or_damaged_is_named(make_run, tmp_path):
    with pytest.raises(DataError, match='expected the folder of a run'):
        report.write(tmp_path)
    workdir = make_run('text')
    (workdir / 'config.json').write_text('{"seed": ')
    with pytest.raises(DataError, match=r'config\.json: not JSON'):
        report.write(workdir)
