"""What `World` knows of a process, in the words of Lightning."""

from __future__ import annotations

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from llmfactory.parallel.mesh import World


class Place(ClusterEnvironment):
    """What `World` knows, in Lightning's words, so that it looks at no environment variable and starts no process."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        raise RuntimeError("the process group exists already")

    @property
    def main_port(self) -> int:
        raise RuntimeError("the process group exists already")

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        """One, whatever the job: of several processes Lightning would tell each other at every step whether one of them was sent a
        signal, by a broadcast whose result the host waits for. `MeshStrategy.batch_to_device` does that with the numbers that it adds up
        anyway."""
        return 1

    def set_world_size(self, size: int) -> None:
        """Known already."""

    def global_rank(self) -> int:
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        """Known already."""

    def local_rank(self) -> int:
        return self.world.local_rank

    def node_rank(self) -> int:
        return self.world.rank // self.world.local_size
