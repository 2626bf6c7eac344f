"""Facts about a run that its result contains: numbers of the run, measurements for the report, and verdicts.

The functions that measure return these structs, the result stores them as JSON, and the page reads them. The sizes of
those that only the report needs do not grow with the number of rows, shards or warnings.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import field

from shardpress.base.errors import quantity
from shardpress.base.formats import Facts
from shardpress.base.outliers import Outlier
from shardpress.model.about import Units

Level: TypeAlias = Literal["keep", "watch", "retrain"]
"""Whether new rows are like the training rows, differ, or differ so much that the model does not represent them well.
"""
ScoreName: TypeAlias = Literal["accuracy", "R2"]
Source: TypeAlias = Literal["trained", "given", "kept"]
"""Source of a model: this run trained it, ``--model`` gave it, or that of the result in the directory stayed."""


# -- files and rows ------------------------------------------------------------------------------------------------


class BadFile(Facts, frozen=True):
    """A file that cannot be used, or of which some rows cannot be read."""

    file: str
    reason: str


class BadFiles(Facts, frozen=True):
    n: int
    first: list[BadFile]


class BadRow(Facts, frozen=True):
    """A row that cannot be used, with its first bad column."""

    file: str
    dataset: str
    row: int
    column: int | None
    name: str | None  # of the column
    value: str


class BadRows(Facts, frozen=True):
    n: int
    first: list[BadRow]


class BadDataFacts(Facts, frozen=True):
    shards: BadFiles
    rows: BadRows
    n_uncompared: int  # rows that stay in the result although their files, or they, cannot be read


class InputFacts(Facts, frozen=True):
    n_shards: int
    n_rows: int
    n_bytes: int
    dataset: str
    dtype: str
    shape: list[int]  # of the first shard
    columns: str
    extras: list[str]
    files: list[str]


class ColumnDrift(Facts, frozen=True):
    """Values of a column outside the range of the model's training rows, `low` to `high`."""

    column: int
    name: str | None
    value: float  # the farthest one
    low: float
    high: float
    n_values: int
    excess: float  # distance of the farthest value from the range, divided by its width
    n_shards: int


class ShardDrift(Facts, frozen=True):
    file: str
    n_rows: int
    n_outside: int


class Drift(Facts, frozen=True):
    """Rows outside the range of a model's training rows. Only the columns and shards with most of them are listed."""

    on_drift: Literal["pass", "clip", "raise"]
    n_rows: int
    n_outside: int
    n_columns: int
    n_shards: int
    is_whole: bool  # whether all columns of each part are counted, and not only the farthest ones
    columns: list[ColumnDrift]
    shards: list[ShardDrift]


# -- times ---------------------------------------------------------------------------------------------------------


class StageFacts(Facts, frozen=True):
    seconds: float
    processor_seconds: float
    n_cores: int
    bound_by: dict[str, float]  # shares of the time, by what the stage waited for; empty if it was short
    n_rows: int  # 0 if the stage did not process all rows
    n_bytes: int


class Work(Facts, frozen=True):
    """Work of a process in a stage."""

    n_tasks: int
    n_rows: int
    seconds: float


class WorkerFacts(Facts, frozen=True):
    name: str
    host: str
    pid: int
    device: str | None
    stages: dict[str, Work]


class ClusterFacts(Facts, frozen=True):
    kind: str
    workers: list[WorkerFacts]
    address: str | None = None


class Memory(Facts, frozen=True):
    peak_bytes: int


class WarningFacts(Facts, frozen=True):
    n: int
    first: list[str]


# -- a sample of rows ----------------------------------------------------------------------------------------------


class Location(Facts, frozen=True):
    """The location of an input row, and its label."""

    file: str
    dataset: str
    row: int
    label: str | None


class WorstRow(Location, frozen=True):
    """A row with a large error, or with a large share of the variance of a feature."""

    error: float
    leverage: float  # its largest share of the variance of a feature
    column: int  # with the largest error
    name: str | None


class Owner(Location, frozen=True):
    """A row with much of the variance of a feature."""

    feature: int
    share: float


class Pair(Location, frozen=True):
    """A row and its reconstruction: values in a line, or pixels in Base64 with one byte each."""

    error: float
    input: list[float] | str
    again: list[float] | str


class Pairs(Facts, frozen=True):
    shape: list[int] | None  # of the images; None if the rows are lines
    rows: list[Pair]


class Distribution(Facts, frozen=True):
    """Quantiles and a histogram of the errors of rows."""

    quantiles: dict[str, float]
    edges: list[float]
    counts: list[int]


class Points(Facts, frozen=True):
    """The first two principal components of some rows, of their features and of their reconstructions."""

    inputs: list[tuple[float, float]]
    codes: list[tuple[float, float]]
    reconstructions: list[tuple[float, float]]
    labels: list[int] | None  # positions in `names`, or negative
    names: list[str]
    dataset: str | None  # of the labels


class Width(Facts, frozen=True):
    """Errors and scores of the first features of a nested model, and of the same number of principal components."""

    n_features: int
    error: float
    components: float
    score: float | None = None
    components_score: float | None = None


class Widths(Facts, frozen=True):
    n_rows: int
    are_held_out: bool
    n_fitted: int  # training rows of the components
    widths: list[Width]


class BaselineScore(Facts, frozen=True):
    score: float
    margin: float  # error bar of the difference from the score on features


class LinearProbe(Facts, frozen=True):
    """Scores of a linear model on features and on baselines."""

    labels: str
    score_name: ScoreName
    n_train: int
    n_test: int
    n_components: int
    n_fitted: int  # training rows of the components
    features: float
    components: BaselineScore
    standardized: BaselineScore
    columns: BaselineScore
    constant: BaselineScore  # of the most frequent label, or of the mean

    @property
    def baselines(self) -> dict[str, BaselineScore]:
        """Baselines that need no training: components of scaled and of standardized columns, and the columns."""
        return {"components": self.components, "standardized": self.standardized, "columns": self.columns}


class NoTest(Facts, frozen=True):
    """Reason why no row can test a linear model honestly."""

    labels: str
    score_name: ScoreName
    has_trained: Literal["all rows", "most rows"]


class SampleFacts(Facts, frozen=True):
    """Measurements of a sample of rows."""

    n_rows: int
    mean_error: float
    of_mean: float  # error of the mean of all rows
    outlier: Outlier | None
    errors: Distribution
    worst: list[WorstRow]
    owners: list[Owner]
    units: Units
    points: Points
    pairs: Pairs
    n_of_worst: int | None = None  # rows among which `worst` and `owners` were found; None for those of the sample
    widths: Widths | None = None
    probe: LinearProbe | None = None
    no_test: NoTest | None = None
    labels_remark: str = ""


class Judgment(Facts, frozen=True):
    """Judgment of the features. A sentence that does not apply is an empty string."""

    is_good: bool  # whether nothing speaks against the features
    error: str  # sentences on the reconstruction error
    outlier: str  # sentence on the row with most of the error, unless the summary has it
    classifier: str  # sentence on the linear classifier or regression
    explained: str  # sentence on the explained variance, if it is next to nothing
    suggestion: str  # sentence that suggests what to try

    @property
    def remark(self) -> str:
        """Sentences for the last line of the log, which contains the reconstruction error as a number."""
        sentences = (self.outlier, self.classifier, self.explained, self.suggestion)
        return " ".join(sentence for sentence in sentences if sentence)


# -- appends -------------------------------------------------------------------------------------------------------


class StuckColumn(Facts, frozen=True):
    """A column that no longer varies."""

    column: int
    name: str | None


class Verdict(Facts, frozen=True):
    """Verdict on new rows. Measures that cannot be estimated are None."""

    level: Level
    reasons: list[str]  # sentences about the differences, or one sentence that there are none
    n_rows: int  # new good rows
    n_sampled: int
    outside_share: float | None = None  # of the new rows, outside the training range
    reference_outside_share: float | None = None  # the expected share
    error_ratio: float | None = None  # mean reconstruction error divided by that of the reference
    mean_shift: float | None = None  # Euclidean distance between the means of the whitened features
    covariance_shift: float | None = None  # Frobenius norm of the difference between their covariances
    stuck_columns: list[StuckColumn] = field(default_factory=list)


class AppendCounts(Facts, frozen=True):
    """Numbers of the files that an append adds, replaces and removes, and of the rows that it encodes."""

    n_new: int
    n_changed: int
    n_dropped: int
    n_rows: int


class Append(AppendCounts, frozen=True):
    id: int  # from 1 on, among those to the rows of a model
    verdict: Verdict | None  # on the new rows; None if there are none, or if they cannot be judged


# -- maps ----------------------------------------------------------------------------------------------------------


class KeptAccuracy(Facts, frozen=True):
    """The accuracy of a linear classifier of other features, on these and on mapped features."""

    labels: str
    n_test: int
    accuracy: float
    mapped: float


# -- the run -------------------------------------------------------------------------------------------------------


class Fault(Facts, frozen=True):
    """Fault of an output file, or reason why an input file cannot be checked."""

    file: str
    fault: str


class RowCheck(Facts, frozen=True):
    """Result of recomputing the features of some rows."""

    n_rows: int = 0  # rows whose features were recomputed
    n_bad: int = 0  # selected rows that are bad, and whose stored features are NaN as expected
    largest_difference: float = 0.0  # between a stored and a recomputed feature
    of_tolerance: float = 0.0  # largest ratio of a difference to its tolerance; above 1 if a feature is wrong
    n_unread: int = 0  # selected rows that could not be read, and whose stored features are not NaN
    faults: list[Fault] = field(default_factory=list)  # of parts with wrong features
    unchecked: list[Fault] = field(default_factory=list)  # input files that could not be read

    def __str__(self) -> str:
        if not self.n_rows:
            return "no row could be recomputed"
        unread = f"; {quantity(self.n_unread, 'row')} could not be compared" if self.n_unread else ""
        return (
            f"{self.n_rows} rows recomputed in float64 differ by at most {self.largest_difference:.2g} "
            f"({100 * self.of_tolerance:.2g} % of the tolerance){unread}"
        )


class StorageFacts(Facts, frozen=True):
    """Storage of the features."""

    dtype: str
    compression: str
    max_error: float  # largest difference from the encoder's results
    n_bytes: int  # of all parts


class Summary(Facts, frozen=True):
    """Numbers of a result and of its last run."""

    n_rows: int
    n_inputs: int
    n_features: int
    n_bad: int  # rows whose features are NaN
    n_parts: int
    device: str  # that computed, and why it was chosen
    cost: float | None  # of validation rows in the best epoch, or of its training rows; None with a given model
    seconds: dict[str, float]  # of each stage
    n_bad_shards: int  # left out or unreadable
    n_outside: int  # rows outside the range that a given model was trained on
    components: float | None  # `cost` for principal components
    mean: float | None  # `cost` for the column means
    outlier: Outlier | None  # None if there are no outliers
    compiling: float  # seconds of the compiler, which stages do not include
    gave_up: str  # a sentence about the epochs that a deadline prevented
    kept_start: str  # a sentence on features that are principal components, because the training kept its start
    n_components: int  # number of principal components, which is the number of features that the decoder gets
    appended: AppendCounts | None  # None unless the run was an append
    verdict: Level | None  # on the new rows

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


class ScanFacts(Facts, frozen=True):
    scale: str
    narrow_columns: dict[int, float] = field(default_factory=dict)
    filled: dict[int, int] | None = None  # numbers of missing values that were filled, by the columns


class OneRun(Facts, frozen=True, kw_only=True):
    """One run in an output directory."""

    number: int  # from 1 on
    made: str  # time
    command: str
    device: str  # that computed, and why it was chosen
    versions: dict[str, str]
    seconds: dict[str, float]  # of each stage
    compiling: float  # seconds of the compiler, which stages do not include
    generation: int  # of the features
    source: Source
    n_rows: int  # of the result
    n_bad: int
    cost: float | None  # as in `Summary`
    changed: dict[str, tuple[str, str]]  # settings that differ from those of the run before, with both values
    append: Append | None = None


class RunDetails(Facts, frozen=True):
    """Details of a run, of which a result keeps those of the last one."""

    host: str
    directory: str
    device: dict[str, str | int]
    stages: dict[str, StageFacts]
    cluster: ClusterFacts
    memory: Memory
    taken_over: list[str]  # results of earlier runs in words
    warnings: WarningFacts
