"""The report of a run: its folder in, `plots/*.png` and one self-contained `report.html` out.

`read` takes everything from the folder, `draw` makes figures of it, `render` a page of both. The
page loads nothing from anywhere, and what comes from data (class names, text) is never markup.
"""

import base64
import io
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bigjax import schema
from bigjax.config import flatten, resolve
from bigjax.errors import DataError
from bigjax.study import plots
from bigjax.train.progress import SPLITS, by_split, duration, number
from bigjax.train.writers import Row, columns, read_events, read_metrics, replace_file

HEADLINES = ('accuracy', 'auc', 'r2', 'bits_per_byte', 'perplexity', 'loss')
"""What sums a run up, the first that it has, unless its config says otherwise."""

PARTS = {'start': 'init', 'eval': 'evaluation', 'save': 'checkpoint'}
"""Of a run's time, where the event has another name."""


@dataclass(frozen=True)
class Run:
    """What a run folder says. Only the metrics must be there: a report can be made at any time.

    evaluations: by split, `step`, `metrics`, `curves`, `class_names` and `samples`.
    """

    name: str
    metrics: list[Row]
    events: list[Row]
    config: dict[str, Any]
    environment: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]

    @property
    def evaluation(self) -> dict[str, Any]:
        """The one to show in full: of test, or else of val."""
        return next((self.evaluations[s] for s in reversed(SPLITS) if s in self.evaluations), {})

    @property
    def results(self) -> dict[str, float]:
        """The last value of each metric, flat keys; the final evaluations have the last word."""
        last = {key: float(values[-1]) for key, (_, values) in columns(self.metrics).items()}
        for split, evaluation in self.evaluations.items():
            last |= {f'{split}/{name}': value for name, value in evaluation['metrics'].items()}
        return last


def write(workdir: Path) -> Path:
    """Make `plots/*.png` and `report.html` of the run in `workdir`; the path of the report.

    Raises: DataError if there are no metrics or a file is damaged.
    """
    run = read(workdir)
    folder = workdir / 'plots'
    folder.mkdir(exist_ok=True)
    images = {}
    for name, figure in draw(run).items():
        plots.save(figure, folder / f'{name}.png')
        images[name] = (folder / f'{name}.png').read_bytes()
    path = workdir / 'report.html'
    replace_file(path, render(run, images).encode())
    return path


def read(workdir: Path) -> Run:
    """Raises: DataError."""
    return Run(
        name=workdir.resolve().name,
        metrics=read_metrics(workdir),
        events=read_events(workdir),
        config=_read_json(workdir / 'config.json'),
        environment=_read_json(workdir / 'env.json'),
        evaluations={
            path.stem: _read_json(path) for path in sorted(workdir.glob('evaluation/*.json'))
        },
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    except ValueError as error:
        raise DataError(f'{path}: not JSON ({error}); restore or delete it') from None


def draw(run: Run) -> dict[str, Figure]:
    """The figures that apply to a run, by file name."""
    curves = run.evaluation.get('curves', {})
    names = run.evaluation.get('class_names', ())
    figures = {'curves': plots.learning_curves(columns(run.metrics), run.results)}
    if np.ndim(confusion := curves.get('confusion_matrix', 0)) == 2:  # of several labels it is 3
        figures['confusion_matrix'] = plots.confusion_matrix(confusion, names)
    if 'roc_curve' in curves:
        precision, recall = _precision_recall(**curves['roc_curve'], confusion=confusion)
        figures['roc_curve'] = plots.roc_curve(**curves['roc_curve'])
        figures['precision_recall'] = plots.precision_recall(precision, recall)
    if 'calibration_curve' in curves:
        figures['calibration'] = plots.calibration(**curves['calibration_curve'])
    if 'f1_per_class' in curves:
        figures['f1_per_class'] = plots.per_class_bars(curves['f1_per_class'], names)
    if 'predicted' in curves:
        actual, predicted = curves['actual'], curves['predicted']
        figures['predicted_vs_actual'] = plots.predicted_vs_actual(actual, predicted)
    return figures


def _precision_recall(fpr: Any, tpr: Any, confusion: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same thresholds as precision and recall, by Bayes' rule, from recall 1 down to 0."""
    negatives, positives = np.sum(confusion, axis=1)
    false, true = np.asarray(fpr) * negatives, np.asarray(tpr) * positives
    called = false + true
    precision = np.divide(true, called, out=np.ones_like(called), where=called > 0)
    return precision[::-1], np.asarray(tpr)[::-1]


def render(run: Run, images: Mapping[str, bytes]) -> str:
    """The page, with PNG `images` by name inside it."""
    splits, rows = by_split(run.results)
    return template('report_template.html').render(
        run=run,
        headline=headline(run, splits, rows),
        facts=dict(_facts(run)),
        command=shlex.join(run.environment.get('command', ())),
        splits=splits,
        rows=rows,
        figures=[
            {'name': name, 'png': png, 'width': css_width(png)} for name, png in images.items()
        ],
        samples=_samples(run),
        config=_config_sections(run.config),
        environment=flatten(run.environment),
        spent=time_spent(run),
    )


def template(name: str) -> jinja2.Template:
    """A page of this folder, with the filters that say what a value is."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('bigjax', 'study'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, duration, moment, plain, pixels_uri, png_uri)
    environment.filters |= {function.__name__: function for function in filters}
    return environment.get_template(name)


def headline(run: Run, splits: list[str], rows: dict[str, dict[str, float]]) -> Any:
    """The one number, or None: of the metric that the config asks for, on the last split it has."""
    best = run.config.get('checkpoint', {}).get('best') or ''
    asked = run.config.get('eval', {}).get('metrics', ())
    for name in (best.partition('/')[2], *asked, *HEADLINES):
        if name in rows:
            split = next(split for split in reversed(splits) if split in rows[name])
            return {'name': name, 'split': split, 'value': rows[name][split]}
    return None


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    series = columns(run.metrics)
    if run.metrics:
        yield 'steps', f'{run.metrics[-1]["step"]:,}'
    if spent := time_spent(run):
        yield 'wall time', duration(sum(spent.values()))
        yield 'goodput', f'{spent.get("steps", 0) / sum(spent.values()):.0%}'
    if 'perf/step_seconds' in series:
        step = float(np.median(series['perf/step_seconds'][1]))
        yield 'a step', f'{step * 1e3:,.3g} ms'
        if (wait := series.get('perf/data_wait_seconds')) is not None:
            yield 'of it waiting for data', f'{np.median(wait[1]) / step:.0%}'
    for unit in ('tokens', 'examples'):
        if (key := f'perf/{unit}_per_second') in series:
            yield f'{unit} a second', f'{np.median(series[key][1]):,.0f}'
            break
    if 'perf/mfu' in series:
        yield 'model FLOPs utilisation', f'{np.median(series["perf/mfu"][1]):.1%}'
    if (attempts := max((row['attempt'] for row in run.events), default=1)) > 1:
        yield 'attempts', str(attempts)


def _samples(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Samples by heading: wrong ones, the most confident first, then right ones."""
    groups: dict[str, list[dict[str, Any]]] = {'Wrong': [], 'Right': [], '': []}
    values = 'predicted' in run.evaluation.get('curves', {})  # numbers are hardly ever just right
    for sample in run.evaluation.get('samples', ()):
        if values or 'target' not in sample:
            groups[''].append(sample)
        else:
            groups['Right' if sample['target'] == sample['prediction'] else 'Wrong'].append(sample)
    groups['Wrong'].sort(key=lambda sample: -sample.get('score', 0))
    return {heading: samples for heading, samples in groups.items() if samples}


def css_width(png: bytes) -> int:
    """The width at which all figures have text of the same size, that of the page."""
    return round(Image.open(io.BytesIO(png)).width * 96 / plots.DPI)


def _config_sections(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str, bool]]]:
    """By section: field, value, and whether that is only the default."""
    required = {'model': '', 'task': '', 'data': '', 'train': {'epochs': 1}}
    given = {'model.name', 'task.name', 'data.name', 'train.epochs'}
    defaults = flatten(schema.to_dict(resolve(required)))
    sections: dict[str, list[tuple[str, str, bool]]] = {}
    for key, value in flatten(config).items():
        section, _, field = key.rpartition('.') if key.count('.') < 2 else key.partition('.')
        is_default = key in defaults and key not in given and defaults[key] == value
        sections.setdefault(section, []).append((field, plain(value), is_default))
    return sections


def time_spent(run: Run) -> dict[str, float]:
    """Seconds by what they went into; the time between two attempts is nobody's."""
    times: dict[int, list[float]] = {}
    spent = {'steps': 0.0}
    undone = {
        row['details']['of_attempt']: row.get('step', 0)
        for row in run.events
        if row['event'] == 'lost_work'
    }
    for row in run.metrics:
        times.setdefault(row['attempt'], []).append(row['time'])
    for row in run.events:
        name, attempt, details, ended = (row[k] for k in ('event', 'attempt', 'details', 'time'))
        if name == 'lost_work':  # its lines are gone
            attempt, ended = details['of_attempt'], details['until']
        seconds = details.get('seconds', 0)
        times.setdefault(attempt, []).extend((ended - seconds, ended))
        if not seconds or (name == 'steps' and row['step'] > undone.get(attempt, row['step'])):
            continue
        ends = '_seconds'
        parts = {k.removesuffix(ends): v for k, v in details.items() if k.endswith(ends)}
        for part, own in {name: seconds - sum(parts.values()), **parts}.items():
            part = PARTS.get(part, part.replace('_', ' '))
            spent[part] = spent.get(part, 0.0) + own
    total = sum(max(attempt) - min(attempt) for attempt in times.values())
    spent['other'] = max(total - sum(spent.values()), 0.0)
    return {part: seconds for part, seconds in spent.items() if seconds} if total else {}


# What the template says of a value.


def moment(seconds: float) -> str:
    """Unix time as a date and a time, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime('%Y-%m-%d %H:%M:%S')


def plain(value: Any) -> str:
    """A value of a JSON file in words: `32, 64`, `8 × cpu`, `none`."""
    if isinstance(value, list):
        if len(value) > 1 and all(item == value[0] for item in value):
            return f'{len(value)} × {plain(value[0])}'
        return ', '.join(map(plain, value)) or 'none'
    if isinstance(value, Mapping):
        return ', '.join(f'{key} {plain(item)}' for key, item in value.items()) or 'none'
    return (
        'none' if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def pixels_uri(pixels: list) -> str:
    """An image sample, [H, W, C] with one channel, three or more: the first, or the first three."""
    array = np.asarray(pixels, np.uint8)
    image = Image.fromarray(array[..., :3] if array.shape[-1] >= 3 else array[..., 0])
    buffer = io.BytesIO()
    image.save(buffer, 'png')
    return png_uri(buffer.getvalue())


def png_uri(png: bytes) -> str:
    """The image itself in place of an address."""
    return 'data:image/png;base64,' + base64.b64encode(png).decode()
