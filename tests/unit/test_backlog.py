"""Windows over a deep backlog: the order of a plain read, at the cost of a page."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from axeq.documents.record import Document
from axeq.rules.backlog import Backlog
from axeq.rules.due import Candidate
from axeq.wire.wire import Command, Find, drive

from .playing import NOW, given_job


class Jobs:
    """Answers a backlog's reads from memory, and counts how many documents each read had to look at."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents
        self.looked_at: list[int] = []

    def __call__(self, command: Command) -> list[Document]:
        assert isinstance(command, Find)
        matching = [document for document in self.documents if self._matches(document, command.filter)]
        self.looked_at.append(len(matching))
        matching.sort(key=lambda document: (document["priority"], document["available_at"]))
        return matching[: command.limit]

    def _matches(self, document: Document, query: Any) -> bool:
        priority = query["priority"]
        bounds = priority if isinstance(priority, dict) else {"$gt": priority - 1, "$lt": priority + 1}
        if document["version"] > query.get("version", {"$lte": 99})["$lte"]:
            return False
        due, moment = query["available_at"], document["available_at"]
        return (
            bool(moment <= due["$lte"])
            and moment >= due.get("$gte", moment)
            and ("$gt" not in due or moment > due["$gt"])
            and document["priority"] > bounds.get("$gt", -99)
            and document["priority"] < bounds.get("$lt", 99)
        )

    def head(self, backlog: Backlog, limit: int) -> list[Any]:
        return [candidate.id for candidate in drive(backlog.head(NOW, limit=limit), self)]

    def further(self, backlog: Backlog, limit: int) -> list[Any]:
        return [candidate.id for candidate in drive(backlog.further(NOW, limit=limit), self)]

    def claimed(self, ids: list[Any]) -> None:
        self.documents = [document for document in self.documents if document["_id"] not in ids]


def waiting(count: int, *, priority: int = 0, since: float = 3600) -> list[Document]:
    start = NOW - timedelta(seconds=since)
    return [
        given_job(_id=(priority, number), priority=priority, available_at=start + timedelta(milliseconds=10 * number))
        for number in range(count)
    ]


def met(jobs: Jobs, limit: int) -> Backlog:
    backlog = Backlog("default", "thumbnail", 1)
    first = sorted(jobs.documents, key=lambda document: (document["priority"], document["available_at"]))[:limit]
    backlog.met([Candidate.of(document) for document in first])
    return backlog


def test_a_page_looks_at_little_more_than_itself() -> None:
    jobs = Jobs(waiting(20_000))
    backlog = met(jobs, 100)

    for _ in range(20):
        jobs.claimed(jobs.head(backlog, 100))
        jobs.further(backlog, 100)

    assert max(jobs.looked_at) <= 400


def test_pages_that_follow_each_other_bring_every_job_in_the_order_of_due_times() -> None:
    documents = waiting(950)
    jobs = Jobs(documents)
    backlog = met(jobs, 100)
    brought = [document["_id"] for document in documents[:100]]

    while page := [job for job in jobs.further(backlog, 100) if job not in brought]:
        brought += page

    assert brought == [document["_id"] for document in documents]


def test_jobs_that_share_a_due_time_are_all_brought_however_many_they_are() -> None:
    moment = NOW - timedelta(seconds=5)
    jobs = Jobs([given_job(_id=number, priority=0, available_at=moment) for number in range(1000)])
    backlog = met(jobs, 100)
    brought = set(range(100))

    while page := set(jobs.further(backlog, 100)) - brought:
        brought |= page

    assert brought == set(range(1000))


def test_jobs_of_a_more_urgent_priority_are_found_between_and_go_first() -> None:
    jobs = Jobs(waiting(1000))
    backlog = met(jobs, 100)
    urgent = waiting(3, priority=-5, since=1)
    jobs.documents += urgent

    drive(backlog.discover(NOW), jobs)

    assert jobs.head(backlog, 10)[:3] == [document["_id"] for document in urgent]


def test_new_jobs_of_an_urgent_priority_come_first_however_many_of_another_are_known() -> None:
    jobs = Jobs([*waiting(3, priority=-5), *waiting(1000)])
    backlog = met(jobs, 100)
    late = given_job(_id="late", priority=-5, available_at=NOW)
    jobs.documents.append(late)

    assert "late" in jobs.head(backlog, 10)


def test_a_job_that_came_late_into_the_past_is_found_at_the_head() -> None:
    jobs = Jobs(waiting(1000))
    backlog = met(jobs, 100)
    jobs.further(backlog, 100)
    jobs.documents.append(given_job(_id="late", priority=0, available_at=NOW - timedelta(hours=2)))

    assert jobs.head(backlog, 100)[0] == "late"


def test_the_head_brings_what_is_left_of_the_pages_before_and_nothing_beyond() -> None:
    jobs = Jobs(waiting(1000))
    backlog = met(jobs, 100)
    jobs.claimed([(0, number) for number in range(90)])

    assert jobs.head(backlog, 500) == [(0, number) for number in range(90, 100)]


def test_a_gap_in_the_due_times_is_stepped_over() -> None:
    jobs = Jobs([*waiting(50), *waiting(50, since=10)])
    jobs.documents = [{**document, "_id": number} for number, document in enumerate(jobs.documents)]
    backlog = met(jobs, 20)

    assert len(jobs.further(backlog, 100)) == 81  # and the last of those met, which others may share the moment of


def test_lumps_of_jobs_with_one_due_time_are_not_read_over_and_over() -> None:
    lumps = [NOW - timedelta(seconds=60) + timedelta(milliseconds=40 * (number // 100)) for number in range(2000)]
    jobs = Jobs([given_job(_id=number, priority=0, available_at=moment) for number, moment in enumerate(lumps)])
    backlog = met(jobs, 100)

    jobs.looked_at.clear()
    found = jobs.further(backlog, 1000)

    assert len(found) >= 1000
    assert sum(jobs.looked_at) <= 2 * len(found)


def test_jobs_of_a_newer_version_do_not_stand_in_the_way_of_older_ones() -> None:
    newer = [{**document, "_id": ("newer", document["_id"]), "version": 2} for document in waiting(300, since=7200)]
    older = waiting(300)
    jobs = Jobs([*newer, *older])
    backlog = met(jobs, 100)

    assert jobs.further(backlog, 100)[:100] == [document["_id"] for document in older[:100]]


def test_very_many_priorities_are_read_plainly() -> None:
    backlog = Backlog("default", "thumbnail", 1)
    backlog.met([Candidate(number, "thumbnail", number, NOW, 1, 0) for number in range(40)])

    assert not backlog.readable


def test_a_flat_backlog_brings_every_job_in_order_of_due_time_whatever_its_priority() -> None:
    start = NOW - timedelta(seconds=3600)
    documents = [
        given_job(_id=number, priority=number % 7 - 3, available_at=start + timedelta(milliseconds=10 * number))
        for number in range(950)
    ]
    backlog = Backlog("default", "thumbnail", 1, flat=True)
    backlog.met([Candidate.of(document).flat() for document in documents[:100]])
    asked: list[Find] = []

    def jobs(command: Command) -> list[Document]:
        assert isinstance(command, Find)
        asked.append(command)
        due = command.filter["available_at"]
        found = [document for document in documents if document["available_at"] <= due["$lte"]]
        found = [document for document in found if document["available_at"] >= due.get("$gte", start)]
        return [document for document in found if document["available_at"] > due.get("$gt", start)][: command.limit]

    brought = list(range(100))
    while page := [each.id for each in drive(backlog.further(NOW, limit=100), jobs) if each.id not in brought]:
        brought += page

    assert brought == list(range(950))
    assert all("priority" not in read.filter for read in asked)
