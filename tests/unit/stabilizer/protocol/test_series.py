import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stabilizer.protocol.series import Catalog, SeriesKey

names = st.from_regex(r"\A[a-z][a-z0-9_]{0,10}\Z")


class TestSeriesKey:
    @given(metric=names, labels=st.dictionaries(names, st.text(max_size=30), max_size=5))
    def test_text_form_reads_back_as_the_same_key(self, metric, labels):
        key = SeriesKey(metric=metric, labels=labels)
        assert SeriesKey.parse(str(key)) == key

    def test_label_order_does_not_matter(self):
        assert SeriesKey(metric="loss", labels={"b": "1", "a": "2"}) == SeriesKey.parse(
            'loss{a="2",b="1"}'
        )

    @pytest.mark.parametrize(
        "text", ["", "Loss", "loss{", "loss{a=1}", 'loss{a="1"}x', "loss{}{}", 'loss{a="1" b="2"}']
    )
    def test_what_is_no_series_is_refused(self, text):
        with pytest.raises((ValueError, ValidationError)):
            SeriesKey.parse(text)

    def test_empty_braces_are_the_bare_metric(self):
        assert SeriesKey.parse("loss{}") == SeriesKey.parse("loss")


class TestCatalog:
    def test_id_is_the_content(self):
        first, second = Catalog.of(["loss", "lr"]), Catalog.of(["loss", "lr"])
        assert first.id == second.id

    def test_order_is_content(self):
        assert Catalog.of(["loss", "lr"]).id != Catalog.of(["lr", "loss"]).id

    def test_id_is_stable_over_releases(self):
        assert Catalog.of(["loss", 'lr{group="0"}']).id == "6c972be2d5a44c95e5cc017bf1db64f5"

    def test_a_series_stands_in_it_once(self):
        with pytest.raises(ValidationError, match="twice"):
            Catalog.of(['lr{b="1",a="2"}', 'lr{a="2",b="1"}'])

    def test_empty_is_refused(self):
        with pytest.raises(ValidationError):
            Catalog.of([])

    def test_survives_json(self):
        catalog = Catalog.of(["loss", 'loss{source="a\\"b"}'])
        assert Catalog.model_validate_json(catalog.model_dump_json()).id == catalog.id
