import pytest

from qlora_space.core.errors import RequestError
from qlora_space.core.options import Format
from qlora_space.core.request import (
    DataOptions,
    TrainingRequest,
    parse_request,
    seen_by_inspection,
)


def test_an_empty_form_is_the_demo() -> None:
    request = parse_request({})
    assert (request.dataset, request.base, request.bits) == ("demo", "demo", 4)


def test_text_from_a_form_or_command_line_is_understood() -> None:
    request = parse_request(
        {
            "bits": "8",
            "learning_rate": "1e-4",
            "packing": "false",
            "format": "alpaca",
            "columns": "prompt=q, completion=a",
        }
    )
    assert request.bits == 8
    assert request.learning_rate == 1e-4
    assert request.packing is False
    assert request.format is Format.ALPACA
    assert request.columns == {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize("nothing", [None, ""])
def test_none_and_an_empty_text_mean_choose_for_me(nothing: object) -> None:
    assert parse_request({"r": nothing}) == TrainingRequest()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"r": "x"}, ["r is 'x'", "integer"]),
        ({"r": 0}, ["r is '0'", "greater than or equal to 1"]),
        ({"bits": 5}, ["bits is '5'", "16, 8, 4, 3 or 2"]),
        ({"columns": "x"}, ["columns is 'x'", "field=column"]),
        ({"no_such_option": 1}, ["no_such_option"]),
        ({"eval_fraction": 0.9}, ["eval_fraction", "0.5"]),
    ],
)
def test_a_bad_value_is_named_with_its_limit(values: dict, words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("older", "calibrated"),
    [(True, True), ("true", True), (False, None), ("false", None), (None, None)],
)
def test_an_older_request_for_gptq_is_one_for_calibration(
    older: object, calibrated: object
) -> None:
    """It was off unless somebody asked, so an off is nobody's wish."""
    assert parse_request({"bits": 2, "gptq": older}).calibrated is calibrated
    assert TrainingRequest.model_validate({"gptq": older, "calibrated": False}).calibrated is False


def test_every_field_is_documented_and_grouped() -> None:
    for name, field in TrainingRequest.model_fields.items():
        assert field.description, name
        assert len(field.description) > 20, name
        assert field.description.rstrip().endswith("."), name
        assert isinstance(field.json_schema_extra, dict), name
        assert "group" in field.json_schema_extra, name


def test_the_request_cannot_hold_a_token() -> None:
    assert not [
        name
        for name in TrainingRequest.model_fields
        if "token" in name.removesuffix("_tokens") or "secret" in name
    ]


def test_inspection_is_done_again_for_other_data_or_another_base_but_not_for_other_bits() -> None:
    groups = {n: f.json_schema_extra for n, f in TrainingRequest.model_fields.items()}
    wanted = {n for n, group in groups.items() if group in ({"group": "data"}, {"group": "base"})}
    assert set(seen_by_inspection(TrainingRequest())) == wanted - {"bits"} | {
        "num_train_epochs",
        "seed",
    }


def test_data_options_are_the_fields_of_the_group_data_and_come_first() -> None:
    """Inspection depends on all of them, and the form shows them as one group."""
    fields = TrainingRequest.model_fields
    group = [n for n, field in fields.items() if field.json_schema_extra == {"group": "data"}]
    assert list(DataOptions.model_fields) == group == list(fields)[: len(group)]
