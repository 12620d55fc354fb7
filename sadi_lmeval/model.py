"""The harness's Hugging Face model, steered: ``hf-NAME`` for every installed method."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, ClassVar, NoReturn
from uuid import uuid4

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from sadi_lmeval.architecture.compiled import running_as_written
from sadi_lmeval.architecture.sites import check_sites, size_in
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.joined import joined
from sadi_lmeval.errors import UserError, show_user_errors_as_one_line
from sadi_lmeval.generating import GeneratingModel
from sadi_lmeval.harness.baseline import baseline_of
from sadi_lmeval.harness.degenerate import is_degenerate
from sadi_lmeval.harness.response_cache import ResponseCache
from sadi_lmeval.harness.results_name import name_results_by_the_model
from sadi_lmeval.harness.run_task import LengthLimit
from sadi_lmeval.harness.run_tasks import (
    RunRank,
    RunTasks,
    load_task,
    note_tasks,
    with_all_metrics,
)
from sadi_lmeval.harness.tokens import TokensOfMany
from sadi_lmeval.identity.model import model_card, model_identity, tokenizer_digest
from sadi_lmeval.methods.arm import Arm, own_arguments, read_arm, read_arms
from sadi_lmeval.methods.registry import method_class, method_names
from sadi_lmeval.options import REFERENCE_LENGTH, refuse_unknown
from sadi_lmeval.pairs.plan import user_folders
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import UNSTEERED, Continuation
from sadi_lmeval.passes.scoring import Score, truncated
from sadi_lmeval.processes import ALONE, Processes, Together, leave_at_exit
from sadi_lmeval.steering.fitting import refuse_unsuited
from sadi_lmeval.steering.steering import TaskSteering, prepare
from sadi_lmeval.steering.unsteered import with_unsteered
from sadi_lmeval.storage.yaml_files import files_looked_at_once
from sadi_lmeval.versions import versions

logger = logging.getLogger("lm_eval.sadi")

_ENCODED_AT_ONCE = 1000
"""Requests."""


class SteeredModel(GeneratingModel):
    """A causal language model, steered from the last prompt token of every request.

    Takes every argument of the harness's ``hf`` beside its own: those that all methods share
    (:class:`sadi_lmeval.options.Options`), the method's, and its axes. Where ``hf`` calls its delta
    weights ``delta``, they are ``delta_weights`` here.

    Attributes:
        METHOD: the method's name; None: of a model that several arms steer.
        arms: the ways of steering by name; the only one, unless several take turns.
        arm: the one that answers.
        options: what all of them share.
        baseline: whether every request is answered unsteered too, for the harness's results.
    """

    METHOD: ClassVar[str | None] = None
    baseline: bool = False

    def __init__(self, pretrained: str | transformers.PreTrainedModel, **arguments: Any) -> None:
        show_user_errors_as_one_line()
        names = own_arguments(self.METHOD)
        ours = {name: arguments.pop(name) for name in list(arguments) if name in names}
        delta_weights = arguments.pop("delta_weights", None)
        self.arms = self._read_arms(ours)
        self.arm = next(iter(self.arms.values()))
        self.options = self.arm.options
        if not isinstance(pretrained, str):
            refuse_unknown(arguments, HFLM.__init__, None, names)
        self._arguments = arguments
        _refuse_tensor_parallel(arguments)
        note_tasks()
        name_results_by_the_model()
        self._run = RunTasks(self.length_limit)
        self._tasks: dict[str, TaskSteering] = {}
        self._edits: Edits | None = None
        self._first_edit: dict[str, int] = {}
        self._not_finite: dict[str, int] = {}
        self._degenerate: dict[str, int] = {}
        self._card: dict[str, Any] | None = None
        self._unreadable = uuid4().hex
        self._tokens = TokensOfMany(self)
        super().__init__(pretrained, delta=delta_weights, **arguments)
        self.processes = self._join_processes()
        self.cache_hook: ResponseCache = ResponseCache(None)
        self._in_call = False
        if isinstance(pretrained, str) and self.METHOD is not None and not self.arm.is_unsteered:
            self._warn_outside_of_a_run()

    def _read_arms(self, given: dict[str, Any]) -> dict[str, Arm]:
        """Read our arguments, before anything is loaded."""
        if self.METHOD is None:
            raise UserError(f"name a method: {', '.join(f'hf-{name}' for name in method_names())}")
        arm = read_arm(self.METHOD, given)
        self.baseline = bool(given.get("baseline"))
        return {self.METHOD: arm}

    @property
    def rank(self) -> int:
        """Of this process; the harness tells it to the tasks of the run, see ``run_tasks``."""
        return RunRank(self._rank, self._run)

    # ------------------------------------------------------------------ loading

    def _join_processes(self) -> Processes:
        """Join the processes of the run, where there are several.

        The harness divides documents only over several GPUs, by the index within a node; here they
        are divided over whatever processes there are, on all nodes.
        """
        accelerator = getattr(self, "accelerator", None)
        if accelerator is None or accelerator.num_processes == 1:
            return ALONE
        leave_at_exit()
        self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        if self._rank:
            logger.setLevel(logging.ERROR)  # the first process says it for all
        return Processes(self._rank, self._world_size, accelerator.device)

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        """Gather the harness's results of every process.

        One that has scored no document of a task has none of its metrics either, which the harness
        does not expect.
        """
        results = super().gather_object(obj, dst)
        return results and [with_all_metrics(each) for each in results]

    def _get_backend(self, config: Any, **keywords: Any) -> None:
        """Refuse what is not a causal language model, and misspelt arguments, before loading."""
        super()._get_backend(config=config, **keywords)
        kind = getattr(config, "model_type", None)
        named = " ".join(getattr(config, "architectures", None) or [])
        encodes = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind == "bert-generation"
        bidirectional = encodes and not getattr(
            config, "is_decoder", "CausalLM" in named or "LMHead" in named
        )
        given = getattr(self, "_model", None)  # one that the user has loaded
        foreign = (
            not _predicts_tokens(given)
            if given is not None
            else type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map")
        )
        if self.backend != "causal" or bidirectional or foreign or not _has_one_text(config):
            raise UserError(
                f"model type {kind!r} ({named or 'architecture not named'}) is not a causal "
                "language model; only decoder-only models are steered"
            )
        refuse_unknown(self._arguments, HFLM.__init__, config, own_arguments(self.METHOD))
        for arm in self.arms.values():
            element = None if arm.method is None else arm.method.place[0]
            size = None if element is None else size_in(config, element)
            if element is not None and size is not None:
                arm.axes.check(arm.largest(), size, element)
        if given is None and not hasattr(config, "auto_map"):
            self._check_sites(config)

    def _check_sites(self, config: transformers.PretrainedConfig) -> None:
        """Refuse a model that some arm cannot steer, by its modules alone.

        Raises:
            UserError: it has no such element, or it is not known where.
        """
        places = {arm.method.place for arm in self.arms.values() if arm.method is not None}
        if not places:
            return
        try:
            with torch.device("meta"):
                model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
        except Exception:  # whatever it is, loading says it
            return
        for place in places:
            check_sites(model, *place)

    @property
    def model_card(self) -> dict[str, Any]:
        """What the model is now; read at each call, as weights change in training loops."""
        if self._card is None:
            name = self.model.config.name_or_path or str(getattr(self, "pretrained", ""))
            self._card = {
                **model_card(self.model, name, self._arguments),
                "mixed_precision": str(self.mixed_precision_dtype),
            }
        return self._card

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Answer a call of the harness; what the model was at the last one is forgotten."""
        self._card, self._unreadable = None, uuid4().hex
        self.__dict__.pop("_answers_by", None)
        self._in_call = True
        try:
            with running_as_written(self.model):
                yield
        finally:
            self._in_call = False
            self._run.end()

    def _warn_outside_of_a_run(self) -> None:
        """Have the model that was loaded say that by itself it generates unsteered."""
        generate = self.model.generate

        @functools.wraps(generate)
        def unsteered(*arguments: Any, **keywords: Any) -> Any:
            if not self._in_call:
                logger.warning(
                    "model.generate of an hf-%s is not steered: only requests of the harness are",
                    self.METHOD,
                )
                self.model.__dict__.pop("generate", None)  # once is enough
            return generate(*arguments, **keywords)

        self.model.generate = unsteered

    @cached_property
    def _answers_by(self) -> str:
        """What answers depend on beside the request and its edit, as a digest."""
        generation = getattr(self.model, "generation_config", None)
        content = {
            **model_identity(self.model_card),
            "weights_digest": self.model_card["weights_digest"] or self._unreadable,
            "tokenizer": tokenizer_digest(self.tokenizer),
            "generation": None if generation is None else generation.to_dict(),
            "lengths": [self.max_length, self.add_bos_token, self.prefix_token_id],
            "types": [str(self.softmax_dtype), str(self.mixed_precision_dtype)],
            "versions": versions(),
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def engine(self) -> Engine:
        """Answers requests; made when first needed, as the harness sets batch sizes late."""
        return Engine(
            self.model,
            pad=self.tokenizer.pad_token_id or 0,
            rows=None if self.batch_size == "auto" else int(self.batch_size),
            max_length=self.max_length,
            autocast=self.mixed_precision_dtype,
            softmax_dtype=self.softmax_dtype,
            processes=self.processes,
        )

    @property
    def length_limit(self) -> LengthLimit | None:
        """How long a document may be that takes part in anything; the same for every method."""
        if self.options.protocol != "reference":
            return None
        return LengthLimit(REFERENCE_LENGTH, lambda text: len(self.tok_encode(text)))

    # ------------------------------------------------------------------ fits

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, *others: Any, **keywords: Any
    ) -> list[int]:
        """Encode a text as ``hf`` does; many that are known beforehand are encoded at once."""
        if not others and not keywords and self._tokens.known:
            known = self._tokens.of(string, add_special_tokens)
            if known is not None:
                return known
        found: list[int] = super().tok_encode(string, add_special_tokens, *others, **keywords)
        return found

    def continuations(self, texts: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Tokenize requests as :meth:`continuation` does each."""
        longest = self.max_length
        return [
            Continuation(*truncated(before, after, longest))
            for before, after in self._encode_all(texts)
        ]

    def _encode_all(
        self, texts: Iterable[tuple[str, str]]
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Encode prompts and answers, so many at once that memory does not grow with them."""
        left = iter(texts)
        while part := list(itertools.islice(left, _ENCODED_AT_ONCE)):
            with self._tokens.encoded(part):
                yield from [self._encode(*text) for text in part]

    def encode(self, context: str, continuation: str) -> list[int]:
        """Encode prompt and answer as scored: together, cut from the left to the model's length."""
        before, after = self._encode(context, continuation)
        return (before + after)[-self.max_length :]

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            before, after = self._encode_pair(context, continuation)
            return before, after
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        if tokens and tokens[0] == self.prefix_token_id:
            return tokens[:1], tokens[1:]
        return [self.prefix_token_id], tokens

    def continuation(self, context: str, continuation: str) -> Continuation:
        """Tokenize a request as it is scored, cut from the left to the model's length."""
        return Continuation(*truncated(*self._encode(context, continuation), self.max_length))

    def asked_of(self, requests: Iterable[Instance]) -> Iterator[Continuation]:
        """Make the continuations of the harness's requests.

        Raises:
            UserError: one is longer than the model's length; ``hf`` asserts that none is.
        """
        longest = self.max_length
        asked, texts = itertools.tee(requests)
        encoded = self._encode_all(request.args for request in texts)
        for request, (before, after) in zip(asked, encoded, strict=True):
            if len(after) > longest:
                raise UserError(
                    f"task {request.task_name}, document {request.doc_id}: a continuation of "
                    f"{len(after)} tokens, and max_length is {longest}; pass a larger "
                    "max_length, or a model that takes longer texts"
                )
            yield Continuation(*truncated(before, after, longest))

    def _prepare(self, requests: list[Instance]) -> None:
        """Fit the method to every task of the run before the first request is answered."""
        noted = self._run.by_name
        for task in noted.values() if self.arm.method is not None else []:
            if task.output_type == "loglikelihood_rolling":
                _refuse_rolling(task.name)
        asked = [] if self.arm.is_unsteered else [request.task_name for request in requests]
        names = list(dict.fromkeys([*noted, *asked]))
        identity = model_identity(self.model_card)
        if (
            names == list(self._tasks)
            and all(n not in noted or noted[n] is self._tasks[n].task for n in names)
            and identity == self._prepared_for
        ):
            return
        tasks = {}
        for name in names:
            if name is None:
                raise UserError("a request names no task, so there are no pairs to fit a method to")
            tasks[name] = noted.get(name) or load_task(name, user_folders(self.options, None), None)
            refuse_unsuited(tasks[name], [self.arm])
        prepared = {}
        with files_looked_at_once():
            for name, task in tasks.items():
                [steering] = prepare(task, self, [self.arm])
                prepared[name] = with_unsteered(steering, self)
        self._use(prepared)
        self._prepared_for = identity

    _prepared_for: dict[str, Any] | None = None
    """The identity of the model that the fits are of."""

    def _use(self, prepared: dict[str, TaskSteering]) -> None:
        """Steer the tasks like that from now on."""
        self._tasks, self._first_edit, self._edits = prepared, {}, None
        every: list[Edits] = []
        for name, steering in prepared.items():
            self._first_edit[name] = len(every)
            every += steering.edits
        if every:
            self._edits = joined(every)

    def _steer(self, requests: list[Instance]) -> list[int]:
        """Give the index of the edit for each request, or ``UNSTEERED``; refuse leaks."""
        self._prepare(requests)
        if self.arm.is_unsteered:
            return [UNSTEERED] * len(requests)
        documents: dict[str, list[dict[str, Any]]] = {}
        of_document: dict[tuple[str, int], int] = {}
        for request in requests:
            name = request.task_name
            if (name, id(request.doc)) not in of_document:
                documents.setdefault(name, []).append(request.doc)
                edit = self._tasks[name].edit_of(request.doc)
                edit = edit if edit == UNSTEERED else self._first_edit[name] + edit
                of_document[name, id(request.doc)] = edit
        prompts: dict[str, list[str]] = {}
        for request in requests:
            prompts.setdefault(request.task_name, []).append(request.args[0])
        for name, scored in documents.items():
            self._tasks[name].guard(scored, prompts[name])
        return [of_document[request.task_name, id(request.doc)] for request in requests]

    def steering_digest(self, arm: Arm, edits: Edits | None, edit: int) -> str:
        """Digest what a response depends on beside its request; unsteered, on no method."""
        steering = None
        if arm.method is not None and edits is not None and edit != UNSTEERED:
            steering = edits.digest(edit), arm.method.record(), arm.method.code
        return hashlib.sha256(repr((self._answers_by, steering)).encode()).hexdigest()

    def digest_of(self, edit: int) -> str:
        return self.steering_digest(self.arm, self._edits, edit)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Give the harness's template; say where it leaves the model a thought to write first."""
        template: str | None = super().chat_template(chat_template)
        steers = any(not arm.is_unsteered for arm in self.arms.values())
        if template and steers and self._may_think(template):
            logger.warning(
                "Model %s: its chat template has thoughts, and prompts do not close one, but pairs "
                "and tuning put the answer right after them, where the thought would be; pass %s",
                self.model.config.name_or_path or self.pretrained,
                "enable_thinking=False"
                if "enable_thinking" in template
                else "an empty thought as gen_prefix of the task (docs/architectures.md)",
            )
        return template

    def _may_think(self, template: str) -> bool:
        """Return whether a prompt leaves the model a thought to write before its answer."""
        if (
            "enable_thinking" in template
            and self.chat_template_args.get("enable_thinking") is False
        ):
            return False
        thinks = "enable_thinking" in template or "<think>" in template
        if not thinks:
            return False
        prompt = self.apply_chat_template([{"role": "user", "content": "?"}])
        return not prompt.rstrip().endswith("</think>")

    # ------------------------------------------------------------------ requests

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        self.cache_hook = ResponseCache(cache_hook.dbdict)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """Give the log-likelihood of each continuation, steered from its prompt's last token.

        Requests of several tasks and folds may be mixed; each gets its own mask.
        """
        if self.enable_thinking:
            return super().loglikelihood(requests, disable_tqdm)  # type: ignore[no-any-return]
        with self._call():
            return self._loglikelihood(requests, disable_tqdm)

    def _loglikelihood(self, requests: list[Instance], disable_tqdm: bool) -> list[Score]:
        which = self._steer(requests)
        scores = self._scores(requests, which, "Running loglikelihood requests", disable_tqdm)
        odd: dict[str, set[int]] = {request.task_name: set() for request in requests}
        for request, score in zip(requests, scores, strict=True):
            if not math.isfinite(score[0]):
                odd[request.task_name].add(request.doc_id)
        self._report_not_finite({name: len(documents) for name, documents in odd.items()})
        if self.baseline:
            unsteered = scores
            if set(which) != {UNSTEERED}:
                alike = [UNSTEERED] * len(requests)
                unsteered = self._scores(requests, alike, "The same, unsteered", disable_tqdm)
            self._note_unsteered(requests, unsteered)
        return scores

    def _note_unsteered(self, requests: Sequence[Instance], responses: Sequence[Any]) -> None:
        """Have the harness's results give the unsteered model's numbers, too."""
        noted = self._run.by_name
        for request, response in zip(requests, responses, strict=True):
            run_task = noted.get(request.task_name)
            if run_task is not None and "bypass" not in run_task.task.aggregation():
                baseline_of(run_task.task).note(request, response)

    def _scores(
        self, requests: list[Instance], which: list[int], label: str, disable_tqdm: bool
    ) -> list[Score]:
        """Score requests, each with the edit of its index."""
        digests = {edit: self.digest_of(edit) for edit in set(which)}
        scores: list[Score | None] = [None] * len(requests)
        left: list[int] = []
        for index, request in enumerate(requests):
            self.cache_hook.steering = digests[which[index]]
            scores[index] = self.cache_hook.get("loglikelihood", request.args)
            if scores[index] is None:
                left.append(index)
        asked = self.asked_of(requests[index] for index in left)
        continuations = [
            continuation._replace(edit=which[index])
            for index, continuation in zip(
                left,
                tqdm(asked, desc="Tokenizing inputs", total=len(left), disable=disable_tqdm),
                strict=True,
            )
        ]
        bar = tqdm(
            total=len(requests),
            initial=len(requests) - len(left),
            desc=label,
            disable=disable_tqdm or self.rank != 0,
        )

        def done(scored: list[tuple[int, Score]]) -> None:
            for position, score in scored:
                index = left[position]
                scores[index] = score
                self.cache_hook.steering = digests[which[index]]
                self.cache_hook.add_partial("loglikelihood", requests[index].args, score)
            bar.update(len(scored))

        with bar:
            self.engine.score(continuations, self._edits, done)
        return [score for score in scores if score is not None]

    def _report_not_finite(self, counts: dict[str, int]) -> None:
        """Note down for the results file on how many documents of each task there is no answer."""
        total = self._sum(counts)
        self._not_finite |= total
        for name, count in total.items():
            if count:
                logger.warning(
                    "Task %s, %s: log-probabilities of %d documents are not finite (steered too "
                    "strongly for %s?): the answers to them mean nothing",
                    *(name, self.arm.label, count, self.model.dtype),
                )

    def _report_degenerate(self, texts: dict[str, list[str]]) -> None:
        """Note down for the results file how many texts of each task say nothing."""
        total = self._sum({name: sum(map(is_degenerate, mine)) for name, mine in texts.items()})
        self._degenerate |= total
        for name, count in total.items():
            if count and self.arm.method is not None:
                logger.warning(
                    "Task %s, %s: %d texts are empty, or one short piece over and over (steered "
                    "too strongly?)",
                    *(name, self.arm.label, count),
                )

    def _sum(self, counts: dict[str, int]) -> dict[str, int]:
        """Sum the counts of all processes, task by task."""
        total: dict[str, int] = {}
        for part in self.processes.all_gather(counts):
            for name, count in part.items():
                total[name] = total.get(name, 0) + count
        return total

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Refuse to steer: a rolling log-likelihood has no prompt whose last token could be."""
        if self.arm.method is not None:
            _refuse_rolling(str(requests[0].task_name if requests else ""))
        return super().loglikelihood_rolling(requests, disable_tqdm)  # type: ignore[no-any-return]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate after each prompt, steered from its last token."""
        with self._call():
            try:
                return self._generate_until(requests, disable_tqdm)
            finally:
                self.engine.forward.forget()

    def _generate_until(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        which = self._steer(requests)
        texts, odd = self._generated(requests, which, disable_tqdm)
        self._report_not_finite(odd)
        of_task: dict[str, list[str]] = {request.task_name: [] for request in requests}
        for request, text in zip(requests, texts, strict=True):
            of_task[request.task_name].append(text)
        self._report_degenerate(of_task)
        if self.baseline:
            unsteered = texts
            if set(which) != {UNSTEERED}:
                with torch.random.fork_rng():  # steered texts are drawn as without a baseline
                    alike = [UNSTEERED] * len(requests)
                    unsteered, _ = self._generated(requests, alike, disable_tqdm)
            self._note_unsteered(requests, unsteered)
        return texts

    # ------------------------------------------------------------------ results

    def get_model_info(self) -> dict[str, Any]:
        """Give the harness's facts about the model, and how each task was steered."""
        info: dict[str, Any] = super().get_model_info()
        info["sadi"] = {}
        for name, steering in self._tasks.items():
            logger.info("Task %s: %s", name, steering.summary)
            info["sadi"][name] = steering.record.with_counts(
                self._not_finite.get(name, 0), self._degenerate.get(name, 0)
            ).to_json()
        return info


class ManyArmsModel(SteeredModel):
    """A model that several arms steer, as ``sweep`` and ``compare`` have it."""

    def __init__(
        self,
        pretrained: str | transformers.PreTrainedModel,
        arm_names: Sequence[str],
        **arguments: Any,
    ) -> None:
        """
        Args:
            arm_names: see :func:`sadi_lmeval.methods.registry.arm_names`.
            arguments: of the harness's ``hf``, those that all methods share, and those of the arms'
                methods, each of which counts for every arm that has it.
        """
        self._arm_names = list(arm_names)
        super().__init__(pretrained, **arguments)

    def _read_arms(self, given: dict[str, Any]) -> dict[str, Arm]:
        return read_arms(self._arm_names, given)

    def _join_processes(self) -> Processes:
        """Join the processes of the run, which divide batches.

        To the harness each of them is the only one: it is given all requests, and gets all answers.
        """
        joined = super()._join_processes()
        self._rank, self._world_size = 0, 1
        return Together(joined.rank, joined.count, joined.device)


@cache
def model_class(method: str) -> type[SteeredModel]:
    """Make the harness model of a method.

    Raises:
        UserError: there is no such method, or it cannot be loaded.
    """
    kind = method_class(method)
    doc = (kind.__doc__ or "").strip()
    body = {"METHOD": method, "__doc__": doc, "__module__": __name__}
    return type(kind.__name__, (SteeredModel,), body)


def __getattr__(name: str) -> type[SteeredModel]:
    """Give the model of a method by the method's name: where the harness looks for ``hf-NAME``.

    A hyphen of the method's name is an underscore here.
    """
    for method in method_names():
        if method.replace("-", "_") == name:
            return model_class(method)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _has_one_text(config: Any) -> bool:
    try:
        config.get_text_config()
    except ValueError:  # a text encoder beside a decoder of something else
        return False
    return True


def _predicts_tokens(model: Any) -> bool:
    """Return whether a model gives logits of the next token: a vision-language model does, too."""
    decodes = not getattr(model.config, "is_encoder_decoder", False)
    return decodes and model.get_output_embeddings() is not None


def _refuse_tensor_parallel(arguments: dict[str, Any]) -> None:
    if arguments.get("tp_plan") is not None:
        raise UserError(
            f"tp_plan={arguments['tp_plan']}: heads and neurons of a layer would lie on several "
            "devices; pass parallelize=True, which spreads whole layers, or start a process for "
            "each device that holds the model (docs/scale.md)"
        )


def _refuse_rolling(name: str) -> NoReturn:
    raise UserError(
        f"task {name} asks for loglikelihood_rolling, which has no prompt whose last token could "
        "be steered; score it with --model hf"
    )
