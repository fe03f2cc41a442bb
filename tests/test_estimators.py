"""Our transformers in front of scikit-learn's own rules, and pipelines in front of a DataFrame's order of columns."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

from fraudnb.preprocess import AddRatios
from fraudnb.schema import Schema
from fraudnb.train import MedianImputer, inference_pipeline, make_pipeline, model_names, name_inputs

SCHEMA = Schema(features=("V1", "V2"))
INPUTS = ["V1", "V2", "Amount"]


@pytest.mark.parametrize("transformer", [AddRatios(), AddRatios([(0, 1)]), MedianImputer()], ids=repr)
def test_transformers_keep_to_the_rules_of_scikit_learn(transformer):
    """None of the checks is expected to fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        done = check_estimator(transformer, on_fail=None)
    failed = {one["check_name"]: repr(one["exception"]) for one in done if one["status"] not in ("passed", "skipped")}
    assert not failed and len(done) > 40


def table(rows: int = 200) -> tuple[pd.DataFrame, np.ndarray]:
    """Inputs with gaps, and a label that they tell something about."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(rows, 3)).astype(np.float32), columns=INPUTS)
    label = (frame["V1"] > 0.8).to_numpy().astype(int)
    frame.loc[::20, "V2"] = np.nan
    return frame, label


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # the little table is no training
@pytest.mark.parametrize("ratios", [(), ("Amount / V1",)], ids=["", "ratios"])
@pytest.mark.parametrize("name", model_names())
def test_a_stored_pipeline_knows_its_columns_by_name(name, ratios):
    """The right order gives no warning; another is refused, or taken by the names: never scored as it stands."""
    frame, label = table()
    fitted = make_pipeline(name, INPUTS, SCHEMA, ratios=ratios).fit(frame.to_numpy(), label)
    expected = fitted.predict_proba(frame.to_numpy())
    named = name_inputs(inference_pipeline(fitted), INPUTS)
    np.testing.assert_allclose(named.predict_proba(frame), expected, rtol=1e-6)
    turned = frame[["Amount", "V2", "V1"]]
    try:
        found = named.predict_proba(turned)
    except ValueError as error:
        assert "should match those that were passed during fit" in str(error)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="feature names should match|columns are missing"):
        named.predict_proba(frame.rename(columns={"V2": "V9"}))
