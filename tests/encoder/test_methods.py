import pytest

from sempa_mlx.data.templates import METAEOL, PROMPTEOL, RAW
from sempa_mlx.encoder.interventions import CONTRAST, PLAIN, PREPEND, Parameters
from sempa_mlx.encoder.methods import METHODS, find_method
from sempa_mlx.errors import UsageError


def test_the_table_of_methods():
    assert list(METHODS) == [
        *["prompteol", "mean", "weighted-mean", "last", "echo", "prompteol-icl", "pretcot", "ke"],
        *["metaeol", "cp", "tp"],
    ]
    assert METHODS["mean"].templates == METHODS["last"].templates == (RAW,)
    assert METHODS["metaeol"].templates == METAEOL
    assert METHODS["cp"].templates[0] is PROMPTEOL
    changing = {name: method.intervention for name, method in METHODS.items()}
    assert changing == dict.fromkeys(METHODS, PLAIN) | {"cp": CONTRAST, "tp": PREPEND}


def test_defaults_are_those_of_the_authors_at_their_depths():
    assert METHODS["cp"].parameters(32) == Parameters(layer=-2, block=4, strength=0.5)
    assert METHODS["tp"].parameters(42).block == 7
    assert METHODS["tp"].parameters(32).index(32) == 31, "what leaves the last block but one"
    assert METHODS["ke"].parameters(32).index(32) == 31
    assert METHODS["prompteol"].parameters(32).index(32) == 32


@pytest.mark.parametrize("name", METHODS)
def test_defaults_fit_models_of_any_depth(name):
    for depth in range(2, 100):
        found = METHODS[name].parameters(depth)
        assert METHODS[name].parameters(depth, layer=found.layer, block=found.block) == found


def test_given_parameters_go_before_defaults():
    found = METHODS["cp"].parameters(30, layer=-3, block=0, strength=0.0)
    assert found == Parameters(layer=-3, block=0, strength=0.0)
    assert METHODS["tp"].parameters(30, block=9) == Parameters(layer=29, block=9)
    assert METHODS["mean"].parameters(30, layer=11) == Parameters(layer=11)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mean", {"layer": 31}, "layer must lie in -31 to 30, not 31"),
        ("mean", {"layer": -32}, "layer must lie in -31 to 30"),
        ("mean", {"block": 3}, "method `mean` has no block"),
        ("tp", {"strength": 0.5}, "method `tp` has no strength"),
        ("tp", {"block": 1}, "must lie in 2 to 30, not 1"),
        ("tp", {"block": 31}, "must lie in 2 to 30, not 31"),
        ("tp", {"layer": 1}, "layer 1 is read before anything is prepended"),
        ("cp", {"block": -1}, "the block must lie in 0 to 29, not -1"),
        ("cp", {"block": 30}, "the block must lie in 0 to 29, not 30"),
        ("cp", {"block": 7, "layer": 7}, "layer 7 is read before block 7 is run"),
        ("cp", {"block": 7, "layer": -24}, "layer -24 is read before block 7 is run"),
        ("cp", {"strength": float("nan")}, "the strength must be a finite number"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(name, given, message):
    with pytest.raises(UsageError) as caught:
        METHODS[name].parameters(30, **given)
    (problem,) = caught.value.problems
    assert message in problem.what


def test_all_faults_are_told_at_once():
    with pytest.raises(UsageError) as caught:
        METHODS["ke"].parameters(30, layer=99, block=1, strength=0.5)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("prompt-eol", "prompteol"),
        ("Echo", "echo"),
        ("meta-eol", "metaeol"),
        ("pretcod", "pretcot"),
    ],
)
def test_a_typing_error_gets_the_close_name(typed, meant):
    with pytest.raises(UsageError) as caught:
        find_method(typed)
    assert f"did you mean `{meant}`" in caught.value.problems[0].fix


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(UsageError) as caught:
        find_method("bert")
    assert caught.value.problems[0].fix == f"one of: {', '.join(METHODS)}"


@pytest.mark.parametrize(
    ("depth", "contrasting", "prepending"), [(32, 4, (31, 5)), (40, 5, (39, 7)), (28, 4, (27, 5))]
)
def test_shares_of_the_depth_are_those_of_the_authors(depth, contrasting, prepending):
    cp, tp = METHODS["cp"].parameters(depth), METHODS["tp"].parameters(depth)
    assert (cp.layer, cp.block, cp.strength) == (-2, contrasting, 0.5)
    assert (tp.layer, tp.block) == prepending
