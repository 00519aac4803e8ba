"""Label selectors, against the behaviour that Kubernetes documents."""

import pytest

from tracer.analysis.labels import parse_selector
from tracer.errors import TracerError

WEB = {"app": "web", "tier": "front", "app.kubernetes.io/name": "shop", "empty": ""}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("app=web", True),
        ("app==web", True),
        (" app = web ", True),
        ("app=db", False),
        ("app!=db", True),
        ("app!=web", False),
        ("absent!=x", True),
        ("app", True),
        ("absent", False),
        ("!absent", True),
        ("! app", False),
        ("app in (web,db)", True),
        ("app in ( db , web )", True),
        ("app in(web)", True),
        ("app in (db)", False),
        ("app notin (db)", True),
        ("app notin (db,web)", False),
        ("absent notin (x)", True),
        ("absent in (x)", False),
        ("empty=", True),
        ("empty in ()", True),
        ("app=", False),
        ("app.kubernetes.io/name=shop", True),
        ("app=web,tier=front", True),
        ("app=web, tier=back", False),
        ("app in (web,db),!absent,tier!=back", True),
    ],
)
def test_matches_as_kubernetes_does(selector, expected):
    assert parse_selector(selector)(WEB) is expected


def test_a_label_named_in_is_a_label():
    assert parse_selector("in=x")({"in": "x"})
    assert parse_selector("in in (x)")({"in": "x"})


@pytest.mark.parametrize(
    "selector",
    [
        *("", " ", ",", "app=web,", ",app=web", "app=web,,tier", "app in web", "app in (web"),
        *("=web", "-app=web", "app=we b", "app===web", "app in (a b)", "a/b/c=x", "!", "app>1"),
    ],
)
def test_refuses_what_is_no_selector(selector):
    with pytest.raises(TracerError, match="selector") as error:
        parse_selector(selector)
    assert error.value.hint
