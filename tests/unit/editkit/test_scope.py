"""Scopes: what is in them, and that widening one never takes a parameter away."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict

import pytest
from conftest import LAYOUTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editkit.errors import InputError
from editkit.scope import EVERYTHING, IN_BLOCKS, OUTSIDE, Scope
from editkit.settings import build
from reports.spec import SpecError, make_spec

some_layers = st.one_of(st.none(), st.sets(st.integers(0, 2), min_size=1).map(lambda s: tuple(sorted(s))))
some_modules = st.sets(st.sampled_from(IN_BLOCKS)).map(lambda s: tuple(sorted(s)))
scopes = st.builds(Scope, some_layers, some_modules)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_is_every_parameter_with_a_tied_embedding_once(handle_of, layout):
    handle = handle_of(layout)
    assert EVERYTHING.parameters(handle) == [name for name, _ in handle.model.named_parameters()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mlp_out_of_a_layer_is_the_matrix_that_editors_rewrite(handle_of, layout):
    handle = handle_of(layout)
    names = Scope((1,), ("mlp_out",)).parameters(handle)
    assert handle.weight_name("mlp_out", 1) in names
    assert set(names) < set(Scope((1,), ("mlp",)).parameters(handle)) < set(Scope((1,)).parameters(handle))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_mlp_and_blocks_are_apart_as_they_should_be(handle_of, layout):
    handle = handle_of(layout)
    attention, mlp = (set(Scope(modules=(m,)).parameters(handle)) for m in ("attention", "mlp"))
    assert attention and mlp and not attention & mlp
    assert Scope((0, 1, 2)).parameters(handle) == Scope(modules=("block",)).parameters(handle)
    outside = set(Scope(modules=OUTSIDE).parameters(handle))
    assert outside | set(Scope((0, 1, 2)).parameters(handle)) <= set(EVERYTHING.parameters(handle))


def test_a_tied_embedding_is_its_unembedding(handle_of):
    tied, untied = handle_of("llama_tied"), handle_of("llama")
    names = [Scope(modules=(m,)).parameters(tied) for m in ("embedding", "unembedding")]
    assert names[0] == names[1] == ["model.embed_tokens.weight"]
    assert Scope(modules=("unembedding",)).parameters(untied) == ["lm_head.weight"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scope=scopes, layer=st.integers(0, 2), module=st.sampled_from(IN_BLOCKS))
def test_widening_never_shrinks(handle_of, scope, layer, module):
    handle = handle_of("gpt2")
    before = set(scope.parameters(handle))
    wider = [Scope(None, scope.modules), Scope(scope.layers, ()), EVERYTHING]
    if scope.modules:
        wider.append(Scope(scope.layers, tuple({*scope.modules, module})))
    if scope.layers is not None:
        wider.append(Scope(tuple({*scope.layers, layer}), scope.modules))
    for scope_ in wider:
        assert before <= set(scope_.parameters(handle))


@given(scope=scopes)
def test_scopes_round_trip_through_json(scope):
    assert build(Scope, json.loads(json.dumps(asdict(scope)))) == scope


def test_refusals_name_the_way_out(handle):
    with pytest.raises(ValueError, match="no module 'ffn' for a scope; there is block, attention, mlp"):
        Scope(modules=("ffn",))
    with pytest.raises(ValueError, match="'embedding' stands in no layer"):
        Scope((1,), ("embedding",))
    with pytest.raises(ValueError, match="no layer 7 in .* layers 0 to 2"):
        Scope((7,)).parameters(handle)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": 3}, "layers of a scope is 3; give a tuple like (5, 6)"),
        ({"layers": "3"}, "layers of a scope is '3'"),
        ({"layers": (1, "2")}, "layers of a scope is (1, '2')"),
        ({"layers": (True,)}, "layers of a scope is (True,)"),
        ({"layers": (2, -1)}, "layers of a scope: no layer -1; they are counted from 0"),
        ({"modules": "mlp"}, "modules of a scope is 'mlp'; give a tuple like ('mlp_out',)"),
        ({"modules": (3,)}, "modules of a scope is (3,)"),
    ],
)
def test_what_is_no_scope_is_refused_at_once(given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Scope(**given)


@pytest.mark.parametrize("scope", [{"layers": 3}, {"layers": "all"}, {"modules": 3}, {"layers": [0.5]}])
def test_a_spec_with_such_a_scope_is_refused_before_anything_runs(scope):
    part = {"name": "npo", "settings": {"scope": scope}}
    with pytest.raises(SpecError, match=f"scope.{next(iter(scope))}"):
        make_spec({"operators": [part]})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_setting_that_is_no_finite_number_is_refused(number):
    part = {"name": "npo", "settings": {"schedule": {"learning_rate": number}}}
    with pytest.raises(SpecError, match="learning_rate.*expected a finite number"):
        make_spec({"operators": [part]})
