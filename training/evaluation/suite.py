"""Everything that a recipe's `evaluation:` section asks for, on one model, by all data-parallel ranks together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import RecipeError
from training.evaluation import examples, neighbours, pictures
from training.evaluation.config import EvaluationConfig, ProbeTask, ZeroShotTask, class_names, name_of
from training.evaluation.drawing import Picture, percent
from training.evaluation.encode import (
    Embed,
    Encoded,
    Pairs,
    Team,
    Tokenizer,
    check_pictures,
    chosen,
    encode_pairs,
    encode_texts,
    read_captions,
)
from training.evaluation.probe import probe
from training.evaluation.retrieval import Ranks, distinct, retrieve
from training.evaluation.similarity import unit
from training.evaluation.zero_shot import class_weights, classify, labels_of, prompts

_PAIRS_SHOWN = 12


@dataclass(frozen=True)
class Findings:
    """What an evaluation found."""

    figures: dict[str, float] = field(default_factory=dict)
    """`zero_shot/NAME/top1`, `retrieval/NAME/image_to_text_r1`, `probe/NAME/accuracy`, `neighbours/NAME/accuracy` …"""
    pictures: list[tuple[str, Picture]] = field(default_factory=list)
    """(tag, uint8 [H, W, 3])"""
    encoded: dict[str, Encoded] = field(default_factory=dict)
    """Location → features of each set, those of data.validation with their texts."""


class Suite:
    """`config` on held-out sets. `validation`: name → location of each set of data.validation, which are encoded with
    their texts, for retrieval among other things;
    `open_pairs` opens a location. `team`: the ranks that encode together, `micro_batch_size` rows at a time.

    Construction and `run` are collective over the team. Reads all captions it will need, and raises RecipeError for
    what could only fail later: captions of no class, sets of one class or one caption, labels never seen in training.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        validation: Mapping[str, str],
        open_pairs: Callable[[str], Pairs],
        tokenizer: Tokenizer,
        context_length: int,
        *,
        team: Team,
        micro_batch_size: int,
    ) -> None:
        self._config, self._validation = config, dict(validation)
        self._open, self._tokenizer, self._context = open_pairs, tokenizer, context_length
        self._team, self._micro = team, micro_batch_size
        self._pairs: dict[str, Pairs] = {}
        self._captions: dict[str, list[str]] = {}
        for location in self._locations():
            self._read(location)
        for name, location in self._validation.items() if config.retrieval else ():
            _refuse_one_caption(name, self._captions[location])
        # Read once: labels are numbers of these, and a file may change while a run goes on.
        self._classes = [class_names(task) for task in config.zero_shot]
        self._labels = [self._zero_shot_labels(*one) for one in zip(config.zero_shot, self._classes, strict=True)]
        self._probe_labels = [self._labels_of_probe(task) for task in config.probe]

    def __bool__(self) -> bool:
        """Whether there is anything to evaluate."""
        return bool(self._pairs)

    def run(self, embed: Embed, *, draw: bool = True, alive: Callable[[], None] = lambda: None) -> Findings:
        """Findings of the model behind `embed`, equal on every rank; pictures only where `draw`.

        Collective; `alive` is called now and then. Raises Diverged for features that are not finite.
        """
        found = Findings()
        draw = draw and self._config.pictures
        encoded = found.encoded
        for location, pairs in self._pairs.items():
            encoded[location] = encode_pairs(
                pairs,
                self._tokenizer,
                self._context,
                embed,
                team=self._team,
                micro_batch_size=self._micro,
                limit=self._config.samples,
                captions=self._captions[location],
                with_texts=location in self._validation.values(),
                alive=alive,
            )
        for name, location in self._validation.items() if self._config.retrieval else ():
            self._retrieval(name, encoded[location], self._pairs[location], found, draw)
            alive()
        for task, classes, labels in zip(self._config.zero_shot, self._classes, self._labels, strict=True):
            self._zero_shot(task, classes, labels, encoded[task.shards], embed, found, draw, alive)
        for one, (labels, truth) in zip(self._config.probe, self._probe_labels, strict=True):
            self._probe(one, labels, truth, encoded, found, alive)
        return found

    # ── one kind of score each ─────────────────────────────────────────────────────────────────────────────────────

    def _retrieval(self, name: str, encoded: Encoded, pairs: Pairs, found: Findings, draw: bool) -> None:
        first, picture_of = distinct(encoded.picture_of.tolist())
        images, texts = encoded.images[first], encoded.text_features
        relation = torch.stack([picture_of, encoded.text_of], 1)
        device = self._team.device
        scores = retrieve(images.to(device), texts.to(device), relation)
        found.figures.update(_named(f"retrieval/{name}", scores.figures()))
        if not draw:
            return

        def look(number: int) -> Picture:
            return _picture(pairs, encoded.positions, first[number])

        shown = examples.pictures_for_texts(images, texts, relation, scores, encoded.texts, look)
        grid = pictures.pictures_found(shown, f"Pictures found for texts: {name}{_at_once(scores.text_to_image)}")
        found.pictures.append((f"retrieval/{name}/text_to_image", grid))
        shown = examples.texts_for_pictures(images, texts, relation, scores, encoded.texts, look)
        grid = pictures.captions_found(shown, f"Texts found for pictures: {name}{_at_once(scores.image_to_text)}")
        found.pictures.append((f"retrieval/{name}/image_to_text", grid))
        found.pictures.append((f"retrieval/{name}/similarity", _similarity(name, encoded, pairs)))

    def _zero_shot(
        self,
        task: ZeroShotTask,
        classes: list[str],
        labels: torch.Tensor,
        encoded: Encoded,
        embed: Embed,
        found: Findings,
        draw: bool,
        alive: Callable[[], None],
    ) -> None:
        name = name_of(task)
        texts = prompts(classes, task.templates)
        features = encode_texts(texts, self._tokenizer, self._context, embed, self._team, self._micro, alive)
        device, weights = self._team.device, class_weights(features, len(classes))
        scores = classify(encoded.images.to(device), weights.to(device), labels)
        found.figures.update(_named(f"zero_shot/{name}", scores.figures()))
        if draw:
            truth, taken = scores.labels.numpy(), scores.predictions.numpy()
            matrix = pictures.confusion_matrix(truth, taken, classes, f"Zero-shot classification: {name}")
            found.pictures.append((f"zero_shot/{name}/confusion", matrix))

    def _probe(
        self,
        task: ProbeTask,
        labels: torch.Tensor,
        truth: torch.Tensor,
        encoded: Mapping[str, Encoded],
        found: Findings,
        alive: Callable[[], None],
    ) -> None:
        name, train, test = name_of(task), encoded[task.train].images, encoded[task.test].images
        classes = int(labels.max()) + 1
        device = self._team.device
        voted = neighbours.predict(train.to(device), labels, test.to(device), classes=classes)
        found.figures[f"neighbours/{name}/accuracy"] = float((voted == truth).double().mean())

        def share(function: Callable[[float], float], arguments: Sequence[float]) -> list[float]:
            alive()
            return self._team.share(function, arguments)

        linear = probe(unit(train), labels, unit(test), truth, share=share)
        found.figures[f"probe/{name}/accuracy"] = linear.accuracy
        found.figures[f"probe/{name}/c"] = linear.c

    # ── data ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _locations(self) -> list[str]:
        probes = [location for task in self._config.probe for location in (task.train, task.test)]
        every = [*self._validation.values(), *(task.shards for task in self._config.zero_shot), *probes]
        return list(dict.fromkeys(every))

    def _read(self, location: str) -> None:
        pairs = self._pairs[location] = self._open(location)
        if not len(pairs):
            raise RecipeError(f"{location} has no pairs to evaluate on")
        positions = chosen(len(pairs), self._config.samples)
        self._captions[location] = read_captions(pairs, positions, self._team)
        check_pictures(pairs, positions, self._team)

    def _zero_shot_labels(self, task: ZeroShotTask, classes: list[str]) -> torch.Tensor:
        what = f"evaluation.zero_shot {name_of(task)} ({task.shards})"
        return labels_of(self._captions[task.shards], classes, task.templates, what=what)

    def _labels_of_probe(self, task: ProbeTask) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels of the training and of the test set: the captions, numbered in alphabetical order."""
        what = f"evaluation.probe {name_of(task)}"
        train, test = self._captions[task.train], self._captions[task.test]
        numbers = {caption: number for number, caption in enumerate(sorted(set(train)))}
        if len(numbers) < 2:
            raise RecipeError(f"{what}: all captions of {task.train} are the same, so there is nothing to tell apart")
        if len(numbers) == len(train):
            raise RecipeError(
                f"{what}: each caption of {task.train} occurs once only, so captions are no labels there; use a set "
                "whose captions are class names, or raise evaluation.samples"
            )
        unseen = next((caption for caption in test if caption not in numbers), None)
        if unseen is not None:
            raise RecipeError(
                f'{what}: the caption "{unseen[:60]}" of {task.test} does not occur in {task.train}, so no classifier '
                "can learn it; use sets with the same labels, or raise evaluation.samples"
            )
        labels, truth = (torch.tensor([numbers[c] for c in captions]) for captions in (train, test))
        return labels, truth


def _similarity(name: str, encoded: Encoded, pairs: Pairs) -> Picture:
    """Up to 12 distinct texts with one picture of each."""
    texts = examples.spread(len(encoded.texts), _PAIRS_SHOWN)
    places = [encoded.captions.index(encoded.texts[text]) for text in texts]
    cosines = unit(encoded.text_features[texts]) @ unit(encoded.images[places]).T
    looked = [_picture(pairs, encoded.positions, place) for place in places]
    captions = [encoded.texts[text] for text in texts]
    return pictures.similarity_matrix(cosines.numpy(), looked, captions, f"Similarity of texts and pictures: {name}")


def _picture(pairs: Pairs, positions: NDArray[np.int64], place: int) -> Picture:
    return np.ascontiguousarray(pairs.batch(int(positions[place]), 1).images[0].transpose(1, 2, 0))


def _at_once(ranks: Ranks) -> str:
    share = ranks.recall(1)
    return "" if share is None else f", {percent(share, 1)} right at once"


def _named(prefix: str, figures: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in figures.items()}


def _refuse_one_caption(name: str, captions: list[str]) -> None:
    if len(set(captions)) < 2:
        raise RecipeError(
            f'all pairs of the held-out set {name} have the caption "{captions[0][:60]}", so there is nothing to '
            "retrieve; use pairs with several captions, or set evaluation.retrieval to false"
        )
