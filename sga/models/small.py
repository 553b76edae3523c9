"""A small Llama with random weights and its own tokenizer, for runs without a download."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sga.errors import UserError, check_numbers
from sga.models.pretrained import LanguageModel


class SmallLlama(LanguageModel):
    """A Llama with random weights and a byte-level BPE tokenizer trained on the data: for runs with no download."""

    trains_tokenizer = True

    def __init__(
        self,
        hidden_size: int = 128,
        layers: int = 4,
        heads: int = 4,
        vocabulary: int = 4096,
        context: int = 512,
    ) -> None:
        """Checks and stores the sizes.

        Args:
            hidden_size: Width of the residual stream; a multiple of `heads`.
            layers: Number of transformer blocks.
            heads: Number of attention heads.
            vocabulary: Largest number of tokens that the tokenizer learns, its three special tokens included.
            context: Largest number of tokens of a sequence.
        """
        sizes = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "vocabulary": vocabulary}
        check_numbers(1, **sizes, context=context)
        if hidden_size % heads:
            raise UserError(f"hidden_size must be a multiple of heads, got {hidden_size} and {heads}")
        self.hidden_size, self.layers, self.heads = hidden_size, layers, heads
        self.vocabulary, self._context = vocabulary, context

    def context(self) -> int:
        return self._context

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        return train_tokenizer(texts, self.vocabulary, self._context)

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=int(8 * self.hidden_size / 3 / 16 + 0.5) * 16,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self._context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        network = LlamaForCausalLM(config)
        network.generation_config = GenerationConfig.from_model_config(config)
        return network


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer that begins sequences with ``<s>``; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    def as_list() -> Iterator[str]:
        yield from texts

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(as_list(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
