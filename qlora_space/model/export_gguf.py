"""The Modelfile beside a GGUF: from the tokenizer and the data of a run."""

from pathlib import Path

from qlora_space.core.errors import ModelError
from qlora_space.core.options import Format
from qlora_space.data import load_tokenizer
from qlora_space.data.messages import Message
from qlora_space.data.template.renderer import Renderer
from qlora_space.data.template.tokenizer import adds_bos
from qlora_space.model.ollama import Turns, modelfile, wrapping_of
from qlora_space.runs import RunFolder


def write_modelfile(
    run: RunFolder, base_folder: Path, file: Path, source: str, adapter: str = ""
) -> None:
    """With the chat template as training rendered it, and the ends of its answers. Text has no template."""
    tokenizer = load_tokenizer(base_folder)
    format = Format(run.plan().dataset.format)
    wrapping = None
    if format is not Format.TEXT:
        renderer = Renderer(tokenizer, format)

        def render(turns: Turns) -> str:
            messages = [Message(role, content) for role, content in turns]  # type: ignore[arg-type]
            try:
                ids = renderer.prompt_ids(messages)
            except ModelError as error:  # a template without a system turn, for example
                raise ValueError(error.what) from None
            return str(tokenizer.decode(ids))

        wrapping = wrapping_of(render, tokenizer.bos_token if adds_bos(tokenizer) else "")
    stops = [str(tokenizer.decode([each])) for each in run.stop_token_ids()]
    file.write_text(modelfile(source, wrapping, stops, adapter), encoding="utf-8")
