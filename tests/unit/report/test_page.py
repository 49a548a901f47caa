"""The page: what is said first, what is said of what is missing, and what a reader without eyes or colours gets."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import partial
from html.parser import HTMLParser
from typing import Any

import pytest

from bcc_ops.report.page import (
    RunRow,
    decimals,
    describe_plots,
    duration,
    plain_number,
    render_models,
    render_report,
    size_of,
    verdict_of,
)
from bcc_ops.report.progress import PIPELINE, RunProgress, TaskProgress
from bcc_ops.runs.documents import ApprovalDocument, Estimate
from bcc_ops.runs.history import summarise_run
from bcc_ops.runs.paths import PLOTS
from bcc_ops.runs.record import RUN_DOCUMENTS, RunRecord, read_record
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


@pytest.mark.parametrize("missing", [name for name in RUN_DOCUMENTS if name != "promotion.json"])
def test_a_missing_document_takes_only_its_own_part_away(missing: str) -> None:
    page = render(record("rejected", **{missing.replace(".", "__"): None}))
    parts = {"evaluation.json": "Against the champion", "gate.json": "Rejected", "training.json": "efficientnet_lite0,"}
    for name, words in parts.items():
        assert (words in page) == (name != missing)


def test_a_page_of_nothing_says_so() -> None:
    assert "This run left no documents" in render(RunRecord())


def test_missing_figures_are_told_with_their_reason() -> None:
    page = render(record())
    assert 'title="a class has no image among those compared">not available' in page


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


def test_failed_run_names_the_first_task_that_failed() -> None:
    run = progress("failed", train_model="failed", evaluate_model="upstream_failed", publish_plots="failed")
    assert run.culprit == "train_model"
    assert run.headline == "train_model failed"


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


def test_stand_alone_page_carries_its_policy() -> None:
    policy = '<meta http-equiv="Content-Security-Policy"'
    assert policy in render(record(), stand_alone=True)
    assert policy not in render(record())


def test_every_plot_has_a_description_with_its_figures() -> None:
    described = describe_plots(record())
    assert set(described) == set(PLOTS)
    assert "malignant 0.930" in described["roc"][0]
    assert "best epoch was 8 of 12" in described["history"][0]
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
