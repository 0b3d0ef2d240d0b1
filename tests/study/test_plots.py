import sys
from subprocess import run

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from bigjax.study import plots

RNG = np.random.default_rng(0)
STEPS = np.arange(10, 60, 10)
SERIES = {
    'train/loss': (STEPS, 2.0 / STEPS),
    'val/loss': (STEPS[::2], 3.0 / STEPS[::2]),
    'val/accuracy': (STEPS[::2], np.array([0.1, 0.5, 0.9])),
    'train/grad_norm': (STEPS, STEPS * 1.0),
    'train/learning_rate': (STEPS, np.full(5, 1e-3)),
    'perf/examples_per_second': (STEPS, STEPS * 100.0),
}


def panels(figure):
    return {ax.get_title(loc='left'): ax for ax in figure.axes}


def lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_importing_plots_leaves_pyplot_alone():
    code = "import sys, bigjax.study.plots; assert 'matplotlib.pyplot' not in sys.modules"
    assert run([sys.executable, '-c', code], check=False).returncode == 0


def test_style_does_not_leak():
    before = dict(matplotlib.rcParams)
    plots.learning_curves(SERIES)
    assert dict(matplotlib.rcParams) == before


def test_learning_curves_draw_the_numbers_given():
    figure = plots.learning_curves(SERIES, {'test/accuracy': 0.85})
    ax = panels(figure)
    assert set(ax) == {'loss', 'accuracy', 'learning rate', 'examples a second'}
    for split in ('train', 'val'):
        np.testing.assert_array_equal(
            lines(ax['loss'])[split], np.transpose(SERIES[f'{split}/loss'])
        )
    assert set(lines(ax['accuracy'])) == {'val', 'test'}
    np.testing.assert_array_equal(lines(ax['accuracy'])['test'], [[50, 0.85]])
    (rate,) = ax['learning rate'].lines
    np.testing.assert_array_equal(rate.get_ydata(), 1e-3)


@pytest.mark.parametrize(
    ('losses', 'scale'),
    [([1, 0.01], 'log'), ([1, 0.5], 'linear'), ([1, 0.0], 'linear'), ([1, np.nan], 'linear')],
)
def test_loss_axis_is_logarithmic_when_the_range_wants_it(losses, scale):
    figure = plots.learning_curves({'train/loss': (np.array([0, 1]), np.array(losses))})
    assert panels(figure)['loss'].get_yscale() == scale


def test_learning_curves_of_a_run_that_has_just_begun(tmp_path):
    plots.save(plots.learning_curves({}), tmp_path / 'none.png')
    one = {'train/loss': (np.array([1]), np.array([np.nan]))}
    plots.save(plots.learning_curves(one), tmp_path / 'one.png')


def test_confusion_matrix_has_counts_and_shares_of_the_row():
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 399]])  # a class that never occurs
    figure = plots.confusion_matrix(counts, ['a', '$b$', 'c'])
    (ax,) = figure.axes
    cells = {text.get_position()[::-1]: text.get_text() for text in ax.texts}
    assert cells == {(0, 0): '8\n80%', (0, 1): '2\n20%', (2, 0): '1\n<1%', (2, 2): '399\n100%'}
    shares = ax.images[0].get_array()
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [0, 0, 0], [0.0025, 0, 0.9975]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ['a', '$b$', 'c']


def test_a_large_confusion_matrix_is_coarser():
    figure = plots.confusion_matrix(np.eye(100, dtype=int))
    ax, _bar = figure.axes
    assert not ax.texts
    assert len(ax.get_xticks()) == 25
    assert ax.get_xticklabels()[1].get_text() == '4'


def test_roc_curve_states_the_area_of_scikit_learn():
    targets = RNG.integers(0, 2, 300)
    scores = targets + RNG.normal(size=300)
    fpr, tpr, _ = metrics.roc_curve(targets, scores)
    figure = plots.roc_curve(fpr, tpr)
    (label,) = (text.get_text() for text in figure.axes[0].get_legend().get_texts())
    assert label == f'AUC {metrics.roc_auc_score(targets, scores):.3f}'
    np.testing.assert_array_equal(lines(figure.axes[0])[label], np.transpose([fpr, tpr]))


def test_precision_recall_states_the_average_of_scikit_learn():
    targets = RNG.integers(0, 2, 300)
    scores = targets + RNG.normal(size=300)
    precision, recall, _ = metrics.precision_recall_curve(targets, scores)
    figure = plots.precision_recall(precision, recall)
    average = metrics.average_precision_score(targets, scores)
    assert f'AP {average:.3f}' in texts(figure)


def test_calibration_leaves_out_empty_bins():
    figure = plots.calibration([0.1, 0.5, 0.9], [0.2, np.nan, 0.8], [10, 0, 30])
    upper, lower = figure.axes
    np.testing.assert_array_equal(upper.lines[1].get_xydata(), [[0.1, 0.2], [0.9, 0.8]])
    assert [bar.get_height() for bar in lower.patches] == [10, 30]


def test_per_class_bars_put_the_lowest_first():
    (ax,) = plots.per_class_bars([0.9, 0.2, 0.5], ['a', 'b', 'c']).axes
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0.5, 0.9]
    assert [label.get_text() for label in ax.get_yticklabels()] == ['b', 'c', 'a']
    assert [text.get_text() for text in ax.texts] == ['0.200', '0.500', '0.900']
    many = plots.per_class_bars(RNG.uniform(size=100)).axes[0]
    assert len(many.patches) == 30
    assert many.get_xlabel() == 'F1, lowest 30 of 100'


def test_predicted_against_actual():
    actual, predicted = RNG.normal(size=(2, 50))
    (ax,) = plots.predicted_vs_actual(actual, predicted).axes
    points = ax.collections[0].get_offsets()
    np.testing.assert_array_equal(points, np.transpose([actual, predicted]))
    assert ax.get_xlim() == ax.get_ylim()


def test_hostile_names_are_drawn_as_they_are(tmp_path):
    names = ['$\\frac$', '猫', 'line\nbreak\x00', 'x' * 200]
    figure = plots.confusion_matrix(np.eye(4, dtype=int), names)
    plots.save(figure, tmp_path / 'names.png')  # a warning would be an error here
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ['$\\frac$', '猫', 'line break', 'x' * 17 + '…']


def test_files_are_png_at_150_dots_an_inch(tmp_path):
    figure = plots.learning_curves(SERIES)
    plots.save(figure, tmp_path / 'curves.png')
    with Image.open(tmp_path / 'curves.png') as image:
        assert image.format == 'PNG'
        assert image.size == tuple(round(150 * inches) for inches in figure.get_size_inches())
        assert len(image.convert('RGB').getcolors(1 << 20)) > 100  # something is on it
