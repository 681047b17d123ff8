"""What can be known of a component without importing it."""

from textwrap import dedent

import pytest

from vissl_like.component import REQUIRED, scan_file
from vissl_like.registry import LOSSES, REGISTRIES, DuplicateNameError, UnknownNameError


def test_reads_options_docs_and_facts_from_source(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        dedent('''
        import a_module_that_does_not_exist
        from vissl_like.losses.base import Loss
        from vissl_like.registry import LOSSES

        DEFAULT = 0.5

        class Middle(Loss):
            needs_views = 3

        @LOSSES.register("mine")
        class Mine(Middle):
            """One line.

            Options:
                weight: how much,
                    in all
                size: how big
            """

            accumulation_note = "no"

            def __init__(self, context, *, weight: float = DEFAULT, size: "Count", other=None):
                pass
        ''')
    )
    (found,) = scan_file(file)
    assert (found.registry, found.name, found.summary) == ("LOSSES", "mine", "One line.")
    assert found.options["weight"].default == 0.5 and found.options["weight"].doc == "how much, in all"
    assert found.options["size"].default == REQUIRED and found.options["size"].required
    assert found.options["other"].annotation == "Any" and not found.open_options
    assert found.facts["needs_views"] == 3 and found.facts["accumulation_note"] == "no"
    assert found.facts["needs_logits"] is False  # from the base class in our own package, unimported


def test_every_static_description_agrees_with_the_imported_constructor():
    """The text reader and Python must see the same options."""
    import inspect

    for registry in REGISTRIES.values():
        for component in registry.components():
            entry = registry.get(component.name)
            parameters = inspect.signature(entry).parameters.values()
            real = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
            assert set(real) == set(component.options), (registry.kind, component.name)
            for name, option in component.options.items():
                required = real[name] is inspect.Parameter.empty
                assert option.required == required, (component.name, name)


def test_nearest_name_for_a_wrong_one():
    with pytest.raises(UnknownNameError, match=r"unknown loss 'swavv'. Did you mean 'swav'\?"):
        LOSSES.get("swavv")


def test_a_second_definition_of_a_name_is_refused():
    from vissl_like.losses.base import Loss

    LOSSES.get("swav")
    with pytest.raises(DuplicateNameError, match="two loss entries are called 'swav'"):

        @LOSSES.register("swav")
        class Another(Loss):
            pass
