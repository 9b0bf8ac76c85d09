"""Language models of transformers: tokens of the prompt play, and the answer's mean logit is explained."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from metagame.contracts import WHOLE, Failure, Model, Sample, prepare_each
from metagame.digests import digest, file_digest
from metagame.errors import UserError, is_out_of_memory
from metagame.models.attended import AttendedModel, require_attention_weights
from metagame.models.pretrained import (
    check_evaluating,
    find_architecture,
    gguf_folder,
    load_model,
    load_tokenizer,
    model_revision,
    settle_device,
    settle_dtype,
)
from metagame.models.prompt_tokens import PromptTokens, absent_token_id, require_template, tokenize_prompt
from metagame.models.token_batches import TokenBatches

CLASSES: dict[str, type[PreTrainedModel]] = {
    "gemma3_text": Gemma3ForCausalLM,
    "gemma3": Gemma3ForConditionalGeneration,
    "gpt2": GPT2LMHeadModel,
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
}
"""Model class of each architecture that the adapter is for: a decoder, and a head that is a matrix."""

COALITIONS, SLOW = 256, 64
"""The most coalitions whose embeddings are kept at once; as many as a pass takes where that is fewer than SLOW, since
such a pass may take seconds and progress is told, and values are kept, after each."""


@runtime_checkable
class Prompt(Sample, Protocol):
    """A sample with a text to be answered."""

    text: str
    if TYPE_CHECKING:  # read-only, as :attr:`metagame.contracts.Sample.id`

        @property
        def text(self) -> str:
            return ""

    def description(self) -> str | None:
        return self.text

    def contrast(self) -> tuple[str, str] | None:
        """How the text goes on and how it does not, with their spaces; None: the model's own answer is explained."""
        return None


@dataclass(frozen=True)
class AnsweredPrompt(AttendedModel):
    """A prompt and its answer: f_S is the mean logit of the answer's tokens, given those of the prompt in S.

    Attributes:
        answer: the generated text.
        directions: what the last hidden state of each of the answer's places is multiplied with; f is their mean, and
            the bias of the head.
    """

    answer: str = ""
    directions: Float[Tensor, "a width"] | None = None


class LanguageModel(Model[Prompt, AnsweredPrompt]):
    """A causal language model, explained through its input embeddings.

    The answer is generated greedily from the whole prompt. f_S is the mean of the logits of its tokens, which are
    teacher-forced after the prompt whose tokens outside S are replaced by the absent token. Since the answer is fixed
    and attention is causal, one forward pass gives all generation steps, and one backward pass of their mean gives the
    mean of their attributions (App. C.2). Only the logits of the answer's tokens are computed, in float32. Tokens
    before the first player, such as the system turn of the template, pass through the model only once.

    For Gemma 3 checkpoints with a vision tower, only the text part is kept, since LXT has rules only for it.

    Args:
        net: the model, in evaluation mode.
        tokenizer: a tokenizer of transformers.
        revision: identifies the weights.
        chat: whether prompts are put into the tokenizer's chat template.
        template_settings: what the template is given in addition to the prompt.
        max_new_tokens: the maximum number of tokens of an answer.
        end_token: whether the token that ends an answer is a generation step, whose logit counts in the mean, as in
            the paper's code (the text does not say). An answer that ends immediately then has one step.
        tokens_per_batch: number of tokens in a forward and backward pass; it is reduced when memory runs out.
        absent_token: the token that replaces an absent one. If None, the tokenizer's mask, unk or pad token.
        whole_characters: whether tokens that form a character only together are one player.

    Raises:
        UserError: the tokenizer has no token for absent ones, or the head is more than a matrix.
    """

    sample_type = Prompt
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"device", "tokens_per_batch"})

    def __init__(
        self,
        net: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        revision: str,
        *,
        chat: bool,
        template_settings: Mapping[str, Any] | None = None,
        max_new_tokens: int = 100,
        end_token: bool = True,
        tokens_per_batch: int = 8192,
        absent_token: str | None = None,
        whole_characters: bool = True,
    ) -> None:
        _check_settings(tokenizer, chat, template_settings, max_new_tokens, end_token, tokens_per_batch, absent_token)
        self.net = text_part(net).eval().requires_grad_(False)
        # configs of other architectures than Gemma do not declare it
        if getattr(self.net.config, "final_logit_softcapping", None) is not None:
            raise UserError(
                "this model caps its logits (final_logit_softcapping), which no attribution method supports:"
                " choose a model whose config does not set it, for example Gemma 3."
            )
        self.tokenizer = tokenizer
        self.revision = revision
        self.device = str(self.net.device)
        self.chat = chat
        self.template_settings = template_settings
        self.max_new_tokens = max_new_tokens
        self.end_token = end_token
        self.batches = TokenBatches(tokens_per_batch)
        self.answers: Path | None = None
        self.absent_id = absent_token_id(tokenizer, absent_token)
        self.whole_characters = whole_characters

    @classmethod
    def load(
        cls,
        checkpoint: str,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        attention: str | None = None,
        gguf: str | None = None,
        *,
        chat: bool,
        template_settings: Mapping[str, Any] | None = None,
        max_new_tokens: int = 100,
        end_token: bool = True,
        tokens_per_batch: int = 8192,
        absent_token: str | None = None,
        whole_characters: bool = True,
    ) -> Self:
        """Load a model from a folder, or by its id on the Hugging Face Hub.

        Args:
            checkpoint: the folder or id.
            revision: commit, tag or branch on the hub.
            device: ``cpu``, ``cuda``, ...; if None, the GPU if there is one.
            dtype: type of weights and activations, such as ``bfloat16``; attributions are summed in float32.
            attention: the attention implementation that transformers uses; if None, its own choice.
            gguf: name of a GGUF file of the checkpoint, from which config, tokenizer and weights are then read, the
                weights dequantised. If None, the checkpoint's own files are read.
            chat: as for the class.
            template_settings: as for the class.
            max_new_tokens: as for the class.
            end_token: as for the class.
            tokens_per_batch: as for the class.
            absent_token: as for the class.
            whole_characters: as for the class.

        Raises:
            UserError: the checkpoint cannot be loaded or has another architecture, or the class raises it.
        """
        commit = None
        if gguf is not None:
            folder = gguf_folder(checkpoint, revision, gguf)
            commit = None if Path(checkpoint).is_dir() else folder.name
            checkpoint = str(folder)
        # the weights take minutes: whatever else is off is told before them
        architecture = find_architecture(CLASSES, checkpoint, revision, gguf)
        tokenizer = load_tokenizer(checkpoint, revision, architecture=architecture, gguf=gguf)
        _check_settings(tokenizer, chat, template_settings, max_new_tokens, end_token, tokens_per_batch, absent_token)
        device = settle_device(device)
        settled = settle_dtype(dtype, device)
        net = load_model(CLASSES, checkpoint, revision, device, attention, settled, gguf)
        found = commit or model_revision(net, checkpoint)
        return cls(
            net,
            tokenizer,
            found if settled == dtype else f"{found} in {settled}",
            chat=chat,
            template_settings=template_settings,
            max_new_tokens=max_new_tokens,
            end_token=end_token,
            tokens_per_batch=tokens_per_batch,
            absent_token=absent_token,
            whole_characters=whole_characters,
        )

    def keep_in(self, folder: Path) -> None:
        self.answers = folder / "answers"

    def prepare(self, samples: Sequence[Prompt]) -> list[Mapping[str, AnsweredPrompt] | Failure]:
        return prepare_each(self.bind, samples)

    def bind(self, sample: Prompt) -> dict[str, AnsweredPrompt]:
        """The prompt with the model's answer to it.

        Raises:
            UserError: the prompt has fewer than two players or is too long, or the answer is empty. Also
                if a sample contrasts two continuations, and the model has a chat template or one is not a single token.
        """
        check_evaluating(self.net)
        prompt = self.tokenize(sample.text)
        if (contrast := sample.contrast()) is not None:
            target, foil = (self.next_token(sample.text, prompt, each) for each in contrast)
            return {WHOLE: self.bind_answer(prompt, (target,), foil)}
        answer = self.answer(prompt)
        if not answer:
            raise UserError(
                f"the model's answer to {sample.text!r} is empty, so there is nothing to explain: change the"
                " prompt, check model.chat, or set model.end_token=true."
            )
        return {WHOLE: self.bind_answer(prompt, answer)}

    def tokenize(self, text: str) -> PromptTokens:
        """The tokens of a prompt, and which of them are players."""
        return tokenize_prompt(
            self.tokenizer, text, self.chat, self.template_settings, whole_characters=self.whole_characters
        )

    def next_token(self, text: str, prompt: PromptTokens, word: str) -> int:
        """The token of ``word`` after the text."""
        if self.chat:
            raise UserError("a chat template does not fit a text that the model is to continue: set model.chat=false.")
        ids = tuple(self.tokenizer(text + word, verbose=False)["input_ids"])
        if ids[:-1] != prompt.ids:
            raise UserError(f"{word!r} is not one token after {text!r}: choose another word, or another model.")
        return ids[-1]

    def answer(self, prompt: PromptTokens) -> tuple[int, ...]:
        """The result of :meth:`generate`, computed once for all jobs with the same model, prompt and settings."""
        if self.answers is None:
            return self.generate(prompt)
        asked = [self.revision, str(self.net.dtype), self.device, self.net.config._attn_implementation, prompt.ids]
        asked += [prompt.turn_end, self.absent_id, self.max_new_tokens, self.end_token, file_digest(Path(__file__))]
        path = self.answers / f"{digest(asked)}.json"
        if not path.exists():
            answer = self.generate(prompt)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            temporary.write_text(json.dumps(answer), encoding="utf-8")
            temporary.replace(path)
        return tuple(json.loads(path.read_text(encoding="utf-8")))

    @torch.no_grad()
    def generate(self, prompt: PromptTokens) -> tuple[int, ...]:
        """The tokens of the greedy answer; its end token is included only if it is a generation step."""
        context = self.net.config.max_position_embeddings
        if len(prompt.ids) + self.max_new_tokens > context:
            raise UserError(
                f"the prompt's {len(prompt.ids)} tokens and an answer of {self.max_new_tokens} exceed the model's"
                f" context of {context}: shorten the prompt or lower model.max_new_tokens."
            )
        recommended = self.net.generation_config
        ends = _end_ids(recommended.eos_token_id, self.tokenizer.eos_token_id, prompt.turn_end)
        ids = torch.tensor([prompt.ids], device=self.device)
        # greedy, whatever sampling the checkpoint recommends
        self.net.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=self.absent_id,
        )
        try:
            found = self.net.generate(ids, attention_mask=torch.ones_like(ids))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"an answer of {self.max_new_tokens} tokens does not fit the device's memory: lower"
                " model.max_new_tokens, or choose a smaller model."
            ) from error
        finally:
            self.net.generation_config = recommended
        answer = found[0, len(prompt.ids) :].tolist()
        return tuple(answer[:-1] if answer[-1] in ends and not self.end_token else answer)

    def bind_answer(self, prompt: PromptTokens, answer: tuple[int, ...], foil: int | None = None) -> AnsweredPrompt:
        """The prompt as a masked model over the input embeddings of its players, in float32 or better.

        The embeddings are ``(n, d)``, or ``(n, m d)`` if a player has up to m tokens: their embeddings are concatenated
        and followed by zeros. With a ``foil``, the logit of that token at the answer's position is subtracted from f.
        """
        precise = torch.promote_types(self.net.dtype, torch.float32)
        first = prompt.positions[0]
        ids = torch.tensor([*prompt.ids[first:], *answer[:-1]], device=self.device)
        positions = torch.tensor(prompt.positions, device=self.device) - first
        embed = self.net.get_input_embeddings()
        sequence = embed(ids)
        absent = embed(torch.tensor(self.absent_id, device=self.device))
        head, decoder = self.net.get_output_embeddings(), decoder_of(self.net)
        prefix = self._keys_and_values(prompt.ids[:first])
        directions = head.weight[list(answer)].to(precise)
        offset = 0.0 if head.bias is None else head.bias[list(answer)].to(precise).mean()
        if foil is not None:
            directions = directions - head.weight[foil].to(precise)
            offset = offset if head.bias is None else offset - head.bias[foil].to(precise)

        players = torch.tensor(prompt.players, device=self.device)
        before = [prompt.players[:at].count(player) for at, player in enumerate(prompt.players)]
        slots = torch.tensor(before, device=self.device)

        def decode(inputs: Float[Tensor, "k n w"], **asked: bool) -> Any:
            tokens = inputs.unflatten(-1, (-1, sequence.shape[-1]))[:, players, slots].to(sequence.dtype)
            rows = sequence.expand(len(inputs), -1, -1).index_copy(1, positions, tokens)
            cache = deepcopy(prefix)  # a pass adds to it
            cache.batch_repeat_interleave(len(rows))
            return decoder(inputs_embeds=rows, past_key_values=cache, **asked)

        def mean_logit_of(decoded: Any) -> Float[Tensor, " k"]:
            hidden = decoded.last_hidden_state[:, -len(answer) :]
            return (hidden.to(precise) * directions).sum(-1).mean(1) + offset

        def mean_logit(inputs: Float[Tensor, "k n w"]) -> Float[Tensor, " k"]:
            return mean_logit_of(decode(inputs))

        def attend(inputs: Float[Tensor, "k n w"]) -> tuple[Float[Tensor, " k"], tuple[Tensor, ...]]:
            require_attention_weights(self.net)
            decoded = decode(inputs, output_attentions=True)
            return mean_logit_of(decoded), decoded.attentions

        def of_players(tokens: Float[Tensor, "t d"]) -> Float[Tensor, "n w"]:
            shape = (len(prompt.labels), max(before) + 1, tokens.shape[-1])
            rows = torch.zeros(shape, dtype=precise, device=self.device)
            return rows.index_put((players, slots), tokens.to(precise)).flatten(1)

        rows, n_positions = max(1, self.batches.budget // len(ids)), first + len(ids)
        return AnsweredPrompt(
            mean_logit,
            of_players(sequence[positions]),
            of_players(absent.expand(len(positions), -1)),
            self.net,
            in_batches=partial(self.batches.map, length=len(ids)),
            batch_size=rows if rows < SLOW else COALITIONS,
            names=prompt.labels,
            attend=attend,
            places=prompt.positions,
            owners=prompt.players,
            readers=tuple(range(n_positions - len(answer), n_positions)),
            answer=self.tokenizer.decode(list(answer), skip_special_tokens=True).strip(),
            directions=directions,
        )

    @torch.no_grad()
    def _keys_and_values(self, ids: tuple[int, ...]) -> DynamicCache:
        """What each layer's attention sees of the tokens before the first player, which no coalition changes."""
        cache = DynamicCache()
        if ids:
            decoder_of(self.net)(torch.tensor([ids], device=self.device), past_key_values=cache)
        return cache


def _check_settings(
    tokenizer: PreTrainedTokenizerBase,
    chat: bool,
    template_settings: Mapping[str, Any] | None,
    max_new_tokens: int,
    end_token: bool,
    tokens_per_batch: int,
    absent_token: str | None,
) -> None:
    """Raise UserError where a setting is off, or does not fit the tokenizer."""
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UserError(f"model.max_new_tokens={max_new_tokens!r} must be a positive integer.")
    for name, value in (("chat", chat), ("end_token", end_token)):
        if not isinstance(value, bool):
            raise UserError(f"model.{name}={value!r} must be true or false.")
    if template_settings is not None and not isinstance(template_settings, Mapping):
        raise UserError(f"model.template_settings={template_settings!r} must be a mapping, for example {{key: value}}.")
    TokenBatches(tokens_per_batch)
    absent_token_id(tokenizer, absent_token)
    if chat:
        require_template(tokenizer)


def _end_ids(*declared: int | list[int] | None) -> set[int]:
    """All ids among what is one, several or none."""
    several = [each if isinstance(each, list) else [each] for each in declared]
    return {token for each in several for token in each if token is not None}


def text_part(net: PreTrainedModel) -> PreTrainedModel:
    """The language model of a checkpoint that has a vision tower too; others as they are."""
    if not isinstance(net, Gemma3ForConditionalGeneration):
        return net
    with torch.device("meta"):
        text = Gemma3ForCausalLM(net.config.text_config)
    text.model, text.lm_head = net.model.language_model, net.lm_head
    text.generation_config = net.generation_config
    return text


def decoder_of(net: PreTrainedModel) -> nn.Module:
    """The model without its head, which transformers does not give of GPT-2."""
    return net.transformer if isinstance(net, GPT2LMHeadModel) else net.get_decoder()
