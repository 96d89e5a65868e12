"""Parameters are read off the signature, from text and from Python."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Interval
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from instruct_prune.errors import InputError
from instruct_prune.plugin import Plugin


def rule(
    thing: NameThatOnlyATypeCheckerKnows,  # noqa: F821
    count: int = 3,
    *,
    share: Annotated[float, Interval(gt=0, le=1)] = 0.5,
    split: float | Literal["auto", "mmd"] = "auto",
    flag: bool = False,
    word: str | None = None,
) -> None:
    """Do one thing. And another,
    on two lines.

    More.
    """


PLUGIN = Plugin("rule", rule, ("score",))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("count=7", 7),
        ("share=1", 1.0),
        ("share=1e-3", 0.001),
        ("split=0.25", 0.25),
        ("split=mmd", "mmd"),
        ("flag=true", True),
        ("flag=0", False),
        ("word=none", None),
        ("word=a=b", "a=b"),
        ("word=", ""),
    ],
)
def test_text_is_read_by_the_annotation(text: str, value: Any) -> None:
    ((name, found),) = PLUGIN.parse([text]).items()
    assert name == text.partition("=")[0]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("count=7.5", "count is '7.5', it takes int"),
        ("count=seven", "the plug-in 'rule': count is 'seven'"),
        ("split=half", "split is 'half', it takes float, auto or mmd"),
        ("flag=maybe", "it takes bool"),
        ("share=0", "share is '0', it takes float above 0 and at most 1"),
        ("share=1.01", "share is '1.01'"),
        ("share=nan", "share is 'nan'"),
        ("shar=1", r"has no parameter 'shar'\. Did you mean 'share'\? It takes count, share"),
        ("thing=1", "has no parameter 'thing'"),
        ("share", "write name=value"),
    ],
)
def test_wrong_text(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        PLUGIN.parse([text])


def test_a_parameter_twice() -> None:
    with pytest.raises(InputError, match="count is given twice"):
        PLUGIN.parse(["count=1", "count=1"])


def test_values_of_python_become_plain_and_defaults_are_filled_in() -> None:
    bound = PLUGIN.bind({"count": np.int64(2), "share": 1, "split": np.float32(0.5)})
    assert bound == {"count": 2, "share": 1.0, "split": 0.5, "flag": False, "word": None}
    assert [type(value) for value in bound.values()] == [int, float, float, bool, type(None)]


@pytest.mark.parametrize(
    "params",
    [
        {"count": 1.0},
        {"count": True},
        {"share": "1"},
        {"split": "half"},
        {"flag": 1},
        {"word": 3},
        {"share": None},
        {"share": 0.0},
    ],
)
def test_values_that_it_does_not_take(params: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(params))} is"):
        PLUGIN.bind(params)


@given(st.integers(), st.floats(0, 1, exclude_min=True), st.booleans(), st.text())
def test_what_is_written_is_read_back(count: int, share: float, flag: bool, word: str) -> None:
    given_ = {"count": count, "share": share, "flag": flag, "word": word}
    if word != "none":
        assert PLUGIN.parse(f"{name}={value}" for name, value in given_.items()) == given_
    assert PLUGIN.bind(given_) | given_ == PLUGIN.bind(given_)


def test_a_parameter_without_default_must_be_given() -> None:
    def needy(thing: object, *, power: float) -> None: ...

    with pytest.raises(InputError, match=r"needs a value for 'power' \(float\)"):
        Plugin("needy", needy, ()).bind({})


def test_signatures_that_cannot_be_read() -> None:
    def soup(thing: object, **options: Any) -> None: ...

    def listed(thing: object, *, values: list[int] = []) -> None: ...  # noqa: B006

    def lost(thing: object, *, value: Nowhere = 3) -> None: ...  # noqa: F821

    def nothing() -> None: ...

    for function, says in (
        (soup, "cannot be set by name"),
        (listed, "'values' has the type"),
        (lost, "the type of a parameter cannot be found"),
        (nothing, "its first parameter"),
    ):
        with pytest.raises(InputError, match=says):
            Plugin("x", function, ()).bind({})


def test_a_parameter_without_annotation_has_the_type_of_its_default() -> None:
    assert Plugin("x", lambda thing, k=3: None, ()).parse(["k=4"]) == {"k": 4}


@pytest.mark.parametrize("bound", [Field(ge=0, lt=5), Interval(ge=0, lt=5)])
def test_bounds_may_be_those_of_pydantic(bound: Any) -> None:
    def bounded(thing: object, *, count: Annotated[int, bound] | None = None) -> None: ...

    bounded.__annotations__["count"] = Annotated[int, bound] | None
    plugin = Plugin("bounded", bounded, ())
    assert plugin.parse(["count=4"]) == plugin.bind({"count": np.int8(4)}) == {"count": 4}
    for wrong in (-1, 5):
        with pytest.raises(InputError, match=f"count is {wrong}, it takes int at least 0 and below 5 or none"):
            plugin.bind({"count": wrong})
        with pytest.raises(InputError, match=f"count is '{wrong}', it takes"):
            plugin.parse([f"count={wrong}"])


def test_needs_may_depend_on_parameters() -> None:
    def columns_for(*, flag: bool, **_: Any) -> tuple[str, ...]:
        return ("extra",) if flag else ()

    plugin = Plugin("rule", rule, columns_for)
    assert plugin.needs_of() == ()
    assert plugin.needs_of({"flag": True}) == ("extra",)


def test_about_is_the_first_sentence() -> None:
    assert PLUGIN.about == "Do one thing"
    assert Plugin("x", lambda thing: None, ()).about == ""
