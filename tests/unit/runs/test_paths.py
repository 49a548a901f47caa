from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from bcc_ops.runs.paths import RunPaths, checkpoint_folder, fold_file, inspections_root, parse_run_folder, run_slug

AS_OF = datetime(2026, 11, 22, 2, 0, tzinfo=timezone.utc)


def test_folders_sort_by_time_and_carry_the_run() -> None:
    paths = RunPaths.of("artifacts", AS_OF, "nightly")
    assert paths.document("gate.json") == f"artifacts/runs/20261122T020000Z__{run_slug('nightly')}/gate.json"
    assert paths.plot("roc") == f"artifacts/runs/20261122T020000Z__{run_slug('nightly')}/plots/roc.png"
    assert paths.as_of == AS_OF


def test_as_of_is_written_in_utc() -> None:
    there = AS_OF.astimezone(timezone(timedelta(hours=5)))
    assert RunPaths.of("a", there, "r") == RunPaths.of("a", AS_OF, "r")


def test_airflows_run_ids_become_slugs_that_stay_apart() -> None:
    ids = ["manual__2026-11-22T02:00:00+00:00", "manual__2026-11-22T02:00:00-00:00", "x" * 300, "x" * 301, "../../etc", "ä", "ö"]
    slugs = [run_slug(run_id) for run_id in ids]
    assert len(set(slugs)) == len(ids)
    for slug in slugs:
        assert len(slug) <= 80
        assert "/" not in slug


def test_no_run_id_can_be_chosen_to_name_the_folder_of_another_run():
    victim = run_slug("scheduled__2026-11-22T02:00:00+00:00")
    assert run_slug(victim) != victim
    assert run_slug(victim).startswith(victim)


@pytest.mark.parametrize("run_id", ["with\0nul", "\ud800", "", "a/../b", "new\nline"])
def test_a_strange_run_id_has_a_plain_slug(run_id):
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", run_slug(run_id))


def test_a_documents_key_leads_back_to_its_run() -> None:
    paths = RunPaths.of("deep/artifacts", AS_OF, "scheduled__2026-11-22T02:00:00+00:00")
    assert RunPaths.of_key("deep/artifacts", paths.plot("roc")) == paths
    assert parse_run_folder("deep/artifacts", f"{paths.folder}/") == paths


@pytest.mark.parametrize("key", ["artifacts/runs/", "artifacts/runs/x/gate.json", "elsewhere/20261122T020000Z__r/gate.json"])
def test_a_key_outside_of_every_run_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="run's folder"):
        RunPaths.of_key("artifacts", key)


def test_a_foreign_folder_among_the_runs_is_passed_over() -> None:
    assert parse_run_folder("artifacts", "artifacts/runs/notes/") is None


@pytest.mark.parametrize(
    "other", [{"snapshot_digest": "d" * 64}, {"config_digest": "d" * 64}, {"split_digest": "d" * 64}, {"fold": 3}]
)
def test_a_checkpoint_is_found_again_by_the_same_images_parameters_split_and_fold_alone(other: dict[str, Any]) -> None:
    of: dict[str, Any] = {"snapshot_digest": "a" * 64, "config_digest": "b" * 64, "split_digest": "c" * 64, "fold": 2}
    folder = checkpoint_folder("artifacts", **of)
    assert folder == f"artifacts/checkpoints/{'a' * 16}-{'b' * 16}-{'c' * 16}-2"
    assert checkpoint_folder("artifacts", **of | other) != folder


def test_the_files_of_a_folds_model_are_told_by_its_number() -> None:
    paths = RunPaths.of("artifacts", AS_OF, "nightly")
    assert paths.document(fold_file(2, "json")) == f"{paths.folder}/fold-2.json"


def test_what_workers_share_is_in_no_runs_folder_and_not_where_jobs_of_sagemaker_write() -> None:
    assert inspections_root("of/mine") == "of/mine/inspections/"
