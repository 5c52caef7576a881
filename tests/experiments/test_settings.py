import json
from dataclasses import dataclass, fields, replace
from typing import Literal

import pytest

from lineavae.experiments import EXPERIMENTS, Config
from lineavae.experiments.settings import change, parse_seeds, resolve


@dataclass(frozen=True, kw_only=True)
class AllConfig(Config):
    rate: float = 0.1
    rates: tuple[float, ...] = (0.1,)
    pair: tuple[int, int] = (1, 2)
    flag: bool = False
    kind: Literal["one", "two"] = "one"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_images=1_000", 1000),
        ("rate=3e-3", 0.003),
        ("rate=1", 1.0),
        ("rates=1e-4,0.003", (0.0001, 0.003)),
        ("rates=[0.5, 0.25]", (0.5, 0.25)),
        ("rates=", ()),
        ("pair=3,4", (3, 4)),
        ("flag=true", True),
        ("kind=two", "two"),
        ("device=cuda:0", "cuda:0"),
        ("data=a=b", "a=b"),
        ("data=none", None),
    ],
)
def test_settings_are_read_by_their_types(setting, value):
    name = setting.partition("=")[0]
    found = getattr(change(AllConfig(), [setting]), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("num_images", "must be name=value, got 'num_images'"),
        (
            "latents=3",
            "no setting 'latents', only num_images, data, image_size, seed, device, rate, rates, pair",
        ),
        ("num_images=1.5", "num_images must be a whole number, got '1.5'"),
        ("rate=fast", "rate must be a number, got 'fast'"),
        ("rate=inf", "rate must be a number, got 'inf'"),
        ("rates=1,x", "rates must be numbers with commas between them, got '1,x'"),
        ("pair=1,2,3", "pair must be 2 whole numbers with commas between them, got '1,2,3'"),
        ("flag=yes", "flag must be true or false, got 'yes'"),
        ("kind=three", "kind must be one or two, got 'three'"),
    ],
)
def test_what_is_no_setting_is_said(setting, message):
    with pytest.raises(ValueError, match=r"setting|must be") as error:
        change(AllConfig(), [setting])
    assert message in str(error.value)


def typed_by_hand(value):
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_setting_of_every_preset_can_be_typed(name):
    for preset in EXPERIMENTS[name].presets.values():
        settings = {field.name: getattr(preset, field.name) for field in fields(preset)}
        typed = [f"{key}={typed_by_hand(value)}" for key, value in settings.items()]
        assert change(replace(preset), typed) == preset


@pytest.mark.parametrize(
    ("text", "seeds"), [("0:5", (0, 1, 2, 3, 4)), ("0,3,7", (0, 3, 7)), ("4", (4,)), ("0:2,9", (0, 1, 9))]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "5:0", "-1", "1,1", "0:1:2:3", "1.5"])
def test_what_are_no_seeds(text):
    with pytest.raises(ValueError, match="seeds must be different whole numbers from 0 on"):
        parse_seeds(text)


def test_names_of_figures():
    assert resolve(["figure-3", "latent-dimensions", "figure-2"], EXPERIMENTS) == [
        "analytic-vs-stochastic",
        "latent-dimensions",
    ]
    with pytest.raises(ValueError, match=r"no experiment 'figure-0', only .*; and the figures.*figure-2"):
        resolve(["figure-0"], EXPERIMENTS)
