"""What a child of the inspector answers: facts of a base, an inspection, what an adapter names."""

from collections.abc import Iterator

from pydantic import BaseModel

from qlora_space.core.request import TrainingRequest
from qlora_space.places.replies import Answer, Message, imports


def inspector() -> Answer:
    """{"request", "token", "allow_local", "device"} -> ModelFacts, Inspection. Without "device" only the facts."""
    with imports():
        from transformers import PreTrainedTokenizerFast  # noqa: F401  imported before the first child needs it
        from transformers.utils.chat_template_utils import render_jinja_template  # noqa: F401

        from qlora_space.data import inspect_dataset
        from qlora_space.hub import fetch_tokenizer, model_facts

    def answer(message: Message) -> Iterator[BaseModel]:
        request = TrainingRequest.model_validate(message["request"])
        token = message["token"]
        base = model_facts(request.base, request.base_revision, token)
        yield base
        if "device" in message:
            folder = fetch_tokenizer(base, token)
            yield inspect_dataset(
                request,
                base,
                folder,
                token,
                allow_local=message["allow_local"],
                device=message["device"],
            )

    return answer
