from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import jsonschema
import pytest

from bcc_ops.config import NOTEBOOK, DeploymentParameters, RetrainingConfig, Settings, form_fields
from bcc_ops.exceptions import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]


def test_notebook_preset_is_the_original_recipe() -> None:
    config = RetrainingConfig.resolve({"preset": "notebook"})
    assert (config.architecture, config.image_size, config.batch_size, config.epochs) == ("cnn", 500, 32, 20)
    assert not config.keep_aspect, "image_dataset_from_directory squeezes"
    assert not config.standardize, "it only rescaled"
    assert config.folds == 1, "it trained one model, on 80 % of the images"


def test_a_training_with_another_aspect_is_another_one() -> None:
    """Checkpoints are named by these parameters: none is taken up with the other pixels."""
    kept, squeezed = (RetrainingConfig.resolve({"keep_aspect": keep}) for keep in (True, False))
    assert kept == RetrainingConfig.resolve({})
    assert kept.training_parameters() != squeezed.training_parameters()


def test_a_given_parameter_beats_the_preset() -> None:
    assert RetrainingConfig.resolve({"preset": "notebook", "epochs": 3}).epochs == 3


@pytest.mark.parametrize("empty", [None, ""])
def test_a_parameter_left_empty_in_the_form_takes_the_presets_value(empty: object) -> None:
    assert RetrainingConfig.resolve({"preset": "notebook", "epochs": empty}).epochs == 20


def test_origins_tell_given_deployment_preset_and_default_apart() -> None:
    deployment = {"preset": "notebook", "batch_size": 8, "min_macro_auc": 0.9}
    # The form arrives filled in with the deployment's values.
    config = RetrainingConfig.resolve({"min_macro_auc": 0.9, "epochs": 3, "seed": None}, deployment)
    origins = config.origins(deployment)
    expected = {"epochs": "given", "batch_size": "deployment", "min_macro_auc": "deployment", "preset": "deployment"}
    expected |= {"image_size": "preset", "seed": "default"}
    assert {name: origins[name] for name in expected} == expected
    assert (config.epochs, config.batch_size, config.image_size, config.min_macro_auc) == (3, 8, 500, 0.9)


def test_a_deployments_recipe_is_for_its_own_preset() -> None:
    deployment = {"preset": "transfer", "epochs": 18, "min_macro_auc": 0.9}
    config = RetrainingConfig.resolve({"preset": "notebook"}, deployment)
    assert (config.epochs, config.min_macro_auc) == (20, 0.9)
    assert (config.origins(deployment)["preset"], config.origins(deployment)["epochs"]) == ("given", "preset")


def parameters_file(folder: Path, text: str) -> str:
    path = folder / "parameters.yaml"
    path.write_text(text)
    return str(path)


def test_the_deployments_file_is_what_the_form_starts_with(tmp_path: Path) -> None:
    path = parameters_file(tmp_path, "require_approval: true\nepochs: 18\nmin_malignant_groups: 40\nsplit_salt:\n")
    deployment = DeploymentParameters.read(path)
    assert (deployment.problem, dict(deployment.values)) == (
        None,
        {"require_approval": True, "epochs": 18, "min_malignant_groups": 40},
    )
    fields = form_fields(deployment.values)
    assert (fields["require_approval"][0], fields["min_malignant_groups"][0], fields["epochs"][0]) == (True, 40, None)
    assert "Empty: 18 (this deployment), 12 (transfer)" in fields["epochs"][1]["description_md"]
    filled_in = {parameter: default for parameter, (default, _) in fields.items()}
    night = deployment.resolve(filled_in)
    assert (night.require_approval, night.epochs, night.min_malignant_groups) == (True, 18, 40)
    assert "given" not in night.origins(deployment.values).values()


def test_the_example_in_the_repository_is_valid_once_its_lines_are_switched_on(tmp_path: Path) -> None:
    example = (REPOSITORY / "deploy" / "parameters.yaml").read_text()
    assert DeploymentParameters.read(str(REPOSITORY / "deploy" / "parameters.yaml")) == DeploymentParameters()
    switched_on = re.sub(r"^#(?=\w+: )", "", example, flags=re.M)
    deployment = DeploymentParameters.read(parameters_file(tmp_path, switched_on))
    assert deployment.problem is None
    assert {"patient_pattern", "require_approval", "external_prefixes", "min_malignant_groups", "preset"} <= set(
        deployment.values
    )
    assert {"min_new_images", "wait_for_images_minutes", "settle_seconds"} <= set(deployment.values)
    usual = RetrainingConfig().model_dump(mode="json")
    changed = {name for name, value in deployment.values.items() if value != usual[name]}
    assert changed == {"patient_pattern", "external_prefixes"}, "the example shows the defaults"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("requires_approval: true", "requires_approval: there is no such parameter; did you mean require_approval?"),
        ("epochs: 0", "epochs: Input should be greater than or equal to 1"),
        ("min_macro_auc: high", "min_macro_auc: "),
        ("preset: best", "preset: must be transfer or notebook, got 'best'"),
        ("as_of: 2026-01-01", "as_of: is a parameter of one run"),
        ("- epochs", "must be lines of `parameter: value`"),
        ("epochs: [", "is not YAML"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_in_the_deployments_file_is_one_clear_line_and_stops_runs_but_not_the_import(
    tmp_path: Path, text: str | None, said: str
) -> None:
    path = str(tmp_path / "absent.yaml") if text is None else parameters_file(tmp_path, text)
    deployment = DeploymentParameters.read(path)
    assert deployment.problem is not None
    assert deployment.problem.startswith(f"BCC_PARAMETERS={path}: {said}")
    assert "\n" not in deployment.problem
    assert form_fields(deployment.values) == form_fields()
    with pytest.raises(ConfigError, match="no run starts until then"):
        deployment.resolve({})


@pytest.mark.parametrize(("own", "given"), [("", r"(P\d+)"), (r"(P\d+)", r"(Q\d+)")])
def test_a_run_that_would_group_images_in_another_way_than_the_deployment_is_refused(own: str, given: str) -> None:
    deployment = DeploymentParameters({"patient_pattern": own} if own else {})
    assert deployment.resolve({}).patient_pattern == own
    assert deployment.resolve({"patient_pattern": own}).patient_pattern == own
    with pytest.raises(ConfigError, match="set it in the file that BCC_PARAMETERS names"):
        deployment.resolve({"patient_pattern": given})


def test_a_run_may_ask_for_an_approval_that_its_deployment_does_not_and_never_the_other_way_round() -> None:
    strict = DeploymentParameters({"require_approval": True})
    assert strict.resolve({}).require_approval
    with pytest.raises(ConfigError, match="require_approval: this deployment asks a person about every model, and a run cannot"):
        strict.resolve({"require_approval": False})
    for lax in (DeploymentParameters(), DeploymentParameters({"require_approval": False})):
        assert lax.resolve({"require_approval": True}).require_approval
        assert not lax.resolve({"require_approval": False}).require_approval


def test_every_parameter_is_read_somewhere() -> None:
    """A parameter that changes nothing misleads whoever sets it."""
    sources = [path.read_text() for path in (REPOSITORY / "plugins").rglob("*.py") if path.name != "config.py"]
    sources.append((REPOSITORY / "plugins" / "bcc_ops" / "config.py").read_text().split("class RetrainingConfig")[1])
    unread = [
        name
        for name in RetrainingConfig.model_fields
        if not any(re.search(rf"(config|parameters|self)\.{name}\b|[\"']{name}[\"']", source) for source in sources)
    ]
    assert unread == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"folds": 0}, "folds"),
        ({"folds": 6}, "folds"),
        ({"min_malignant_groups": 0}, "min_malignant_groups"),
        ({"validation_fraction": 0.2}, "validation_fraction: there is no such parameter"),
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


def test_external_sets_are_called_by_their_last_folder_or_as_they_are_named() -> None:
    config = RetrainingConfig.resolve({"external_prefixes": " far/Ulm/ ,lima = south/peru/scans, site=a=b,"})
    assert config.external_sets == (("Ulm", "far/Ulm"), ("lima", "south/peru/scans"), ("site", "a=b"))
    assert RetrainingConfig().external_sets == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a/x, b/X", "two sets are called 'X': give one of them another name, NAME=PREFIX"),
        ("a, other=a/b", "the sets 'a' and 'other' overlap"),
        ("x=a/b, y=a", "the sets 'x' and 'y' overlap"),
        ("a, again=a/", "the sets 'a' and 'again' overlap"),
        ("x=/", "'x=/' names no prefix"),
        ("site a", "'site a' cannot name a set: write NAME=PREFIX"),
        ("<b>=a", "cannot name a set"),
    ],
)
def test_external_sets_that_cannot_be_told_apart_are_refused(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        RetrainingConfig.resolve({"external_prefixes": given})


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("images/benign", r"'benign' \('images/benign'\) overlaps with the images \('images'\)"),
        ("artifacts", "overlaps with the artifacts"),
        ("x=models/v1", "'x' .* overlaps with the models"),
    ],
)
def test_an_external_set_is_outside_of_what_the_deployment_keeps(prefix: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"external_prefixes: the set {said}" if "'" in said else said):
        Settings().require_apart(RetrainingConfig.resolve({"external_prefixes": prefix}))
    Settings().require_apart(RetrainingConfig.resolve({"external_prefixes": "images-of-others, modelsandmore"}))


def test_as_of_without_a_zone_is_utc_and_with_one_is_converted() -> None:
    assert RetrainingConfig.resolve({"as_of": "2026-01-02T03:04:05"}).as_of == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    there = RetrainingConfig.resolve({"as_of": "2026-01-02T03:04:05+02:00"}).as_of
    assert there is not None
    assert there.utcoffset() == timedelta(0)
    assert there.hour == 1


def test_training_parameters_leave_out_what_cannot_change_the_weights() -> None:
    parameters = RetrainingConfig.resolve({}).training_parameters()
    assert {"seed", "epochs", "rotation", "folds", "split_salt", "min_side"} <= set(parameters)
    decides_later = {"max_holdout_reuse", "min_malignant_groups", "external_margin", "require_approval", "wanted_sensitivity"}
    assert not {"as_of", *decides_later} & set(parameters)


def test_every_parameter_of_the_form_has_a_title_a_sentence_a_section_and_a_default_its_schema_allows() -> None:
    fields = form_fields()
    assert set(fields) == set(RetrainingConfig.model_fields) - {"patient_pattern"}
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


ON_SAGEMAKER = {
    "BCC_TRAIN_ON": "sagemaker",
    "BCC_SAGEMAKER_ROLE_ARN": "arn:aws:iam::123456789012:role/service-role/bcc-training",
    "BCC_SAGEMAKER_IMAGE_URI": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/bcc-retraining@sha256:" + "0" * 64,
    "BCC_SAGEMAKER_INSTANCE_TYPE": "ml.g5.xlarge",
}


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"BCC_IMAGES_PREFIX": "/"}, "BCC_IMAGES_PREFIX"),
        ({"BCC_IMAGES_PREFIX": "a", "BCC_ARTIFACTS_PREFIX": "a/b"}, "overlap"),
        ({"BCC_IMAGES_PREFIX": "same", "BCC_MODELS_PREFIX": "same"}, "overlap"),
        ({"BCC_CLASSES": "one"}, "classes"),
        ({"BCC_POSITIVE_CLASS": "none of them"}, "positive_class"),
        ({"BCC_CACHE_BUDGET_GB": "-1"}, "BCC_CACHE_BUDGET_GB"),
        ({"BCC_TRAINING_PYTHON": "python3"}, "BCC_TRAINING_PYTHON: .*absolute path"),
        ({"BCC_TRAIN_ON": "lambda"}, "BCC_TRAIN_ON: .*'worker' or 'sagemaker'"),
        ({"BCC_TRAIN_ON": "sagemaker"}, "also needs sagemaker_role_arn, sagemaker_image_uri, sagemaker_instance_type: see docs"),
        ({"BCC_SAGEMAKER_ROLE_ARN": "bcc"}, "BCC_SAGEMAKER_ROLE_ARN: .*'bcc' is not the ARN of a role, arn:aws:iam::"),
        ({"BCC_SAGEMAKER_ROLE_ARN": "arn:aws:iam::1:role/bcc"}, "BCC_SAGEMAKER_ROLE_ARN: .*is not the ARN of a role"),
        ({"BCC_SAGEMAKER_ROLE_ARN": "arn:aws:iam::123456789012:role/bcc!"}, "BCC_SAGEMAKER_ROLE_ARN: .*is not the ARN of a role"),
        ({"BCC_SAGEMAKER_SUBNETS": ",".join(["subnet-1"] * 17)}, "BCC_SAGEMAKER_SUBNETS: .*at most 16"),
        ({"BCC_SAGEMAKER_SECURITY_GROUPS": ",".join(["sg-1"] * 6)}, "BCC_SAGEMAKER_SECURITY_GROUPS: .*at most 5"),
        ({"BCC_SAGEMAKER_IMAGE_URI": "bcc:1"}, "BCC_SAGEMAKER_IMAGE_URI: .*is not an image in Amazon ECR"),
        ({"BCC_SAGEMAKER_INSTANCE_TYPE": "g5.xlarge"}, "BCC_SAGEMAKER_INSTANCE_TYPE: .*as ml.g5.xlarge"),
        ({"BCC_SAGEMAKER_VOLUME_GB": "0"}, "BCC_SAGEMAKER_VOLUME_GB"),
        ({"BCC_SAGEMAKER_SUBNETS": "subnet-1 subnet-2"}, "BCC_SAGEMAKER_SUBNETS: .*comma-separated subnet ids"),
        ({"BCC_SAGEMAKER_SUBNETS": "subnet-1"}, "sagemaker_subnets and sagemaker_security_groups: set both"),
        ({**ON_SAGEMAKER, "BCC_TRAINING_PYTHON": "/opt/python"}, "leave training_python out"),
    ],
)
def test_a_wrong_setting_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Settings.from_environment(environment)


def test_sagemaker_can_be_configured_and_is_not_used_before_it_is_chosen() -> None:
    settings = Settings.from_environment(ON_SAGEMAKER)
    assert (settings.train_on, settings.sagemaker_spot_wait_minutes, settings.sagemaker_volume_gb) == ("sagemaker", 0, 50)
    vpc = {"BCC_SAGEMAKER_SUBNETS": "subnet-1a, subnet-2b", "BCC_SAGEMAKER_SECURITY_GROUPS": "sg-1"}
    assert Settings.from_environment({**ON_SAGEMAKER, **vpc}).sagemaker_subnets == "subnet-1a, subnet-2b"
    prepared = {name: value for name, value in ON_SAGEMAKER.items() if name != "BCC_TRAIN_ON"}
    assert Settings.from_environment({**prepared, "BCC_TRAINING_PYTHON": "/opt/python"}).train_on == "worker"


def test_the_form_names_the_positive_class_of_the_deployment() -> None:
    _, form = form_fields({}, "finding")["min_malignant_groups"]
    assert form["title"] == "Finding groups to compare on"
    shown = " ".join(f"{form['title']} {form['description']}" for _, form in form_fields({}, "finding").values())
    assert "finding" in shown and "malignant" not in shown.lower()


@pytest.mark.parametrize(
    ("actions", "problem"),
    [
        ("armpit=report", "'armpit' is not a finding"),
        ("axilla=remove", "the action must be one of ignore, report, exclude_from_training, exclude, not 'remove'"),
        ("axilla", "the action must be one of"),
        ("axilla=report, axilla=ignore", "axilla is named twice"),
    ],
)
def test_content_findings_name_a_finding_and_an_action(actions, problem):
    with pytest.raises(ConfigError, match=problem):
        RetrainingConfig.resolve({"content_findings": actions})
