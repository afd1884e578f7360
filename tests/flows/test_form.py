"""The run form: the JSON schema that the Prefect UI draws, and what a filled-in form becomes."""

from __future__ import annotations

from functools import cache

import jsonschema
import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import BaseModel

from flows.server import deployed
from flows.server.form import PROFILE_NAMES, form, given
from spin_core.config.base import section_of
from spin_core.config.profile import Config, load_profile
from spin_core.errors import BadInput


def boxes(schema: dict) -> dict[str, dict]:
    """Every box of the form by its title, the sections unfolded as the UI does it."""
    by_title = {}
    for box in schema["properties"].values():
        folded = [option for option in box.get("anyOf", []) if option.get("title") == "change"]
        by_title |= boxes(folded[0]) if folded else {box["title"]: box}
    return by_title


def fields(model: type[BaseModel] = Config, path: str = "") -> dict[str, tuple]:
    """Every field of the config by its path: the field, and its JSON schema."""
    by_path = {}
    schemas = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        by_path |= fields(inner, f"{path}{name}.") if inner else {path + name: (field, schemas[name])}
    return by_path


@cache
def schema_of(flow) -> dict:
    return parameter_schema(flow.fn).model_dump()


def complaint(settings: dict) -> str:
    """What the server says of these settings, with the schema and the function that it uses; empty: nothing."""
    try:
        # As create_flow_run_from_deployment calls it.
        validate({"settings": settings}, schema_of(deployed.spin), raise_on_error=True, ignore_required=True)
    except Exception as error:
        return str(error)
    return ""


def test_every_field_of_the_config_has_a_box():
    """Catches a form that forgets a field, one of an optional section or of a section in a section, and a box whose
    title is not the path that `--set` takes."""
    assert boxes(form()).keys() == fields().keys()
    assert {"finetune.lora.rank", "sft.lr", "control.lr", "runtime.pools.score", "overrides"} <= fields().keys()


def test_choices_bounds_and_helps_are_those_of_the_config():
    """Catches a select without one of its choices, a number box without its bounds or help."""
    shown = boxes(form())
    for path, (field, schema) in fields().items():
        assert shown[path]["description"].startswith(field.description or ""), path
        kept = {name: value for name, value in schema.items() if name in ("enum", "pattern") or "imum" in name}
        assert kept.items() <= shown[path].items(), path
    assert shown["finetune.loss"]["enum"] == ["sigmoid", "hinge", "unpaired", "tspin", "tpaw", "alpha", "dft"]
    assert "SPIN iterations. 0 to 100. In" in shown["iterations"]["description"]
    assert " Above 0. In the profiles: 0.2 (demo)," in shown["finetune.beta"]["description"]
    assert " At least 0 and below 1. " in shown["sft.warmup_ratio"]["description"]
    assert (shown["iterations"]["minimum"], shown["iterations"]["maximum"]) == (0, 100)
    assert shown["finetune.lora.target_modules"]["anyOf"][0]["enum"] == ["all-linear"]


def test_no_box_is_filled_in_beforehand():
    """Catches a default in the form, which would go with every run and undo what the profile says."""
    for flow in (deployed.spin, deployed.iteration, deployed.dataset):
        schema = schema_of(flow)
        assert schema["properties"]["settings"]["default"] == {}
        assert not [box for box in boxes(schema["properties"]["settings"]).values() if "default" in box]
        assert not schema["required"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "finetune.beta",
            "0.2 (demo), 1.0 (demo-bland, demo-tasks), 0.1 (gsm8k-smollm2, tulu-70b, ",
        ),
        ("generate.top_p", "In the profiles: 1.0."),
        ("sft.lr", "In the profiles: 0.004 (demo), 0.003 (demo-bland), 0.002 (demo-tasks). Default: 2e-05."),
        ("finetune.lora.rank", "Default: 16."),
        ("dataset.limit", "0 (demo, demo-bland, demo-tasks, zephyr-7b-paper)"),
        ("evaluate.sampled", "In the profiles: true."),
    ],
)
def test_a_help_says_what_an_empty_box_means(path, text):
    """Catches a help that gives the model's default where the profile has another value, or leaves out a 0."""
    assert text in boxes(form())[path]["description"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dataset": {}, "finetune": {"lora": {}}},  # sections unfolded and left empty
        {"seed": 0, "finetune": {"beta": None, "loss": None}},  # boxes emptied again
        {"control": None, "finetune": {"lora": None}},  # sections left out
        {"evaluate": {"sampled": "false"}},
        {"evaluate": {"sampled": False}},  # from the API
        {"finetune": {"lora": {"target_modules": ["q_proj"]}}},
        {"finetune": {"lora": {"target_modules": "all-linear"}}},
        {"overrides": {"1": {"finetune": {"lr": 1e-4}}}},
        {"dataset": {"sets": [{"path": "a", "weight": 1, "limit": None, "turns": None}, {"path": "b", "weight": 2}]}},
    ],
)
def test_the_server_takes_what_the_form_sends(settings):
    """Catches a schema that refuses an emptied box, an unfolded section, a switch or a list."""
    assert complaint(settings) == ""


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"iterations": 101}, "settings.iterations"),
        ({"finetune": {"beta": 0}}, "settings.finetune.beta"),
        ({"finetune": {"loss": "hing"}}, "settings.finetune.loss"),
        ({"finetune": {"lora": {"rank": 0}}}, "settings.finetune.lora.rank"),
        ({"runtime": {"pools": {"score": 3}}}, "settings.runtime.pools.score"),
        ({"finetune": {"betta": 1}}, "'betta' was unexpected"),
        ({"finetune": None}, "settings.finetune"),  # only some sections can be left out
        ({"dataset": {"sets": [{"path": "a", "weight": 0}]}}, "settings.dataset.sets[0].weight"),
        ({"dataset": {"sets": [{"path": "a", "wieght": 1}]}}, "'wieght' was unexpected"),
        ({"finetun": {}}, "'finetun' was unexpected"),
    ],
)
def test_the_server_names_the_field_that_is_wrong(settings, field):
    """Catches a folded section that takes everything, and one that is refused as a unit."""
    assert field in complaint(settings)


def test_prefects_schema_is_one_and_needs_nothing():
    """Catches parameters that cannot be left out, so that Quick run would not run, and a schema that is none."""
    schema = schema_of(deployed.spin)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not validate({}, schema)
    assert schema["properties"]["profile"]["default"] == "demo"
    assert schema["properties"]["profile"]["enum"] == list(PROFILE_NAMES)


def test_given_keeps_0_and_false_and_drops_what_is_empty():
    """Catches a 0 or a false that is taken for an empty box, and an empty one that overwrites the profile."""
    settings = {
        "seed": 0, "name": "", "history": None, "model": {}, "generate": {"stop": [], "temperature": 0.0},
        "evaluate": {"sampled": False, "exact_match": ""}, "finetune": {"lora": {"rank": None}}, "sft": None,
    }  # fmt: skip
    kept = {"seed": 0, "generate": {"temperature": 0.0}, "evaluate": {"sampled": False}, "sft": None}
    assert given(settings) == kept


@pytest.mark.parametrize(
    ("settings", "sets"),
    [
        ({"seed": 0}, ["seed=0"]),
        ({"finetune": {"beta": 0.5, "loss": "hinge"}}, ["finetune.beta=0.5", "finetune.loss=hinge"]),
        ({"evaluate": {"sampled": "false"}}, ["evaluate.sampled=false"]),
        ({"runtime": {"approve": True}}, ["runtime.approve=true"]),
        ({"evaluate": {"exact_match": '""'}}, ["evaluate.exact_match=''"]),
        ({"control": None}, ["control=null"]),
        ({"generate": {"stop": ["###", "\n\n"]}}, ['generate.stop=["###", "\\n\\n"]']),
        ({"dataset": {"columns": {"prompt": "q"}, "limit": 0}}, ["dataset.columns={prompt: q}", "dataset.limit=0"]),
        ({"finetune": {"lora": {"rank": 4}}}, ["finetune.lora.rank=4"]),
        ({"runtime": {"pools": {"score": "here"}}}, ["runtime.pools.score=here"]),
        ({"overrides": {"1": {"finetune": {"lr": 1e-4}}}}, ["overrides.1.finetune.lr=1e-4"]),
        (
            {"dataset": {"path": '""', "sets": [{"path": "a", "split": "", "weight": 3}, {"path": "b", "weight": 2}]}},
            ["dataset.path=''", "dataset.sets=[{path: a, weight: 1}, {path: b, weight: 2}]", "dataset.sets.0.weight=3"],
        ),
        # zephyr-7b has another beta in iteration 3 itself, which must stay.
        ({"overrides": {"3": {"finetune": {"lr": 1e-4}}}}, ["overrides.3.finetune.lr=1e-4"]),
    ],
)  # fmt: skip
def test_a_form_makes_the_config_that_set_makes(settings, sets):
    """Catches a value that does not arrive, arrives as text, or at an iteration "3" in place of the profile's 3."""
    profile = "zephyr-7b" if "3" in settings.get("overrides", {}) else "demo-tasks"
    config, _ = deployed._config(profile, settings, "")
    assert config == load_profile(profile, sets)[0]
    assert config != load_profile(profile)[0]
    assert not validate({"settings": settings}, schema_of(deployed.spin))


def test_what_only_the_config_can_refuse_is_one_sentence():
    """Catches settings that fit their boxes and not each other, and end in a traceback or without the field's name."""
    settings = {"chat": {"max_prompt_length": 48}}
    assert complaint(settings) == ""
    with pytest.raises(BadInput, match=r"demo-tasks.yaml: .*chat.max_prompt_length.* must be below .*max_length"):
        deployed._config("demo-tasks", settings, "")
