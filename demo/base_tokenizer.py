"""The base model's tokenizer: byte-level BPE trained on the demo's text, with a chat template."""

from collections.abc import Iterator
from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.text import END_OF_TEXT, documents

VOCABULARY = 2048
CONTEXT = 2048
SPECIAL_TOKENS = [END_OF_TEXT, "<|im_start|>", "<|im_end|>", "<|pad|>"]
END_OF_TURN, PADDING = SPECIAL_TOKENS[2], SPECIAL_TOKENS[3]
TOKENIZER_SEED = 800_001

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def sample_texts(count: int) -> Iterator[str]:
    """Text without the special tokens, which BPE would otherwise learn merges for."""
    for _, text in islice(documents(TOKENIZER_SEED), count):
        for token in SPECIAL_TOKENS:
            text = text.replace(token, "\n")
        yield text


def train_tokenizer(count: int = 40_000) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # Single digits keep sums learnable for a small model.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts(count), trainer)
    return tokenizer


def with_dropout(tokenizer: Tokenizer, share: float) -> Tokenizer:
    """A copy with BPE dropout: merges are skipped at random, so that rare tokens are trained too."""
    dropping = Tokenizer.from_str(tokenizer.to_str())
    dropping.model.dropout = share
    return dropping


def with_template(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
