import math

import pytest

from vissl_like.config.yaml_text import MAX_CHARACTERS, dump_inline, dump_yaml, read_yaml
from vissl_like.utils.errors import UserError


def value(text):
    return read_yaml(f"a: {text}", "x")[0]["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("1_000", 1000),
        ("0x1F", 31),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("10 epochs", "10 epochs"),
        ("5%", "5%"),
        ("${TRAIN.length}", "${TRAIN.length}"),
        ("a=b", "a=b"),
        ("[a, 1, [2]]", ["a", 1, [2]]),
        ("{b: {c: 1}}", {"b": {"c": 1}}),
        (".inf", math.inf),
        ("???", "???"),
    ],
)
def test_values(text, expected):
    found = value(text)
    assert found == expected and type(found) is type(expected)


def test_lines_are_those_of_the_keys():
    _, lines = read_yaml("\nA:\n  b: 1\n  c:\n    - {d: 1}\n    - {d: 2}\n", "x")
    assert lines["A"] == 2 and lines["A.b"] == 3 and lines["A.c[1].d"] == 6


def test_aliases_are_followed():
    assert read_yaml("a: &x [1, 2]\nb: *x\n", "x")[0] == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3: 'a' is given twice (first in line 1)"),
        ("a:\n  b: 1\n  b: 1", "f.yaml:3: 'a.b' is given twice"),
        ("a: [1", "f.yaml:1: not valid YAML"),
        ("a: b: c", "f.yaml:1: not valid YAML"),
        ("a: 1\n\tb: 2", "f.yaml:2: not valid YAML"),
        ("a: *nobody", "undefined alias"),
        ("a: !!python/object/apply:os.system [echo]", "f.yaml:1: the tag"),
        ("a: 1\nb: !thing x", "f.yaml:2: the tag"),
        ("<<: {a: 1}", "f.yaml:1: merge keys"),
        ("? [a, b]\n: 1", "f.yaml:1: a key must be a plain word"),
        ("a: 1\n--- \nb: 2", "f.yaml:2: not valid YAML"),
        ("\x00", "f.yaml: not valid YAML"),
        ('a: "\\U99999999"', "f.yaml: not valid YAML"),
        ("a: " + "9" * 5000, "f.yaml:1: "),
        ("a: !!int word", "f.yaml:1: 'word' is not a value of type int"),
        ("[" * 100, "deeper than 24 levels"),
        ("a: &a [*a]", "deeper than 24 levels"),
        ("x" * (MAX_CHARACTERS + 1), "at most"),
        ("a: {b: ???}", "Write '???' in quotes"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(UserError) as caught:
        read_yaml(text, "f.yaml")
    assert message in str(caught.value)


def test_aliases_cannot_explode():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(UserError, match="more than 50000 values"):
        read_yaml("\n".join(lines), "f.yaml")


TEXTS = ["1e-3", "yes", "010", "null", "", "a: b", "#x", "*x", "x\ny", " x", "%a", "1.", "0x1", "é\u2028", "${a.b}"]
TEXTS += ["\x85", "\ufeff", "-", "=", "<<", "~", "1:30", "\U0001f600", "'", '"', "a # b", "- x", "x" * 300, "\t"]


@pytest.mark.parametrize("text", TEXTS)
def test_dumped_texts_read_back_as_themselves(text):
    settings = {"k": [text, {"m": text}], "n": text}
    assert read_yaml(dump_yaml(settings), "x")[0] == settings
    assert read_yaml(dump_inline(settings), "x")[0] == settings
    assert read_yaml(f"k: {dump_inline(text)}", "x")[0] == {"k": text}


def test_dumped_numbers_read_back_as_themselves():
    settings = {"f": 1e-05, "i": 3, "b": True, "n": None, "l": [1.0, 2], "e": {}, "m": []}
    found = read_yaml(dump_yaml(settings), "x")[0]
    assert found == settings and type(found["l"][0]) is float
