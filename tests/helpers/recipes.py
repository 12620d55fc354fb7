"""Anything that a recipe file may say."""

from __future__ import annotations

from hypothesis import strategies as st

POSSIBLE = {
    "choice": {"gold", "wrong"},
    "other_target": {"answer"},
    "wrong_number": {"answer"},
    "answers": {"right", "wrong", "answer"},
    "static": {"pairs", "prompt"},
}


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.dates(),
        st.binary(max_size=4),
        st.sampled_from([*POSSIBLE, "{{ label }}", "file.yaml", "..", "/"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
