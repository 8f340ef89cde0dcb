"""Ray's fake provider of nodes, for types that say their memory."""

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Provider(FakeMultiNodeProvider):
    """Starts a node as processes on this machine, which find out how much memory it has, as real nodes do.

    Ray 2.60's own hands `memory` on as a custom resource, and its nodes refuse to start.
    """

    def _create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        said = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, said, labels)
