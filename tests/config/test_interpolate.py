import pytest

from vissl_like.config.interpolate import UNRESOLVED, interpolate
from vissl_like.utils.errors import UserError


def test_references_take_value_and_type(monkeypatch):
    monkeypatch.setenv("TOY_PLACE", "/data")
    values = {
        "A": {"n": 3, "text": "x", "list": [1, {"d": "${A.n}"}], "near": "${.n}", "up": "${..B.c}"},
        "B": {"c": "${A.list}", "whole": "${A.list[1].d}", "inside": "${A.n}-${A.text}", "flag": True},
        "C": ["${B.whole}", "${oc.env:TOY_PLACE}/photos", "${oc.env:TOY_ABSENT, 5}", "is ${B.flag}", "${F.g}"],
    }
    result = interpolate(values, {"F": {"g": "default"}, "A": {"n": 99}})
    found, problems = result.values, result.problems
    assert problems == []
    assert found["A"] == {"n": 3, "text": "x", "list": [1, {"d": 3}], "near": 3, "up": [1, {"d": 3}]}
    assert found["B"] == {"c": [1, {"d": 3}], "whole": 3, "inside": "3-x", "flag": True}
    assert found["C"] == [3, "/data/photos", "5", "is true", "default"]
    assert values["A"]["near"] == "${.n}"
    found["B"]["c"].append(0)
    assert found["A"]["up"] == [1, {"d": 3}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${A.numbr}", "there is no setting A.numbr. Did you mean 'number'?"),
        ("${nowhere.n}", "there is no setting nowhere.n"),
        ("${A}x", "is a group or a list"),
        ("${", "a reference is written"),
        ("${A.${A.n}}", "a reference is written"),
        ("a ${A.n} ${", "a reference is written"),
        ("${}", "is not of the form"),
        ("${oc.create:x}", "is not of the form"),
        ("${now:}", "is not of the form"),
        ("${....n}", "leading dots"),
        ("${oc.env:TOY_NOT_SET}", "the environment variable TOY_NOT_SET is not set"),
        ("${X}", "refers to itself"),
    ],
)
def test_references_that_lead_nowhere(text, message):
    result = interpolate({"A": {"n": 1, "number": 2}, "X": text}, {})
    found, problems = result.values, result.problems
    assert [key for key, _ in problems] == ["X"] and message in problems[0][1]
    assert found["X"] is UNRESOLVED


def test_what_came_from_the_environment_is_noted(monkeypatch):
    monkeypatch.setenv("TOY_TOKEN", "hunter2")
    values = {
        "A": {"direct": "${oc.env:TOY_TOKEN}", "plain": "x", "unset": "${oc.env:TOY_ABSENT,hunter2}"},
        "B": {"inside": "token=${A.direct}!", "again": "${.inside}", "other": "${A.plain}"},
        "C": ["${A.plain}", {"deep": "${B.again}"}],
        "D": "${A}",
    }
    result = interpolate(values, {})
    assert result.problems == [] and result.values["C"][1]["deep"] == "token=hunter2!"
    assert result.from_environment == {
        ("A", "direct"): "${oc.env:TOY_TOKEN}",
        ("A", "unset"): "${oc.env:TOY_ABSENT,hunter2}",
        ("B", "inside"): "token=${A.direct}!",
        ("B", "again"): "${.inside}",
        ("C", "1", "deep"): "${B.again}",
        ("D",): "${A}",
    }
    assert interpolate(values | {"D": 1}, {}).from_environment.keys() == result.from_environment.keys() - {("D",)}


def test_circles_and_explosions_end():
    problems = interpolate({"A": "${B}", "B": "${C}", "C": "${A}"}, {}).problems
    assert {key for key, _ in problems} == {"A", "B", "C"}
    assert any("go in a circle: A -> B -> C -> A" in text for _, text in problems)
    problems = interpolate({"A": {"x": "${B}"}, "B": {"y": "${A}"}}, {}).problems
    assert problems
    doubling = {"a0": "x" * 10, **{f"a{n}": f"${{a{n - 1}}}${{a{n - 1}}}" for n in range(1, 40)}}
    problems = interpolate(doubling, {}).problems
    assert any("longer than" in text for _, text in problems)
    wide = {"a0": [1] * 10, **{f"a{n}": [f"${{a{n - 1}}}"] * 10 for n in range(1, 12)}}
    with pytest.raises(UserError, match="too large"):
        interpolate({"list": ["x"] * 60_000}, {})
    try:
        problems = interpolate(wide, {}).problems
    except UserError:
        problems = ["too large"]
    assert problems
