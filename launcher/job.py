"""A recipe together with the cluster it runs on: what `train` starts and what a run's folder keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from cluster.config import ClusterConfig
from training import recipe as recipes
from training.recipe import Recipe
from training.sections import Document, parse_section, to_plain


@dataclass
class Job:
    """Everything that `trestle train` needs to know."""

    recipe: Recipe
    cluster: ClusterConfig
    can_prepare: bool = False
    """Whether the same file says how to make its shards."""

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return self.cluster.nodes * self.cluster.ranks_per_node

    def document(self) -> Document:
        """The plain values, every default written out."""
        return {**recipes.to_document(self.recipe), "cluster": to_plain(self.cluster)}

    def to_yaml(self) -> str:
        """The resolved recipe as `recipe.yaml` keeps it."""
        return recipes.dump_yaml(self.document())

    def explained(self) -> str:
        """The same with what each key means beside it."""
        from launcher.explain import comments

        types = {field.name: type(getattr(self.recipe, field.name)) for field in fields(self.recipe)}
        return recipes.dump_yaml(self.document(), comments({**types, "cluster": ClusterConfig}))

    def check(self) -> None:
        """Refuse what cannot run, before anything is started. Raises errors with exit_code 2."""
        self.cluster.check(self.recipe.parallel.tensor)
        recipes.check(self.recipe, self.world_size)


def known_keys_of_a_recipe() -> list[str]:
    """Every dotted key that a recipe may have, for naming the nearest to a wrong one."""
    from data_pipeline.recipe import PrepareConfig

    return recipes.known_recipe_keys({"cluster": ClusterConfig, "prepare": PrepareConfig})


def load_job(source: Path, overrides: Sequence[str] = ()) -> Job:
    """The recipe in a file or a run's folder, with `--section.key=value` set. Raises RecipeError, UserError."""
    return job_of(load_document(source, overrides))


def load_document(source: Path | None, overrides: Sequence[str] = ()) -> Document:
    """A recipe's plain values with the overrides set; None is an empty recipe. Raises RecipeError."""
    from data_pipeline.recipe import PrepareConfig

    return recipes.load_document(source, overrides, {"cluster": ClusterConfig, "prepare": PrepareConfig})


def job_of(document: Document) -> Job:
    """The typed job of plain values. Raises RecipeError."""
    cluster = parse_section(ClusterConfig, document.get("cluster"), "cluster", known_keys_of_a_recipe())
    return Job(recipes.parse_recipe(document), cluster, can_prepare="prepare" in document)
