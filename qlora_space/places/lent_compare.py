"""A comparison on a GPU that ZeroGPU lends: what it needs is fetched first, the rest is a call of its own process."""

import json
from collections.abc import Iterator

from pydantic import BaseModel

from qlora_space.core.comparison import CompareRequest, Loading, reply_adapter
from qlora_space.core.errors import BackendError, error_named
from qlora_space.hub import fetch_base
from qlora_space.places import gpu_functions, platform
from qlora_space.places.refusals import refusal_of
from qlora_space.places.replies import Message
from qlora_space.plan.slices import compare_seconds


def compare_on_lent_gpu(message: Message) -> Iterator[BaseModel]:
    """{"request", "token", "gpu_token"} -> Replies. Raises QloraSpaceError."""
    request = CompareRequest.model_validate(message["request"])
    fetch_base(request.base, message["token"])
    seconds = compare_seconds(
        request.base.parameters, len(request.questions), request.sampling.max_new_tokens
    )
    platform.paid_by(message.get("gpu_token") or "")
    yield Loading(text=f"Waiting for a GPU of ZeroGPU, for at most {seconds} s")
    try:
        for line in gpu_functions.compare(seconds, {"request": message["request"]}):
            reply = json.loads(line)
            if "refused" in reply:
                raise error_named(*reply["refused"])
            if "crashed" in reply or "ended" in reply:
                why = reply.get("crashed") or reply["ended"]
                raise BackendError(f"The comparison failed on the GPU: {why}.", "Try again.")
            if "end" not in reply:
                yield reply_adapter.validate_python(reply)
    except BackendError:
        raise
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        hint = refusal.hint or "Ask for shorter answers, or fewer at once."
        raise BackendError(refusal.what, hint) from None
