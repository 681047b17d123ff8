from pathlib import Path

import pytest

from vissl_like.config.annotations import parse_kind, spell
from vissl_like.config.names import Names
from vissl_like.config.values import convert, find_problems
from vissl_like.registry import REGISTRIES


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("bool", [True, False], [0, 1, "true", None]),
        ("int", [3, -3], [True, 1.0, "3", None, 2**70]),
        ("float", [1, 1.5, -2.0], [True, "1.5", float("nan"), float("inf"), None]),
        ("str", ["", "x"], [1, True, None, ["x"]]),
        ("Positive", [1e-9, 3], [0, -1.0, True, "1"]),
        ("NonNegative", [0, 0.0, 5], [-1e-9]),
        ("Fraction", [0, 1, 0.5], [-0.1, 1.1]),
        ("Count", [1, 100], [0, -1, 1.5, True, "1"]),
        ("Index", [0, 5], [-1, 0.0]),
        (
            "Duration",
            ["10 epochs", "5%", "1 step", "0.5 epochs"],
            [10, "10", "ten epochs", "1.5 steps", "101%", None, True],
        ),
        ("Percent", ["1%", "0.5%", "100%"], ["101%", 1, "x%", None]),
        ("Literal['a', 'b']", ["a", "b"], ["c", None, 1]),
        ("Literal[1, 3]", [1, 3], [True, 1.0, 2]),
        ("Literal[-1, 1]", [-1], [0]),
        ("Count | Literal['auto']", [1, "auto"], [0, "Auto", None]),
        ("Count | None", [1, None], [0, "none"]),
        ("Optional[Count]", [1, None], [0]),
        ("Union[int, str]", [1, "x"], [1.5, None]),
        ("Percent | Index", ["1%", 0, 5], [-1, "5"]),
        ("list[Count]", [[], [1, 2]], [[0], [1, "x"], 1, "x", None]),
        ("list", [[1, "x"]], [1]),
        ("tuple[Fraction, Fraction]", [[0, 1]], [[0], [0, 1, 1], [0, 2], 0.5]),
        ("tuple[int, ...]", [[], [1, 2, 3]], [["x"]]),
        ("dict[str, Positive]", [{}, {"a": 1}], [{"a": 0}, []]),
        ("dict", [{"a": object}], [1]),
        ("Annotated[float, Range(low=0, high=0.5, open_low=True)]", [0.5], [0, 0.6]),
        ("Annotated[int, Range(1024, 65535)] | None", [1024, None], [80]),
        ("kinds.Count", [1], [0]),
        ("'Count'", [1], [0]),
        ("str | Path", ["x"], [1]),
        ("Any", [None, 1, "x"], []),
        ("torch.Tensor", [None, 1], []),
    ],
)
def test_annotations(annotation, good, bad):
    kind = parse_kind(annotation)
    assert [value for value in good if find_problems(kind, value)] == []
    assert [value for value in bad if not find_problems(kind, value)] == []


def test_problems_say_where_and_what_to_do():
    assert find_problems(parse_kind("Count"), 1e3) == [("", "must be a whole number >= 1; write 1000")]
    assert find_problems(parse_kind("float"), "1e-4")[0][1].endswith("it is text: remove the quotes or leading zeros")
    assert find_problems(parse_kind("bool | Literal['auto']"), "yes") == [
        ("", "must be true or false or 'auto'; write true")
    ]
    assert find_problems(parse_kind("str"), 2024) == [("", "must be text; put it in quotes")]
    assert find_problems(parse_kind("list[Count] | None"), [1, 0]) == [("[1]", "must be a whole number >= 1")]
    assert find_problems(parse_kind("Literal['bf16', 'fp32']"), "bf8")[0][1].endswith("Did you mean 'bf16'?")
    assert "such as '10 epochs'" in find_problems(parse_kind("Duration"), 10)[0][1]


def test_unknown_annotations_are_known_to_be_unknown():
    assert not parse_kind("np.ndarray").understood()
    assert not parse_kind("list[np.ndarray]").understood()
    assert not parse_kind("this is not python").understood()
    assert parse_kind("list[dict[str, Count]] | None").understood()


def test_names_of_the_file_and_of_its_imports(tmp_path):
    (tmp_path / "shapes.py").write_text("Pair = tuple[int, int]\n")
    (tmp_path / "part.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import TypedDict, NotRequired\n"
        "from vissl_like.utils.kinds import Count as Many\n"
        "from .shapes import Pair as Size\n"
        "Sizes = list[Size] | None\n"
        "@dataclass\nclass Spec:\n    size: Size\n    count: Many = 1\n    inner: 'Spec | None' = None\n"
        "class Typed(TypedDict):\n    a: int\n    b: NotRequired[int]\n"
        "class Plain: ...\n"
    )
    names = Names(tmp_path / "part.py")
    assert find_problems(parse_kind("Sizes", names), [[1, 2], None]) == [
        ("[1]", "must be a list of 2: a whole number, a whole number")
    ]
    spec = parse_kind("list[Spec]", names)
    assert find_problems(spec, [{"size": [1, 2]}, {"size": [1, 2], "count": 3, "inner": {"size": [3, 4]}}]) == []
    found = dict(find_problems(spec, [{"size": [1], "conut": 1, "inner": {"size": [1, "x"]}}, {}]))
    assert set(found) == {"[0].size", "[0].conut", "[0].inner.size[1]", "[1].size"}
    assert "Did you mean 'count'?" in found["[0].conut"]
    assert find_problems(parse_kind("Typed", names), {"a": 1}) == []
    assert not parse_kind("Plain", names).understood()


def test_convert_makes_floats_of_whole_numbers_only_where_floats_are_meant():
    converted = convert(parse_kind("list[Positive | None]"), [1, None, 2.5])
    assert converted == [1.0, None, 2.5] and type(converted[0]) is float
    assert type(convert(parse_kind("Count | Positive"), 1)) is int
    assert convert(parse_kind("dict[str, float]"), {"a": 1}) == {"a": 1.0}
    assert convert(parse_kind("tuple[int, float]"), [1, 2]) == [1, 2.0]
    assert convert(parse_kind("bool"), True) is True


def test_spell_is_short_and_never_fails():
    assert (spell(None), spell(True), spell("a")) == ("null", "true", "'a'")
    assert len(spell("x" * 1000)) < 100
    assert spell(10**5000) == "a huge number"


def test_every_option_of_every_component_can_be_checked():
    options = [
        (str(Path(component.file).name), option, parse_kind(option.annotation, Names(component.file)))
        for registry in REGISTRIES.values()
        for component in registry.components()
        for option in component.options.values()
    ]
    assert len(options) > 40
    assert [(file, option.name, option.annotation) for file, option, kind in options if not kind.understood()] == []
    wrong = [
        (file, option.name, option.default)
        for file, option, kind in options
        if isinstance(option.default, (bool, int, float, list, dict)) and find_problems(kind, option.default)
    ]
    assert wrong == []
