"""A Ray cluster of several nodes on this machine, in a process of its own; it ends with its standard input.

Started as ``python ray_nodes.py CPUS...`` it makes a node per number and prints the address; a number on its input removes that node.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

HEAD = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
_SECONDS = 240.0


def patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray gives a node 30 seconds to make itself known, which a busy core may not keep."""

    def ask(*arguments: Any) -> Any:
        end = time.monotonic() + _SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    return ask


def main() -> None:
    from ray._private import services
    from ray.cluster_utils import Cluster

    services.get_node = patient(services.get_node)
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    nodes = [cluster.add_node(num_cpus=int(cpus), include_log_monitor=False) for cpus in sys.argv[1:]]
    print(cluster.address, flush=True)
    try:
        for line in sys.stdin:
            cluster.remove_node(nodes[int(line)], allow_graceful=False)
            print("removed", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
