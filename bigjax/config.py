"""What a run is made of: one frozen dataclass a section, one home for each knob.

Sections with a `name` (model, task, data, optimizer, schedule) keep the fields of the named
component in `options`; they are checked when the component is built.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import ml_collections

from bigjax import safety, schema
from bigjax.durations import Duration
from bigjax.schema import NonNegative, NonNegativeInt, Positive, PositiveInt, Range

Preset = Literal['dp', 'fsdp', 'hsdp', 'tp', 'fsdp+tp', 'fsdp+cp', 'fsdp+ep']


@dataclass(frozen=True)
class Component:
    """Something chosen by name: a module of ours ('mlp') or of the user's ('package.module')."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskConfig:
    """What the model is trained to do, and penalties: `l1 * sum |w| + l2 / 2 * sum w^2`."""

    name: str
    l1: NonNegative = 0.0
    l2: NonNegative = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from, how they are split and augmented.

    splits: for train, val and test each a name with an optional slice (`'train[:80%]'`) or a
        fraction of all that the data set calls train. Empty: the data set's own.
    folds, fold: `fold` (from 0) of `folds` becomes the test split, the rest is split as above.
    augment: name -> options, applied in order inside the jitted step.
    """

    name: str
    splits: Mapping[str, str | float] = field(default_factory=dict)
    split_seed: NonNegativeInt = 0
    folds: Annotated[int, Range(low=2)] | None = None
    fold: NonNegativeInt | None = None
    augment: Mapping[str, Any] = field(default_factory=dict)
    prefetch: PositiveInt = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.folds is None) != (self.fold is None):
            raise ValueError('folds and fold go together: set both or neither')
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f'fold must be below folds={self.folds}, got {self.fold}')


@dataclass(frozen=True)
class ScheduleConfig:
    """The shape of the learning rate over the run, after `warmup` from 0 to its peak."""

    name: str = 'constant'
    warmup: Duration = Duration(0)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupConfig:
    """Parameters whose path matches `pattern`; a learning_rate factor of 0 freezes them."""

    pattern: str
    learning_rate: NonNegative = 1.0
    weight_decay: NonNegative = 1.0


@dataclass(frozen=True)
class OptimizerConfig:
    """One entry of the optimizer table and what is wrapped around it.

    decay: the kinds of parameter that weight decay reaches (kernel, embedding, bias, scale).
    clip: the global norm above which gradients are scaled down.
    groups: the first pattern that matches a parameter's path wins; together they must match all.
    layer_decay: a block's learning rate is that of the next one times this, from the head down to
        the embeddings.
    ema: decay of an exponential moving average of the parameters, which evaluation then uses.
    """

    name: str = 'adamw'
    learning_rate: Positive = 1e-3
    schedule: ScheduleConfig = ScheduleConfig()
    weight_decay: NonNegative = 0.0
    decay: tuple[Literal['kernel', 'embedding', 'bias', 'scale'], ...] = ('kernel', 'embedding')
    clip: Positive | None = None
    groups: tuple[GroupConfig, ...] = ()
    layer_decay: Annotated[float, Range(above=0, high=1)] = 1.0
    ema: Annotated[float, Range(above=0, below=1)] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when `metric` has not improved by `min_delta` for `patience` evaluations."""

    metric: str = 'val/loss'
    patience: PositiveInt = 5
    min_delta: NonNegative = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """How long and in what portions. `batch_size` is global: examples a step over all devices.

    noise_scale: how often the gradient noise scale is measured, from the microbatches of
        `accumulation`; 0: never. See `bigjax.train.noise`.
    """

    steps: Duration | None = None
    epochs: Positive | None = None
    batch_size: PositiveInt = 128
    accumulation: PositiveInt = 1
    log_every: Duration = Duration(100)
    early_stopping: EarlyStopping | None = None
    noise_scale: Duration = Duration(0)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError('set exactly one of train.steps and train.epochs')
        if self.steps is not None and self.steps.unit == '%':
            raise ValueError('train.steps cannot be a percentage of itself')
        if self.batch_size % self.accumulation:
            raise ValueError(
                f'train.batch_size={self.batch_size} is not divisible by '
                f'train.accumulation={self.accumulation}'
            )
        if self.noise_scale.amount and self.accumulation == 1:
            raise ValueError(
                f'train.noise_scale={self.noise_scale} compares microbatches, expected '
                'train.accumulation of 2 or more, got 1; set train.accumulation=2, or noise_scale=0'
            )

    @property
    def duration(self) -> Duration:
        """The run's length, whichever way it was given."""
        return self.steps if self.steps is not None else Duration(self.epochs or 0.0, 'epochs')


@dataclass(frozen=True)
class EvalConfig:
    """`every`: how often on val; metrics: empty means the task's own choice."""

    every: Duration = Duration(1, 'epochs')
    metrics: tuple[str, ...] = ()
    batch_size: PositiveInt | None = None


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; see `bigjax.sharding.mesh`.

    preset: says which axis takes what the others leave over, and the sizes of those left out.
    slice: groups of devices joined by a slow network (TPU slices, GPU nodes), each with a copy of
        the weights; left out, as many as there are where the devices tell, with preset 'hsdp'.
    data: copies of the weights. fsdp: parts that weights and their moments are cut into.
    expert: parts that the experts of a mixture are spread over. context: parts of a sequence.
    tensor: parts of heads and hidden units (Megatron-LM).
    """

    preset: Preset = 'dp'
    slice: PositiveInt | None = None
    data: PositiveInt | None = None
    fsdp: PositiveInt | None = None
    expert: PositiveInt | None = None
    context: PositiveInt | None = None
    tensor: PositiveInt | None = None


@dataclass(frozen=True)
class PrecisionConfig:
    """compute: dtype of activations; parameters, and what is not named here, are float32 always.

    moments: dtype in which the optimizer's state is kept, but for scalars and initial parameters.
    growth_steps: float16 scales its loss; the scale doubles after so many steps without overflow.
    """

    compute: Literal['float32', 'bfloat16', 'float16'] = 'float32'
    moments: Literal['float32', 'bfloat16'] = 'float32'
    growth_steps: PositiveInt = 2000


@dataclass(frozen=True)
class CheckpointConfig:
    """`every`: how often (and at the end); keep: how many of the latest; best: a metric."""

    every: Duration = Duration(1, 'epochs')
    keep: PositiveInt = 2
    best: str | None = None


@dataclass(frozen=True)
class GuardConfig:
    """What is done about a step that goes wrong.

    budget: updates refused in a row (loss or gradient not finite, or a spike) that end the run.
    spike: what a loss means that lies `deviations` above the mean of the last: 'log' it, 'skip' the
        update, or 'roll_back' to the weights of the last checkpoint, going on with the next batch.
    replicas: how often the copies of the parameters are compared bit for bit; 0: never.
    seconds: without progress that end the run; compiling, evaluating and saving take what they do.
    """

    budget: PositiveInt = 3
    spike: Literal['log', 'skip', 'roll_back'] = 'log'
    deviations: Positive = 6.0
    replicas: Duration = Duration(0)
    seconds: Positive = 600.0


@dataclass(frozen=True)
class InitFrom:
    """Weights of another run, or of a hub folder or GGUF file (`bigjax.interop`).

    Leaves whose path matches `leaves` are taken, the rest is fresh.
    whole: the optimizer and the step too, of a run: this one goes on there, by its own schedule.
    """

    run: str
    leaves: str = '.*'
    checkpoint: str = 'latest'
    whole: bool = False

    def __post_init__(self) -> None:
        if self.whole and self.leaves != '.*':
            raise ValueError(f"whole takes all leaves, expected leaves='.*', got {self.leaves!r}")


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of that rank for the kernels whose path matches `targets`; see `bigjax.models.lora`.

    alpha: they are added times alpha / rank; None for the rank.
    train: other parameters that still train, where a path matches.
    """

    rank: PositiveInt
    alpha: Positive | None = None
    targets: str = 'attention/(query|value)/kernel'
    train: str = 'read_out'

    @property
    def scale(self) -> float:
        """Alpha / rank."""
        return (self.alpha or self.rank) / self.rank


@dataclass(frozen=True)
class ParametrizationConfig:
    """How initial values and learning rates change with the model's size; `optim.parametrization`.

    name: the standard one; 'mup' (Yang & Hu 2021); or 'completep', which scales in depth too (Dey
        et al. 2025).
    base: fields of the model that is as under 'sp': those of config.model that are smaller there,
        such as {'width': 64, 'heads': 1}. Of no effect under 'sp'.
    base_depth: its residual blocks, under 'completep'; None for as many as the model has.
    alpha_in, alpha_out: of what the input layer and the read-out give, to be tuned at the base.
    depth_exponent: a residual branch counts 1 / depth^this; under 'completep'.
    """

    name: Literal['sp', 'mup', 'completep'] = 'sp'
    base: Mapping[str, Any] = field(default_factory=dict)
    base_depth: PositiveInt | None = None
    alpha_in: Positive = 1.0
    alpha_out: Positive = 1.0
    depth_exponent: Annotated[float, Range(low=0.5, high=1)] = 1.0

    def __post_init__(self) -> None:
        if self.name == 'sp' and (self.alpha_in, self.alpha_out) != (1, 1):
            raise ValueError("alpha_in and alpha_out are of 'mup' and 'completep', not of 'sp'")
        if self.name == 'mup' and self.base_depth is not None:
            raise ValueError("base_depth is of 'completep': 'mup' does not scale in depth")
        if self.name != 'sp' and not self.base and self.base_depth is None:
            raise ValueError(
                f"{self.name!r} expects the base model's own fields, such as base={{'width': 64}}"
            )


@dataclass(frozen=True)
class Config:
    """One run."""

    model: Component
    task: TaskConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: NonNegativeInt = 0
    eval: EvalConfig = EvalConfig()
    mesh: MeshConfig = MeshConfig()
    precision: PrecisionConfig = PrecisionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    sinks: tuple[Literal['tensorboard', 'wandb'], ...] = ()
    init_from: InitFrom | None = None
    lora: LoraConfig | None = None
    parametrization: ParametrizationConfig = ParametrizationConfig()


def resolve(values: Mapping[str, Any]) -> Config:
    """A config from a mapping (or ConfigDict), every field checked. Raises: ConfigError."""
    if isinstance(values, ml_collections.ConfigDict):
        values = values.copy_and_resolve_references().to_dict()
    safety.refuse_secrets(flatten(values, 'config.'))
    return schema.build(Config, values, 'config')


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested mappings as one with dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f'{prefix}{key}'
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, name + '.'))
        else:
            flat[name] = value
    return flat


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys on which two plain configs differ, with both values."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def with_values(config: Config, **values: Any) -> Config:
    """A copy with dotted fields replaced: `with_values(config, **{'data.fold': 1})`."""
    plain = schema.to_dict(config)
    for key, value in values.items():
        *sections, last = key.split('.')
        section = plain
        for name in sections:
            section = section[name]
        section[last] = value
    return resolve(plain)
