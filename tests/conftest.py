"""Fixtures of many tests: the real models, pulled on first use, and a tiny one made here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from llmos.memory.model_store import ModelStore


@pytest.fixture(scope="session", autouse=True)
def null_files_of_llama_cpp() -> Iterator[None]:
    """llama_cpp opens two files when it is imported and never closes them, which would be printed
    as two warnings after the last test.
    """
    yield
    utilities = sys.modules.get("llama_cpp._utils")
    if utilities is not None:
        utilities.outnull_file.close()
        utilities.errnull_file.close()


# No time limits on property tests: a busy machine is no fault of the code.
hypothesis.settings.register_profile(
    "llmos", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("llmos")


@pytest.fixture(scope="session", autouse=True)
def never_tuned() -> Iterator[None]:
    """Models open as shipped, whatever `llmos tune` found on this machine: what tests expect must
    not depend on it. A test in another process says `weights="shipped"`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmos.weights.recall", lambda folder, source: None)
        yield


@pytest.fixture(scope="session")
def model_store() -> ModelStore:
    """The user's own model store."""
    return ModelStore()


@pytest.fixture(scope="session")
def smollm2_path(model_store: ModelStore) -> Path:
    """The GGUF file of the default language model."""
    model_store.pull("smollm2")
    return model_store.path("smollm2")


@pytest.fixture(scope="session")
def minilm_path(model_store: ModelStore) -> Path:
    """The folder of the default embedding model."""
    model_store.pull("minilm")
    return model_store.path("minilm")


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: a Llama of 44 thousand random weights, one token a byte, ChatML."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(wrapped),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=wrapped.bos_token_id,
            eos_token_id=wrapped.eos_token_id,
        )
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    wrapped.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of random weights that knows three words, 16 wide, 32 positions."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "alpha", "beta", "gamma"]
    plain = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("bert")
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    ).save_pretrained(folder)
    return folder
