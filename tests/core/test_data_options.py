"""What belongs to the data stands together: inspection depends on all of it, and the form shows it as one group."""

from qlora_space.core.data_options import DataOptions
from qlora_space.core.request import TrainingRequest


def test_options_about_the_data_are_those_of_the_group_and_come_first() -> None:
    fields = TrainingRequest.model_fields
    group = [n for n, field in fields.items() if field.json_schema_extra == {"group": "data"}]
    assert list(DataOptions.model_fields) == group == list(fields)[: len(group)]
