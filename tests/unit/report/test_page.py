"""The page: what is said first, what is said of what is missing, and what a reader without eyes or colours gets."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import partial
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bcc_ops.report.page import (
    RunRow,
    decimals,
    describe_plots,
    duration,
    live_charts,
    plain_number,
    render_models,
    render_report,
    size_of,
    verdict_of,
)
from bcc_ops.report.plots import draw_plots
from bcc_ops.report.progress import PIPELINE, RunProgress, TaskProgress
from bcc_ops.runs.documents import ApprovalDocument, ContentFinding, Estimate, SageMakerJobs
from bcc_ops.runs.history import summarise_run
from bcc_ops.runs.paths import PLOTS
from bcc_ops.runs.record import RunRecord, read_record
from tests.unit.report import samples


def record(verdict: str = "rejected", **changes: Any) -> RunRecord:
    return read_record(samples.whole_run(verdict, **changes).get)


def _document(documents: dict[str, bytes], key: str) -> bytes | None:
    return documents.get(key.rsplit("/", 1)[-1])


def progress(state: str, **tasks: str) -> RunProgress:
    return RunProgress.of("bcc_retraining", samples.RUN_ID, state, [TaskProgress(name, tasks.get(name)) for name in PIPELINE])


def render(run: RunRecord, **more: object) -> str:
    arguments = {"run_id": samples.RUN_ID, "plots": {}, "files": {}, **more}
    return render_report(run, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", samples.whole_run())
def test_a_missing_document_takes_only_its_own_part_away(missing: str) -> None:
    page = render(record("rejected", **{missing.replace(".", "__"): None}))
    parts = {"evaluation.json": "Against the champion", "gate.json": "Rejected", "training.json": "efficientnet_lite0,"}
    for name, words in parts.items():
        assert (words in page) == (name != missing)


def test_a_page_of_nothing_says_so() -> None:
    assert "This run left no documents" in render(RunRecord())


def test_the_page_says_which_model_it_is_about_and_names_rules_by_its_positive_class() -> None:
    rule = samples.rule("min_malignant_sensitivity", True, 0.8, 0.7, "Finding sensitivity is 0.8.")
    snapshot = samples.snapshot_document(title="Woven textures", positive_class="finding")
    page = render(record(snapshot__json=snapshot, gate__json=samples.gate_document("rejected", rules=(rule,))))
    assert "Model report · Woven textures" in page
    assert "min_finding_sensitivity" in page
    assert "breast" not in page.lower()


def test_missing_figures_are_told_with_their_reason() -> None:
    page = render(record())
    assert 'title="a class has no image among those compared">not available' in page


def test_more_keys_than_are_listed_are_counted() -> None:
    found = ContentFinding(
        finding="calipers",
        action="report",
        images=25,
        labels={"benign": 25},
        keys=tuple(f"images/benign/{n}.png" for n in range(25)),
    )
    page = render(record(checks__json=samples.checks_document(findings=(found,))))
    assert "images/benign/19.png" in page and "images/benign/20.png" not in page
    assert "and 5 more" in page


def test_a_comparison_that_failed_is_told() -> None:
    broken = samples.evaluation_document().comparison
    assert broken is not None
    comparison = broken.model_copy(
        update={"challenger": None, "champion": None, "differences": {}, "problem": "its file is damaged"}
    )
    page = render(record(evaluation__json=samples.evaluation_document(comparison=comparison)))
    assert "could not be compared: its file is damaged" in page


def test_what_a_comparison_may_have_missed_and_what_a_warm_start_had_seen_are_told() -> None:
    document = samples.evaluation_document(warm_start_note="Training started from champion v1.")
    assert document.comparison is not None
    page = render(record())
    assert "3 images are gone" not in page and "Training started" not in page
    careful = document.comparison.model_copy(update={"caution": "3 images are gone."})
    page = render(record(evaluation__json=document.model_copy(update={"comparison": careful})))
    assert page.index("left out of the comparison") < page.index("3 images are gone.") < page.index("By class")
    assert page.index("By class") < page.index("Training started from champion v1.")


def test_no_champion_is_told() -> None:
    page = render(record("approved_without_champion", evaluation__json=samples.evaluation_document(champion=False)))
    assert "There was no champion" in page
    assert "Approved, with no champion to compare with" in page


def test_synthetic_images_are_told_on_top() -> None:
    assert "Synthetic images" not in render(record())
    page = render(record(checks__json=samples.checks_document(synthetic=3)))
    assert page.index("Synthetic images") < page.index("Rejected")


def test_promotion_tells_version_and_approver() -> None:
    verdict = verdict_of(record("approved", promotion__json=samples.promotion_document(approved_by="ada")))
    assert verdict is not None
    assert verdict.consequence == "In use as version 20261122T020000Z-9a8b7c6d, approved by ada."


def test_a_version_that_did_not_come_into_use_is_told_with_the_reason_alone() -> None:
    """The reason knows whether it was uploaded: a champion that moved before the upload leaves nothing of the version."""
    kept = samples.promotion_document(promoted=False, reason="version v2 was not uploaded, since the champion is v3 by now")
    verdict = verdict_of(record("approved", promotion__json=kept))
    assert verdict is not None
    assert verdict.consequence == ("It did not come into use: version v2 was not uploaded, since the champion is v3 by now.")


def test_verdict_waits_for_a_person_and_tells_a_refusal() -> None:
    run = record("approved", promotion__json=None)
    waiting = verdict_of(run, progress("running", approve_model="awaiting_input"))
    refused = verdict_of(run, progress("success", approve_model="success", upload_model="skipped"))
    assert waiting is not None and refused is not None
    assert waiting.title == "Approved by the gate, waiting for a person"
    assert refused.title == "Approved by the gate, turned down by a person"


@pytest.mark.parametrize(
    "left",
    [
        {
            "approval__json": ApprovalDocument(approved=False, by="ada", at=samples.AS_OF, timed_out=False),
            "promotion__json": None,
        },
        {"promotion__json": samples.promotion_document(promoted=False, reason="version v2 was not uploaded")},
    ],
    ids=["an earlier answer", "an earlier lost upload"],
)
def test_what_an_earlier_try_left_does_not_answer_the_question_that_is_open_now(left: dict[str, object]) -> None:
    verdict = verdict_of(record("approved", **left), progress("running", approve_model="awaiting_input"))
    assert verdict is not None
    assert verdict.title == "Approved by the gate, waiting for a person"
    assert verdict.consequence == "Nothing is uploaded before somebody answers."


def test_an_answer_that_was_taken_back_turns_nothing_down() -> None:
    again = ApprovalDocument(approved=None, by="nobody yet", at=samples.AS_OF, timed_out=False)
    verdict = verdict_of(record("approved", promotion__json=None, approval__json=again), progress("running"))
    assert verdict is not None
    assert (verdict.title, verdict.consequence) == ("Approved", "It is not uploaded yet.")


def test_an_approval_that_was_refused_is_told_with_who_and_when() -> None:
    answered = {"approved": False, "at": samples.AS_OF + timedelta(minutes=40)}
    no = ApprovalDocument(by="ada", timed_out=False, **answered)
    silence = ApprovalDocument(by="nobody, in time", timed_out=True, **answered)
    refused, unanswered = (verdict_of(record("approved", promotion__json=None, approval__json=one)) for one in (no, silence))
    assert refused is not None and unanswered is not None
    assert refused.title == "Approved by the gate, turned down by ada"
    assert unanswered.title == "Approved by the gate, but nobody answered in time"
    for verdict in (refused, unanswered):
        assert "22 Nov 2026, 02:40 UTC" in verdict.consequence
        assert "Champion 20261115T020000Z-3f9c2a1b stays in use." in verdict.consequence


def test_the_list_of_runs_tells_a_refused_approval_from_an_approved_model() -> None:
    no = ApprovalDocument(approved=False, by="ada", at=samples.AS_OF, timed_out=False)
    tags = []
    taken_back = no.model_copy(update={"approved": None, "by": "nobody yet"})
    for approval in (None, no, no.model_copy(update={"timed_out": True}), taken_back):
        documents = samples.whole_run("approved", promotion__json=None, approval__json=approval)
        summary = summarise_run(samples.PATHS, partial(_document, documents))
        page = render_models(
            champion=None,
            champion_uri=None,
            runs=[RunRow(summary, None)],
            versions=[],
            versions_more=0,
            positive_class="malignant",
            older=None,
            paged=False,
            set_champion_href="",
            title="Breast ultrasound",
        )
        tags += re.findall(r'<span class="tag \w+">(.*?)</span>', page)
    assert tags == ["✓ approved", "– turned down by ada", "– nobody answered", "✓ approved"]


def test_images_that_decided_often_are_a_warning_and_not_a_failure() -> None:
    overused = samples.gate_document("approved").rules[-1].model_copy(update={"passed": False, "value": 31.0})
    page = render(record("approved", gate__json=samples.gate_document("approved", rules=(overused,))))
    assert "! warns" in page
    assert "✗ fails" not in page


def test_a_skipped_run_says_that_once() -> None:
    page = render(RunRecord(), progress=progress("success", **dict.fromkeys(PIPELINE, "skipped")))
    assert "Skipped: nothing new" in page
    assert "No verdict" not in page
    assert "snapshot.json" not in page


def folds(*states: str | None) -> list[TaskProgress]:
    return [TaskProgress("train_model", state, map_index=index) for index, state in enumerate(states)]


def test_each_instance_that_failed_is_linked() -> None:
    run = RunProgress.of("bcc_retraining", samples.RUN_ID, "failed", folds("success", "failed", "failed"))
    page = render(RunRecord(), progress=run)
    path = f"/dags/bcc_retraining/runs/{quote(samples.RUN_ID, safe='')}/tasks/train_model"
    assert f'href="{path}/mapped/1">Open train_model (fold 2)</a>' in page
    assert f'href="{path}/mapped/2">Open train_model (fold 3)</a>' in page
    assert f"{path}/mapped/0" not in page


def test_epochs_of_a_running_training_are_shown_fold_by_fold() -> None:
    documents = {**samples.histories(12, folds=1), "fold-2.csv": samples.histories(7)["fold-2.csv"]}
    run = read_record({**documents, "config.json": samples.config_document(epochs=12).to_json()}.get)
    page = render(run, progress=RunProgress.of("bcc_retraining", samples.RUN_ID, "running", folds("success", "running")))
    assert "<li>fold 1 of 5: epoch 12 of 12</li><li>fold 2 of 5: epoch 7 of 12</li>" in page
    accuracy, _ = live_charts(run.epochs)
    assert [(line.name, line.look, line.faint, len(line.marks)) for line in accuracy.lines] == [
        *(("fold 1", 0, True, 12), ("fold 2", 1, True, 7)),
        *(("fold 1", 0, False, 12), ("fold 2", 1, False, 7)),
    ]
    held_out = next(line for line in accuracy.lines if line.name == "fold 2" and not line.faint)
    trained_on = next(line for line in accuracy.lines if line.name == "fold 2" and line.faint)
    assert held_out.marks[-1][1] > trained_on.marks[-1][1], "the accuracy on what is held out is the lower one"


def test_what_the_jobs_of_sagemaker_took_is_shown_fold_by_fold_and_altogether() -> None:
    def jobs(fold: int) -> SageMakerJobs:
        kinds = ("ml.g5.xlarge", "ml.g5.2xlarge") if fold == 2 else ("ml.g5.xlarge",)
        return SageMakerJobs(
            jobs=len(kinds),
            instance_types=kinds,
            billed_seconds=100 + fold,
            saved_seconds=300 * (fold == 1),
            without_bill=fold // 5,
        )

    summaries = [fold.model_copy(update={"sagemaker": jobs(fold.fold)}) for fold in samples.training_document().folds]
    training = samples.training_document(folds=tuple(summaries))
    page = render(read_record({"training.json": training.to_json()}.get))
    told = (
        "6 jobs on ml.g5.xlarge, ml.g5.2xlarge, billed for 515 s; spot instances saved 300 s; for 1 AWS had reported no seconds"
    )
    assert f"<dd>{told}</dd>" in page
    assert [row[-2] for row in rows_of(page, "training")[1:3]] == ["101 s jobs: 1, saved 300 s", "102 s jobs: 2"]
    before = render(read_record({"training.json": samples.training_document().to_json()}.get))
    assert "SageMaker" not in before and "Billed" not in before


def rows_of(page: str, section: str) -> list[list[str]]:
    """The cells' texts of a section's tables."""
    part = page.partition(f'id="{section}"')[2].partition("</section>")[0]
    return [
        [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)
    ]


def test_the_folds_are_counted_and_their_models_told() -> None:
    page = render(record())
    assert ["fold 3", "68", "34", "22", "124"] in rows_of(page, "data")
    assert ["weight in the loss", "0.600", "1.236", "1.913", ""] in rows_of(page, "data")
    told = ["fold 2", "123", "494", "12", "0.612", "0.807", "0.790", "8 min 18 s resumed after 5 epochs", "worker-1"]
    assert told in rows_of(page, "training")
    assert "average of the weights of 5 models" in page
    assert "one of 5 models that did not train on its fold" in page


def test_the_anchor_is_compared_with_only_if_it_is_another_version_than_the_champion() -> None:
    assert 'id="anchor"' not in render(record())
    page = render(record(evaluation__json=samples.whole_evaluation()))
    assert page.index("Against the champion") < page.index("Against the anchor") < page.index("The gate's rules")
    assert "20261001T020000Z-77aa88bb" in page.split('id="anchor"')[1]
    assert rows_of(page, "anchor")[0][:4] == ["Metric", "Challenger", "Anchor", "Difference"]
    assert '<a href="#anchor">Anchor</a>' in page


def test_it_is_told_whose_answers_a_comparison_uses_and_what_it_leaves_out() -> None:
    page = " ".join(render(record()).split())
    assert "Of the champion's answers, 112 were recorded" in page and "asked about 8 images" in page
    assert "4 images are left out of the comparison: near-duplicate of what the version was trained on." in page


def test_the_file_is_checked_against_its_folds_and_shown_on_external_images() -> None:
    assert 'id="file"' not in render(record())
    page = render(record(evaluation__json=samples.whole_evaluation()))
    part = page.split('id="file"')[1].split("</section>")[0]
    assert "✓ yes" in part and "about 60 external test images. Its log loss is 0.431" in part and "96.7 %" in part
    rows = rows_of(page, "file")
    assert rows[0][:4] == ["Metric", "Challenger", "Champion", "Difference"]
    assert ["Malignant AUC", "0.930 (0.900 to 0.960)", "0.910 (0.880 to 0.940)", "+0.012 (−0.021 to +0.044)", ""] in rows
    worse = samples.file_check(passed=False, external=False)
    page = render(record(evaluation__json=samples.whole_evaluation(file_check=worse)))
    assert "✗ no" in page and "about 60 of the run's own images" in unescape(page) and "only the agreement counts" in page


def test_external_images_without_a_champion_show_the_challenger_alone() -> None:
    alone = samples.external_evaluation(champion=None, differences={}, problem="its file is damaged")
    page = render(record(evaluation__json=samples.whole_evaluation(external=(alone,))))
    assert rows_of(page, "file")[0] == ["Metric", "Challenger"]
    assert "The champion could not be asked: its file is damaged" in page


def test_each_external_set_has_its_tables_beside_champion_and_anchor_and_its_sentence() -> None:
    anchor = samples.model_evaluation(samples.predictions(60, seed=11), "champion", -0.04)
    first = samples.external_evaluation(
        name="Ulm", anchor=anchor, anchor_differences={"malignant_auc": samples.around(0.03, 0.05)}
    )
    second = samples.external_evaluation(
        name="Lima", note="0 images; left out: 3.", challenger=None, champion=None, differences={}
    )
    page = render(record(evaluation__json=samples.whole_evaluation(external=(first, second))))
    ulm, lima = page.split('id="file"')[1].split("</section>")[0].split("External test set ")[1:]
    assert ulm.startswith("Ulm") and "60 images in 60 near-duplicate groups" in ulm
    assert ulm.count("<table") == 2 and ">Champion<" in ulm and ">Anchor<" in ulm and "+0.030" in ulm
    assert lima.startswith("Lima") and "0 images; left out: 3." in lima and "<table" not in lima


def test_the_files_of_the_folds_models_are_listed_apart() -> None:
    files = {name: (f"files/{name}", 10) for name in ("gate.json", "fold-1.h5", "fold-5.parquet")}
    downloads = render(record(), files=files).split('id="files"')[1]
    assert (
        downloads.index("gate.json") < downloads.index("<details>") < downloads.index("fold-1.h5") < downloads.index("fold-5.pa")
    )


OLDER = Path(__file__).resolve().parents[2] / "data" / "schema_1"


def test_a_run_of_an_older_release_still_has_its_page_and_its_plots() -> None:
    def read(name: str) -> bytes | None:
        return (OLDER / name).read_bytes() if (OLDER / name).exists() else None

    run = read_record(read)
    assert run.unreadable == {} and run.epochs
    page = render(run)
    assert "trained on (older release)" in page
    assert "did not train on its fold" not in page
    plots = draw_plots(run, None, [])
    assert {"history", "class_counts", "confusion_matrix"} <= set(plots)
    live = render(RunRecord(epochs=run.epochs), progress=progress("running", train_model="running"))
    assert f"<li>fold 1: epoch {run.epochs[-1].epoch}</li>" in live


def test_page_below_a_base_path_links_there() -> None:
    page = render(RunRecord(), progress=progress("failed", train_model="failed"), ui="/airflow")
    assert 'data-ui href="/airflow/dags/bcc_retraining/runs/' in page


def test_long_lists_are_cut_and_say_so() -> None:
    refused = [{"key": f"images/benign/{number}.png", "reason": "damaged", "detail": ""} for number in range(5000)]
    page = render(record(checks__json=samples.checks_document(refused=tuple(refused))))
    assert page.count("images/benign/1") < 200
    assert "and 4\u202f800 more, in checks.json" in page


class Reader(HTMLParser):
    """Collects what the accessibility of a page hangs on."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "img":
            self.images.append(found)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "a" and str(found.get("href", "")).startswith("#"):
            self.anchors.append(str(found["href"])[1:])
        self.sources += [
            str(found[name]) for name in ("src", "href") if name in found and tag in ("img", "script", "link", "iframe")
        ]
        self.handlers += [name for name in found if name.startswith("on") or name == "style"]


def test_page_is_whole_for_assistive_technology() -> None:
    plots = {name: f"plots/{name}.png" for name in PLOTS}
    reader = Reader(render(record("approved"), plots=plots, files={"gate.json": ("files/gate.json", 10)}, model_card="# Card"))
    assert {image["src"] for image in reader.images} == set(plots.values())
    assert all(len(image["alt"] or "") > 30 for image in reader.images)
    assert reader.headings[0] == 1
    assert len(reader.ids) == len(set(reader.ids))
    assert set(reader.anchors) <= set(reader.ids)


def test_page_loads_nothing_from_elsewhere_and_has_no_inline_handlers() -> None:
    reader = Reader(render(record(), plots={"roc": "plots/roc.png"}, stand_alone=True))
    assert reader.sources == ["plots/roc.png"]
    assert reader.handlers == []


def test_metrics_without_axilla_images_stand_below_those_of_all() -> None:
    page = " ".join(render(record()).split())
    table = page[page.index('id="without"') :].partition("</table>")[0]
    every, without = table.split("<tr>")[2:]
    model = record().evaluation.challenger
    for estimate in (model.per_class["malignant"].auc, model.macro_auc, model.balanced_accuracy):
        assert f"{estimate.value:.3f}" in every
    assert "without: text says that the image shows the armpit" in without and '<td class="num">31</td>' in without
    assert all(value in without for value in ("0.957", "0.941", "0.840"))


def test_stand_alone_page_carries_its_policy() -> None:
    policy = '<meta http-equiv="Content-Security-Policy"'
    assert policy in render(record(), stand_alone=True)
    assert policy not in render(record())


def test_every_plot_has_a_description_with_its_figures() -> None:
    described = describe_plots(record())
    assert set(described) == set(PLOTS)
    assert "malignant 0.930" in described["roc"][0]
    assert "Fold 3 ended at a held-out accuracy of 0.827 and a held-out loss of 0.592." in described["history"][0]
    assert "fold 3: benign 68, malignant 34, normal 22" in described["class_counts"][0]
    assert "1 of 4 comparisons warn" in described["drift"][0]
    assert set(describe_plots(RunRecord())) == set(PLOTS)


def test_the_same_documents_give_the_same_page() -> None:
    assert render(record()) == render(record())


def test_figures_are_written_as_people_write_them() -> None:
    assert decimals(-0.0614, True) == "−0.061"
    assert decimals(0.5) == "0.500"
    assert plain_number(30.0) == "30"
    assert plain_number(0.7) == "0.700"
    assert [size_of(n) for n in (0, 999, 14_500, 3_000_000, 2_100_000_000)] == ["0 B", "999 B", "14.5 kB", "3.0 MB", "2.1 GB"]
    assert [duration(n) for n in (41.4, 498, 7500)] == ["41 s", "8 min 18 s", "2 h 5 min"]


def test_a_loss_that_fell_is_better() -> None:
    comparison = samples.evaluation_document().comparison
    assert comparison is not None
    fell = comparison.model_copy(update={"differences": {"loss": Estimate(value=-0.1, low=-0.2, high=-0.05)}})
    page = render(record(evaluation__json=samples.evaluation_document(comparison=fell)))
    assert page.count(">better<") == 1
    assert ">worse<" not in page


def cells_of(page: str, row: str) -> list[str]:
    (found,) = re.findall(rf'<tr><th scope="row">{row}</th>(.*?)</tr>', page)
    return [re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", found)]


def test_shortcuts_are_a_table_with_what_the_answers_follow() -> None:
    page = render(record())
    assert cells_of(page, "size and aspect") == [
        "0.580 (0.530 to 0.630)",
        "0.720 (0.670 to 0.770) warning",
        "not available",
        "0.310 (0.160 to 0.460) warning",
    ]
    assert '<th scope="row">file type</th>' not in page  # it differs nowhere, and so tells nothing


def test_before_the_evaluation_only_the_properties_are_shown() -> None:
    page = render(record(evaluation__json=None))
    assert len(cells_of(page, "size and aspect")) == 3
    assert "Followed" not in page


def test_why_shortcuts_cannot_be_told_is_said() -> None:
    checks = samples.checks_document(shortcuts=(), shortcuts_unavailable="too few independent images").to_json()
    page = render(read_record({**samples.whole_run(), "checks.json": checks}.get))
    assert "Shortcuts were not checked: too few independent images" in page
    assert "<h3>Shortcuts</h3>" not in page
