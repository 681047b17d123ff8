import re
from html.parser import HTMLParser

import pytest
from made_up_run import evaluation_record, run_records

from vissl_like.visualize.curves import loss_curve
from vissl_like.visualize.page import Page, Section, render_page
from vissl_like.visualize.story import (
    duration_text,
    facts_of,
    floors_of,
    messages_of,
    status_of,
    table_of,
    training_seconds,
)

VOID = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags are closed in order, and keeps what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.links, self.words = [], [], [], []
        self.feed(text)
        assert not self.stack, f"unclosed: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def full_page(records):
    return Page(
        title="run <1>",
        subtitle="a method & a network",
        status=status_of(records)[0],
        facts=facts_of(records),
        tables=[table_of(evaluation_record())],
        sections=[
            Section("Curves", [loss_curve(records, 4.0943)], wide=False),
            Section("Map", [], "There is <no> map."),
        ],
        messages=messages_of(records),
        settings=[("As given", "LOSS: {name: <x>}\n")],
        versions=[("torch", "2.15")],
        footer="end",
    )


def test_page_is_whole_safe_and_alone():
    html = render_page(full_page(run_records()))
    outline = Outline(html)
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html and "url(" not in html
    assert outline.links and all(link.startswith("data:image/png;base64,") for link in outline.links)
    images = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert images and all(len(image["alt"]) > 20 for image in images)
    # Text from outside is escaped, so it shows as it is.
    assert "<b>out</b>" not in html and "look <b>out</b> & beware" in outline.text
    assert "run <1>" in outline.text and "LOSS: {name: <x>}" in outline.text and "There is <no> map." in outline.text
    for wanted in ("trained", "82.5", "+8.0 [+4.5, +11.2]", "mind the gap", "2.15", "640", "top-1", "@media print"):
        assert wanted in html, wanted


def test_an_empty_page_says_what_is_missing():
    page = Page(title="t", subtitle="s", status="nothing", tables_missing="Nothing was scored.")
    text = Outline(render_page(page)).text
    assert "Nothing was scored." in text and "No settings were kept" in text


@pytest.mark.parametrize(
    ("change", "words", "level"),
    [
        (lambda records: records, "finished: step 100 of 100", "info"),
        (lambda records: [*records[:-1], {**records[-1], "stop_reason": "SIGINT"}], "stopped at step 100", "warning"),
        (lambda records: records[:-1], "still going, or was killed", "warning"),
        (
            lambda records: [*records[:-1], {"kind": "error", "step": 50, "error": "ValueError", "reason": "bad"}],
            "died at step 100 of 100: ValueError bad",
            "error",
        ),
        (lambda records: [], "no record of a training run", "warning"),
    ],
)
def test_status(change, words, level):
    text, found = status_of(change(run_records()))
    assert words in text and found == level


def test_a_resumed_run_is_going_again_after_an_error():
    records = run_records()[:5]
    resumed = [*records, {"kind": "error", "step": 20, "time": 1020.0}, {**records[0], "time": 5000.0}]
    assert "still going" in status_of(resumed)[0]


def test_facts():
    facts = dict(facts_of(run_records()))
    assert facts["Training images"] == "640" and facts["Images seen"] == "6,400 of 6,400"
    assert facts["Last loss"] == "3.1 (trivial value 4.094)"
    assert facts["Last k-NN while training"] == "80.0 % at step 100"
    assert facts["Time from start to end"] == "1 min 40 s"
    assert facts_of([]) == []
    assert "Last k-NN while training" not in dict(facts_of(run_records(labels=False)))


def test_time_of_a_resumed_run_leaves_out_the_pause():
    records = [
        {"kind": "run_start", "time": 10.0},
        {"kind": "step", "time": 30.0},
        {"kind": "run_start", "time": 1000.0},
        {"kind": "step", "time": 1007.0},
    ]
    assert training_seconds(records) == 27.0 and training_seconds([]) == 0.0


@pytest.mark.parametrize(("seconds", "text"), [(48.2, "48 s"), (546, "9 min 6 s"), (11530, "3 h 12 min")])
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_messages_and_unreadable_images():
    records = run_records() + [
        {"kind": "skipped_image", "step": 1, "time": 0.0, "path": f"{number}.png", "reason": "cut"}
        for number in range(25)
    ]
    messages = messages_of(records)
    assert [message.level for message in messages[:2]] == ["info", "warning"]
    assert "could not be read: 0.png (cut)" in messages[2].text
    assert messages[-1].text.startswith("5 more images") and len(messages) == 2 + 20 + 1
    assert dict(facts_of(records))["Unreadable images"] == "25"
    assert re.match(r"step 3, 1970-01-01 00:16:43", messages[0].when)


def test_table():
    table = table_of(evaluation_record(), newest_step=140)
    assert table.title == "knn, weights of step 100"
    assert table.columns == ["top-1", "mean per class", "trained - this [95 %]"]
    assert [row.name for row in table.rows] == ["trained", "raw pixels", "majority class"]
    assert [row.is_subject for row in table.rows] == [True, False, False]
    assert table.rows[2].cells[:2] == ["41.0", "-"]
    assert table.notes[0] == "These weights are of step 100; the newest checkpoint is of step 140."
    # sqrt(.825 * .175 / 561) = 1.604 %
    assert "standard error of the first is 1.6 points" in table.notes[1]
    assert "k [20], temperature 0.07." in table.notes
    assert floors_of(evaluation_record()) == {"raw pixels": 74.5, "majority class": 41.0}
