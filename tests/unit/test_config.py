from __future__ import annotations

from datetime import datetime, timedelta, timezone

import jsonschema
import pytest

from bcc_ops.config import NOTEBOOK, RetrainingConfig, Settings, form_fields
from bcc_ops.exceptions import ConfigError


def test_notebook_preset_is_the_original_recipe() -> None:
    config = RetrainingConfig.resolve({"preset": "notebook"})
    assert (config.architecture, config.image_size, config.batch_size, config.epochs) == ("cnn", 500, 32, 20)
    assert config.validation_fraction == 0.2


def test_a_given_parameter_beats_the_preset() -> None:
    assert RetrainingConfig.resolve({"preset": "notebook", "epochs": 3}).epochs == 3


@pytest.mark.parametrize("empty", [None, ""])
def test_a_parameter_left_empty_in_the_form_takes_the_presets_value(empty: object) -> None:
    assert RetrainingConfig.resolve({"preset": "notebook", "epochs": empty}).epochs == 20


def test_origins_tell_given_preset_and_default_apart() -> None:
    origins = RetrainingConfig.origins({"preset": "notebook", "epochs": 3, "seed": None})
    assert (origins["epochs"], origins["image_size"], origins["seed"]) == ("given", "preset", "default")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"validation_fraction": 0.9}, "validation_fraction"),
        ({"no_such_parameter": 1}, "no_such_parameter"),
        ({"preset": "magic"}, "preset"),
        ({"patient_pattern": "("}, "patient_pattern"),
        ({"patient_pattern": "no group"}, "patient_pattern"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_a_parameter_out_of_bounds_is_named_in_one_line(given: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RetrainingConfig.resolve(given)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_as_of_without_a_zone_is_utc_and_with_one_is_converted() -> None:
    assert RetrainingConfig.resolve({"as_of": "2026-01-02T03:04:05"}).as_of == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    there = RetrainingConfig.resolve({"as_of": "2026-01-02T03:04:05+02:00"}).as_of
    assert there is not None
    assert there.utcoffset() == timedelta(0)
    assert there.hour == 1


def test_training_parameters_leave_out_what_cannot_change_the_weights() -> None:
    parameters = RetrainingConfig.resolve({}).training_parameters()
    assert {"seed", "epochs", "rotation", "split_salt", "min_side"} <= set(parameters)
    assert not {"max_holdout_reuse", "require_approval", "as_of", "wanted_sensitivity"} & set(parameters)


def test_every_parameter_of_the_form_has_a_title_a_sentence_a_section_and_a_default_its_schema_allows() -> None:
    fields = form_fields()
    assert set(fields) == set(RetrainingConfig.model_fields)
    for parameter, (default, schema) in fields.items():
        assert schema["title"], parameter
        assert schema["description"].endswith("."), parameter
        assert schema["section"], parameter
        jsonschema.validate(default, schema)


def test_the_forms_defaults_resolve_to_the_defaults() -> None:
    assert (
        RetrainingConfig.resolve({parameter: default for parameter, (default, _) in form_fields().items()}) == RetrainingConfig()
    )


def test_the_form_names_both_presets_values_for_what_a_preset_sets() -> None:
    for parameter in NOTEBOOK:
        assert "(transfer)" in form_fields()[parameter][1]["description_md"]


def test_settings_read_the_environment_and_ignore_empty_variables() -> None:
    settings = Settings.from_environment(
        {"BCC_BUCKET": "b", "BCC_CLASSES": "a, b", "BCC_POSITIVE_CLASS": "a", "BCC_TIMEZONE": ""}
    )
    assert (settings.bucket, settings.classes, settings.timezone) == ("b", ("a", "b"), "UTC")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"BCC_IMAGES_PREFIX": "/"}, "BCC_IMAGES_PREFIX"),
        ({"BCC_IMAGES_PREFIX": "a", "BCC_ARTIFACTS_PREFIX": "a/b"}, "overlap"),
        ({"BCC_IMAGES_PREFIX": "same", "BCC_MODELS_PREFIX": "same"}, "overlap"),
        ({"BCC_CLASSES": "one"}, "classes"),
        ({"BCC_POSITIVE_CLASS": "none of them"}, "positive_class"),
        ({"BCC_CACHE_BUDGET_GB": "-1"}, "BCC_CACHE_BUDGET_GB"),
    ],
)
def test_a_wrong_setting_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Settings.from_environment(environment)
