"""How a model is laid over ranks: the sizes of the axes, and what makes them impossible."""

from __future__ import annotations

from dataclasses import dataclass

from modeling.errors import ModelError


@dataclass(frozen=True)
class Place:
    """Where one rank sits in a layout: its number among its tensor-, pipeline- and data-parallel peers, from 0."""

    tensor: int
    pipeline: int
    data: int


@dataclass
class Layout:
    """Sizes of the model-parallel axes; what is left of the world size is data parallelism."""

    tensor: int = 1
    """Ranks that share each matrix (Shoeybi et al. 2019)."""
    pipeline: int = 1
    """Stages that the layers are divided into (1F1B, Narayanan et al. 2021)."""
    virtual_pipeline: int = 1
    """Model chunks per stage; above 1 the interleaved schedule runs (Narayanan et al. 2021, section 2.2)."""
    sequence: bool = False
    """Split norms and dropout along the sequence over the tensor-parallel group (Korthikanti et al. 2022)."""

    @property
    def model_parallel(self) -> int:
        """Ranks that hold one replica of the model."""
        return self.tensor * self.pipeline

    def data_parallel(self, world_size: int) -> int:
        """Replicas of the model among `world_size` ranks; raises ModelError when they do not divide."""
        if world_size % self.model_parallel:
            raise ModelError(
                f"parallel.tensor {self.tensor} x parallel.pipeline {self.pipeline} = {self.model_parallel} ranks do "
                f"not divide the {world_size} ranks of this run; use a multiple of {self.model_parallel} ranks"
            )
        return world_size // self.model_parallel

    def place(self, rank: int, world_size: int) -> Place:
        """The coordinates that `modeling.groups` gives to a rank: tensor fastest, then data, pipeline slowest.

        Raises ModelError as `data_parallel`.
        """
        rest, tensor = divmod(rank, self.tensor)
        pipeline, data = divmod(rest, self.data_parallel(world_size))
        return Place(tensor, pipeline, data)

    def in_flight(self, stage: int, micro_batches: int) -> float:
        """Micro-batches whose activations a stage keeps at once; a share of one where a chunk is a share of a stage.

        1F1B and the interleaved schedule as Megatron Core warms them up (Narayanan et al. 2021, sections 2.2 and 2.3).
        """
        if self.virtual_pipeline == 1:
            return min(self.pipeline - stage, micro_batches)
        chunks = 2 * (self.pipeline - stage - 1) + (self.virtual_pipeline - 1) * self.pipeline + 1
        return min(chunks, micro_batches * self.virtual_pipeline) / self.virtual_pipeline

    def check(self) -> None:
        """Refuse sizes that mean nothing, whatever the model."""
        for name in ("tensor", "pipeline", "virtual_pipeline"):
            if getattr(self, name) < 1:
                raise ModelError(f"parallel.{name} is {getattr(self, name)}; it must be at least 1")
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise ModelError(
                f"parallel.virtual_pipeline {self.virtual_pipeline} interleaves pipeline stages, but parallel.pipeline "
                "is 1; set parallel.pipeline to 2 or more, or parallel.virtual_pipeline to 1"
            )
        if self.sequence and self.tensor == 1:
            raise ModelError(
                "parallel.sequence splits activations over the tensor-parallel group, but parallel.tensor is 1; "
                "set parallel.tensor to 2 or more, or parallel.sequence to false"
            )
