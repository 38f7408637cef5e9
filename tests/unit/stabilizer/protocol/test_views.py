import math

import pytest
from pydantic import ValidationError

from stabilizer.protocol.views import (
    CommandPreviewRequest,
    Heatmap,
    HeatmapColumn,
    HeatmapQuery,
    HeatmapRow,
    Sparkline,
)


def test_values_that_are_not_finite_survive_json():
    sparkline = Sparkline(steps=(1, 2, 3), values=(math.nan, math.inf, -math.inf))
    text = sparkline.model_dump_json()
    assert '"NaN","Infinity","-Infinity"' in text
    again = Sparkline.model_validate_json(text)
    assert math.isnan(again.values[0])
    assert again.values[1:] == (math.inf, -math.inf)


def test_not_measured_and_not_finite_stay_apart_in_json():
    heatmap = Heatmap(
        metric="activation_rms",
        statistic="max",
        rows=(HeatmapRow(series="a", module=None, tower=None, kind=None, layer=None),),
        columns=(
            HeatmapColumn(first_step=1, last_step=1),
            HeatmapColumn(first_step=2, last_step=2),
        ),
        values=((None, math.nan),),
        nonfinite=((0, 3),),
    )
    again = Heatmap.model_validate_json(heatmap.model_dump_json())
    assert again.values[0][0] is None
    assert math.isnan(again.values[0][1])


@pytest.mark.parametrize(
    "given", [{"max_columns": 3}, {"max_columns": 2001}, {"statistic": "median"}, {"attempt": 0}]
)
def test_a_heatmap_out_of_bounds_is_refused(given):
    with pytest.raises(ValidationError):
        HeatmapQuery(**{"metric": "activation_rms"} | given)


def test_a_preview_asks_as_a_command_does_and_takes_no_reason():
    asked = {"parameters": {"kind": "rollback", "to_step": 40}, "attempt": 2}
    assert CommandPreviewRequest.model_validate(asked).parameters.to_step == 40
    with pytest.raises(ValidationError):
        CommandPreviewRequest.model_validate(asked | {"reason": "why"})
