"""The models of a deployment: one, from `BCC_*`, or several, from the section `instances` of the deployment's file.

instances:
  breast:
    title: Breast ultrasound
    bucket: breast-images
  textures:
    bucket: textures
    classes: [finding, no_finding]
    positive_class: finding
    parameters: {folds: 1}

An instance has its own DAGs, assets, pages, metrics and cache. What it does not set comes from the environment. A mistake in one
instance stops that one alone; an overlap stops all that overlap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from bcc_ops.config import DeploymentFile, DeploymentParameters, RetrainingConfig, Settings, nearest, read_deployment_file
from bcc_ops.exceptions import ConfigError

RETRAINING, SET_CHAMPION = "bcc_retraining", "bcc_set_champion"

_NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
_LONGEST_NAME = 40
_PREFIXES = ("images_prefix", "artifacts_prefix", "models_prefix")
OWN_SETTINGS = frozenset(Settings.model_fields) - {"parameters", "cache_dir", "metadata_salt"}
"""What an instance may set, beside `parameters`. The cache's place belongs to the worker, and the salt is the workers' secret,
while every component reads this file."""


@dataclass(frozen=True)
class Instance:
    """One model of the deployment.

    Attributes:
        name: "" if the deployment has only this one.
        deployment: the parameters of its own runs, or why they cannot be used.
        given_settings: None if they cannot be used, and then `problem` says why.
        problem: one sentence.
    """

    name: str
    deployment: DeploymentParameters
    given_settings: Settings | None
    problem: str | None = None

    @property
    def settings(self) -> Settings:
        """The place this runs in.

        Raises:
            ConfigError: the deployment's file has a mistake that concerns this instance.
        """
        if self.given_settings is None or self.problem:
            raise ConfigError(f"{self.problem}. Correct the file; no run of this instance starts until then")
        return self.given_settings

    @property
    def title(self) -> str:
        """What people call it."""
        return self.given_settings.title if self.given_settings else self.name

    @property
    def retraining_dag_id(self) -> str:
        """The id of its DAG that retrains."""
        return _dag_id(RETRAINING, self.name)

    @property
    def set_champion_dag_id(self) -> str:
        """The id of its DAG that moves the champion."""
        return _dag_id(SET_CHAMPION, self.name)


def _dag_id(base: str, name: str) -> str:
    return f"{base}__{name}" if name else base


def read_instances(environment: Mapping[str, str] | None = None) -> tuple[Instance, ...]:
    """Read the deployment's file; without a section `instances`, there is one instance and its name is "".

    Raises:
        ConfigError: a `BCC_*` variable is invalid. The instances tell what is wrong in the file.
    """
    settings = Settings.from_environment(environment)
    try:
        file = read_deployment_file(settings.parameters)
    except ConfigError as error:
        return (Instance("", DeploymentParameters(problem=str(error)), settings),)
    where = f"BCC_PARAMETERS={settings.parameters}"
    if not isinstance(file.values, dict) or "instances" not in file.values:
        return (Instance("", DeploymentParameters.of(file.values, where), settings),)
    section = file.values["instances"]
    if not isinstance(section, dict) or not section:
        problem = f"{where}: instances: must be `name:` with its settings below, for each instance"
        return (Instance("", DeploymentParameters(problem=problem), settings),)
    return _without_overlaps(_read_section(file, section, settings, where), where)


def find_instance(name: str, environment: Mapping[str, str] | None = None) -> Instance:
    """Return the instance of this name; "" for the only one.

    Raises:
        ConfigError: there is none, or a `BCC_*` variable is invalid.
    """
    instances = read_instances(environment)
    found = next((instance for instance in instances if instance.name == name), None)
    if found is not None:
        return found
    names = [instance.name for instance in instances if instance.name]
    if not names:
        if problem := instances[0].deployment.problem:
            raise ConfigError(problem)
        raise ConfigError(f"there is no instance {name!r}: the file that BCC_PARAMETERS names lists no instances")
    if not name:
        raise ConfigError(f"this deployment has several instances, and none was named: choose one of {', '.join(names)}")
    raise ConfigError(f"there is no instance {name!r}: there are {', '.join(names)}")


def _read_section(file: DeploymentFile, section: Mapping[Any, Any], settings: Settings, where: str) -> list[Instance]:
    beside = [str(name) for name in file.values if name != "instances"]
    names: dict[str, list[Any]] = {}
    for name in section:
        names.setdefault(_as_name(name), []).append(name)
    found = []
    for name, spellings in names.items():
        place = f"{where}: instances: {name}"
        problem = None
        if beside:
            problem = f"{where}: {beside[0]}: only `instances` may be here; move it into the `parameters` of each instance"
        elif len(spellings) > 1 or str(spellings[0]) in file.repeated:
            problem = f"{where}: instances: two of them are named {name!r}; rename one"
        elif name != spellings[0] or not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            problem = (
                f"{where}: instances: {str(spellings[0])[:80]!r} cannot be a name: use at most {_LONGEST_NAME} small letters and "
                "digits, with single - and _ between them"
            )
        found.append(_refused(name, problem) if problem else _read_instance(name, section[spellings[0]], settings, place))
    return found


def _as_name(name: Any) -> str:
    """Return a name as a DAG id can have it: spellings that differ only in case are the same."""
    return re.sub(r"[^a-z0-9_-]+", "_", str(name).lower())[:_LONGEST_NAME] or "_"


def _refused(name: str, problem: str) -> Instance:
    return Instance(name, DeploymentParameters(), None, problem)


def _read_instance(name: str, given: Any, settings: Settings, place: str) -> Instance:
    if given is None:
        given = {}
    if not isinstance(given, dict):
        return _refused(name, f"{place}: must be lines of `setting: value`")
    unknown = next((key for key in given if key not in OWN_SETTINGS and key != "parameters"), None)
    if unknown is not None:
        return _refused(name, f"{place}: {_unknown_setting(str(unknown))}")
    own = {key: value for key, value in given.items() if key != "parameters" and value is not None}
    try:
        settings = settings.for_instance(name, own)
    except ConfigError as error:
        return _refused(name, f"{place}: {error}")
    return Instance(name, DeploymentParameters.of(given.get("parameters"), f"{place}: parameters"), settings)


def _unknown_setting(name: str) -> str:
    if name in RetrainingConfig.model_fields:
        return f"{name}: is a parameter of runs; put it under `parameters` of this instance"
    if name == "cache_dir":
        return "cache_dir: belongs to the worker (BCC_CACHE_DIR); each instance has its own folder in it"
    return f"{name}: there is no such setting{nearest(name, [*OWN_SETTINGS, 'parameters'])}"


def _without_overlaps(instances: Sequence[Instance], where: str) -> tuple[Instance, ...]:
    """Refuse instances that could touch each other's documents: neither of two can be trusted to be the right one."""
    problems: dict[str, str] = {}
    for one, other in combinations([instance for instance in instances if instance.given_settings], 2):
        problem = _overlap(one.settings, other.settings)
        if problem:
            problems.setdefault(one.name, f"{where}: instances: {problem}")
            problems.setdefault(other.name, f"{where}: instances: {problem}")
    return tuple(
        replace(instance, given_settings=None, problem=problems[instance.name]) if instance.name in problems else instance
        for instance in instances
    )


def _overlap(one: Settings, other: Settings) -> str | None:
    names = f"{one.instance} and {other.instance}"
    if one.sqs_queue_url and one.sqs_queue_url == other.sqs_queue_url:
        return f"{names} read the same sqs_queue_url, and a message wakes only one of them; give each its own queue"
    if one.bucket != other.bucket:
        return None
    for mine, theirs in product(_PREFIXES, repeat=2):
        first, second = getattr(one, mine), getattr(other, theirs)
        if f"{first}/".startswith(f"{second}/") or f"{second}/".startswith(f"{first}/"):
            where = f"{mine} {first!r} and {theirs} {second!r}"
            return f"{names} overlap in the bucket {one.bucket}: {where}; give each prefixes or a bucket of its own"
    return None
