"""Series and catalogs: the columns of frames."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Final, Self

from pydantic import Field, field_validator, model_validator

from stabilizer.protocol.message import Message

MAX_SERIES_PER_CATALOG: Final = 100_000
_METRIC = re.compile(r"[a-z][a-z0-9_]*\Z")
_KEY = re.compile(r"(?P<metric>[a-z][a-z0-9_]*)(?:\{(?P<labels>.*)\})?\Z", re.DOTALL)
_LABEL = re.compile(r'(?P<name>[a-z][a-z0-9_]*)="(?P<value>(?:[^"\\]|\\.)*)"(?:,|\Z)', re.DOTALL)

LabelValue = Annotated[str, Field(max_length=400)]


class SeriesKey(Message):
    """A metric with labels, which identifies a series.

    The text form is that of Prometheus: `activation_rms{kind="o_proj",layer="3"}`, labels sorted
    by name.
    """

    metric: Annotated[str, Field(max_length=120)]
    """Name of the metric in snake_case."""
    labels: dict[str, LabelValue] = Field(default_factory=dict, max_length=12)
    """Labels by name."""

    @field_validator("metric")
    @classmethod
    def _metric_is_a_noun(cls, metric: str) -> str:
        if not _METRIC.match(metric):
            raise ValueError("a metric is snake_case: letters a-z, digits and underscores")
        return metric

    @field_validator("labels")
    @classmethod
    def _labels_are_named(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in labels:
            if not _METRIC.match(name):
                raise ValueError(f"label name {name!r} is not snake_case")
        return dict(sorted(labels.items()))

    def __hash__(self) -> int:
        return hash((self.metric, tuple(self.labels.items())))

    def __str__(self) -> str:
        return format_series(self.metric, self.labels)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text form.

        Raises:
            ValueError: The text is not `metric` or `metric{name="value",...}`.
        """
        match = _KEY.match(text)
        if match is None:
            raise ValueError(f'{text!r} is not a series; write metric or metric{{name="value"}}')
        return cls(metric=match["metric"], labels=_parse_labels(match["labels"] or ""))


def _parse_labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            raise ValueError(f'labels {text!r} are not name="value" pairs')
        labels[match["name"]] = re.sub(r"\\(.)", r"\1", match["value"], flags=re.DOTALL)
        position = match.end()
    return labels


def format_series(metric: str, labels: Mapping[str, str]) -> str:
    """Return the text form: labels sorted by name, quotes and backslashes escaped."""
    if not labels:
        return metric
    escaped = (
        (name, labels[name].replace("\\", "\\\\").replace('"', '\\"')) for name in sorted(labels)
    )
    return metric + "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


class Catalog(Message):
    """An ordered list of series that are measured together.

    Its id is the hash of its content, so that jobs with the same model share a catalog.
    """

    series: Annotated[tuple[SeriesKey, ...], Field(min_length=1, max_length=MAX_SERIES_PER_CATALOG)]
    """The series in the order of the columns; none twice."""

    @model_validator(mode="after")
    def _series_are_distinct(self) -> Self:
        if len(set(self.series)) != len(self.series):
            twice, _ = Counter(self.series).most_common(1)[0]
            raise ValueError(f"series {twice} is in the catalog twice")
        return self

    @cached_property
    def id(self) -> str:
        """Content hash, 32 hexadecimal digits."""
        text = "\n".join(str(key) for key in self.series)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.series)

    @classmethod
    def of(cls, keys: Iterable[SeriesKey | str]) -> Self:
        """Build a catalog from keys or their text forms, in the order given."""
        parsed = (SeriesKey.parse(key) if isinstance(key, str) else key for key in keys)
        return cls(series=tuple(parsed))
