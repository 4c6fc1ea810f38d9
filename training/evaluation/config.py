"""The recipe's `evaluation:` section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_pipeline.locations import anchored
from training.errors import RecipeError

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of one {}.",
    "a close-up of a {}.",
    "a blurred photo of a {}.",
    "a drawing of a {}.",
    "{}",
)
"""Where none are given: a short ensemble after the idea of Radford et al. 2021, section 3.1.4. The 80 that they chose
for ImageNet are in their repository, for who wants to compare with their figures.
"""


@dataclass
class ZeroShotTask:
    """Classification by the class names alone. A picture's class is its caption: the name, or a template's text."""

    shards: str
    """Labelled image-text shard set: a folder or a URL."""
    classes: str | list[str]
    """The class names: a text file with one a line, or a list."""
    templates: list[str] = field(default_factory=lambda: list(TEMPLATES))
    """Texts with {} in place of the class name; a class's features are the mean over them."""
    name: str | None = None
    """What its figures are called by; null: the last part of `shards`."""


@dataclass
class ProbeTask:
    """Classifiers trained on the frozen features of labelled pictures: logistic regression and nearest neighbours."""

    train: str
    """Image-text shard set to learn from; the captions are the labels."""
    test: str
    """Image-text shard set to measure on."""
    name: str | None = None
    """What its figures are called by; null: the last part of `test`."""


@dataclass
class EvaluationConfig:
    """What is measured at each validation, and by `trestle evaluate`, of a model of pictures and texts."""

    zero_shot: list[ZeroShotTask] = field(default_factory=list)
    """Zero-shot classification (Radford et al. 2021, section 3.1)."""
    retrieval: bool = True
    """Find the picture of a text and the text of a picture among those of each set of data.validation."""
    probe: list[ProbeTask] = field(default_factory=list)
    """Linear probe (Radford et al. 2021, appendix A.3) and k-nearest neighbours; seconds to minutes for each."""
    samples: int = 5000
    """Pairs of each set to look at, spread evenly over it; 0: all."""
    pictures: bool = True
    """Show confusion matrix, similarity matrix and retrieved examples in TensorBoard."""

    def check(self) -> None:
        """Raise RecipeError for what means nothing; reads the files of class names, but no shards."""
        if self.samples < 0:
            raise RecipeError(f"evaluation.samples is {self.samples}; it must be 0 (all) or more")
        for number, task in enumerate(self.zero_shot):
            key = f"evaluation.zero_shot.{number}"
            class_names(task, key)
            _check_templates(task.templates, key)
        for section, tasks in (("zero_shot", self.zero_shot), ("probe", self.probe)):
            names = [name_of(task) for task in tasks]
            twice = _first_repeated(names)
            if twice is not None:
                raise RecipeError(
                    f'evaluation.{section} has two entries called "{twice}", whose figures would mix; '
                    "give each a name of its own"
                )

    def anchor(self) -> None:
        """Make folders and files absolute, so that the run can be resumed and evaluated from anywhere."""
        for task in self.zero_shot:
            task.shards = anchored(task.shards)
            if isinstance(task.classes, str):
                task.classes = str(Path(task.classes).absolute())
        for probe in self.probe:
            probe.train, probe.test = anchored(probe.train), anchored(probe.test)


def name_of(task: ZeroShotTask | ProbeTask) -> str:
    """What a task's figures are called by."""
    if task.name:
        return task.name
    shards = task.shards if isinstance(task, ZeroShotTask) else task.test
    return PurePosixPath(shards).name or shards


def class_names(task: ZeroShotTask, key: str = "evaluation.zero_shot") -> list[str]:
    """The class names of a task, in order. Raises RecipeError for a file that cannot be read, or names that cannot be
    told apart.
    """
    listed = _lines(task.classes, key) if isinstance(task.classes, str) else task.classes
    names = [" ".join(name.split()) for name in listed]
    where = f"{key}.classes" + (f" ({task.classes})" if isinstance(task.classes, str) else "")
    if not all(names):
        raise RecipeError(f"{where} has an empty class name; write a word for each class")
    if len(names) < 2:
        raise RecipeError(
            f"{where} names {len(names)} class{'' if names else 'es'}: with fewer than two there is nothing to choose "
            "between; name every class that a picture could be taken for"
        )
    twice = _first_repeated([name.casefold() for name in names])
    if twice is not None:
        raise RecipeError(f'{where} names "{twice}" twice; name each class once')
    return names


def _lines(path: str, key: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{key}.classes: {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{key}.classes: {path} is no UTF-8 text; it must hold one class name a line") from error
    return [line for line in text.splitlines() if line.strip()]


def _check_templates(templates: Sequence[str], key: str) -> None:
    if not templates:
        raise RecipeError(f'{key}.templates is empty; "{{}}" alone asks for the bare class names')
    for template in templates:
        if "{}" not in template:
            raise RecipeError(f'{key}.templates: "{template}" has no {{}}, where the class name goes')


def _first_repeated(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)
